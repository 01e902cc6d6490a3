"""Checks of arguments that need no model and no data: they run before PyTorch is imported."""

import re
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

from PIL import Image

from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError, unknown
from hgsl.common.extras import require
from hgsl.common.remote import check_root_uri, check_uri
from hgsl.common.whole_numbers import check_whole_number
from hgsl.search.folder.layout import FOLDERS, MODEL, has_index, has_model, state_files
from hgsl.search.stores.address import is_milvus, split_address

LOCAL, RAY = ENGINES = ("local", "ray")  # of the embedding of images


def check_index_folder(folder: Path) -> None:
    """Checks that a folder is an index or can become one.

    Raises:
        InputError: It is a file, or holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: an index is a folder")
    if not folder.is_dir() or has_index(folder):
        return
    allowed = {folder / MODEL, *state_files(folder), folder / "lost+found"}  # of an interrupted first run; of a disk
    files = sorted(path.name for path in folder.iterdir() if path not in allowed and path.name[0] != ".")
    if files:
        raise InputError(f"{folder} holds other files ({files[0]}): name an empty or a new folder for the index")


def index_address(store: str | None, folder: str | None, uri: str | None) -> str:
    """Returns the address of the index to write, from the flags --store, --out and --uri.

    Raises:
        InputError: They contradict each other, or the folder is a file or holds other files.
    """
    if (folder is None) == (uri is None):
        raise InputError("name the index: --out FOLDER for a folder, or --store milvus --uri URI for Milvus")
    if uri is not None:
        if store == "folder":
            raise InputError("--uri is the address of Milvus: use --store milvus, or --out FOLDER")
        if not is_milvus(uri):
            raise InputError(f"--uri must be a local file that ends with .db, or http://HOST:PORT, found {uri!r}")
        split_address(uri)
        return uri
    address = str(folder)
    if store == "milvus" or is_milvus(address):
        raise InputError(f"--out {address} is not a folder of an index: give the address of Milvus with --uri")
    check_index_folder(Path(address))
    return address


def given_index_type(kind: str, address: str, faiss: str | None, milvus_index: str | None) -> str | None:
    """Returns the index type that the user gave for a store of this kind, "folder" or "milvus", or None.

    Raises:
        InputError: It is one for the other kind of store.
    """
    other = milvus_index if kind == "folder" else faiss
    if other is not None:
        flags = "--faiss, not --milvus-index" if kind == "folder" else "--milvus-index, not --faiss"
        raise InputError(f"the index type of {address} is given with {flags} ({other!r})")
    return faiss if kind == "folder" else milvus_index


def check_sources(images: object, from_embeddings: str | Path | None) -> None:
    """Checks that the images of an index are named, by their folder or by their embeddings.

    Raises:
        FileNotFoundError: There is no folder of embeddings.
        InputError: Neither is given, or pyarrow is not installed.
    """
    if images is None and from_embeddings is None:
        raise InputError("name the images: --images DIR, or --from-embeddings PARTS for images that are embedded")
    if from_embeddings is not None:
        require("parquet", "--from-embeddings")
        if not Path(from_embeddings).expanduser().is_dir():
            raise FileNotFoundError(f"no folder {from_embeddings}: --from-embeddings names a folder of parts")


def check_engine(
    engine: str,
    index: str,
    parts: str | Path | None,
    address: str | None,
    from_embeddings: str | Path | None,
) -> Path | None:
    """Checks the flags of a cluster, and returns the folder of the parts that it writes; None without one.

    Args:
        engine: ``local`` or ``ray``.
        index: Address of the index, beside which the parts are by default.
        parts, address, from_embeddings: See :func:`hgsl.search.build_index`.

    Raises:
        InputError: They contradict each other, or Ray is not installed.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == LOCAL:
        for flag, value in (("--address", address), ("--parts", parts)):
            if value is not None:
                raise InputError(f"{flag} has no effect without --engine ray: give it as well, or leave {flag} out")
        return None
    require("ray", "--engine ray")
    if from_embeddings is not None:
        raise InputError(
            "--engine ray reads and continues the parts of --parts: give the folder there, not as --from-embeddings"
        )
    if parts is not None:
        return Path(parts).expanduser()
    file = index.partition("#")[0]
    if "://" in file or file.startswith("unix:"):
        raise InputError("--engine ray with a Milvus server needs --parts DIR, a folder that all machines share")
    return Path(f"{Path(file)}.parts").expanduser()


def named_indexes(words: Sequence[str]) -> dict[str, str]:
    """Name -> address from the flags --index ADDRESS, or --index NAME=ADDRESS for each of several.

    Raises:
        InputError: Of several, one has no name, or two have the same.
    """
    indexes: dict[str, str] = {}
    for word in words:
        match = re.fullmatch(r"([\w-]{1,200})=(.+)", word)
        name, address = ("", word) if match is None or Path(word).exists() else (match[1], match[2])
        if len(words) > 1 and not name:
            raise InputError(f"--index {word}: several indexes need names, such as --index roses={word}")
        if name in indexes:
            raise InputError(f"--index {word}: there are two indexes of the name {name!r}")
        indexes[name] = address
    return indexes


def check_counts(batch_size: int, workers: int) -> None:
    """Checks the numbers of images per batch and of loader processes."""
    check_whole_number("batch_size", batch_size, 1)
    check_whole_number("workers", workers, 0)


def check_neighbors(k: int) -> None:
    """Checks the number of images per query."""
    check_whole_number("k", k, 1)


def check_port(port: int) -> None:
    """Checks a port number, of which the system would silently use the lower 16 bits."""
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port must be a number from 0 to 65535, found {port}")


def check_host_names(names: Sequence[str]) -> None:
    """Checks host names by which a server may be reached: a browser sends neither a scheme nor a path with them."""
    for name in names:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
            raise InputError(f"--allow-host must be a host name such as photos.example, found {name!r}")


def check_threshold(threshold: float | None) -> None:
    """Checks a no-match threshold that the user set."""
    if threshold is not None and not (isinstance(threshold, Real) and -1 <= threshold <= 1):
        raise InputError(f"no_match is a cosine similarity from -1 to 1, found {threshold!r}")


def check_image_folder(root: Path | str) -> None:
    """Checks that the image folder exists, or that its address can be read with the installed packages."""
    if isinstance(root, str):
        check_root_uri("--images", root)
    elif not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: --images names the folder that holds the images")


def check_has_model(folder: Path) -> None:
    """Checks that an index has a copy of its model, which is needed if no checkpoint is given."""
    if not has_model(folder):
        raise InputError(f"{folder} has no model yet: give the trained model with --checkpoint RUN")


def check_label_table(labels: str | None) -> None:
    """Checks that the table of labels exists; "folders" is not a table."""
    if labels not in (None, FOLDERS) and not Path(labels).expanduser().exists():
        raise FileNotFoundError(f"no table {labels}: --labels names a .csv file, or is '{FOLDERS}'")


def check_query_images(images: Sequence[Path | str]) -> None:
    """Checks that every query image exists, or that its address can be read with the installed packages."""
    for address in images:
        if isinstance(address, str):
            check_uri(address)
    missing = [path for path in images if isinstance(path, Path) and not path.is_file()]
    if missing:
        if missing[0].is_dir():
            raise InputError(f"{missing[0]} is a folder: give image files, such as {missing[0]}/*.jpg")
        raise FileNotFoundError(f"no such image: {missing[0]}")


def check_sheet(path: Path) -> None:
    """Checks that a contact sheet can be written.

    Raises:
        InputError: Pillow writes no format of this suffix.
        OSError: The folder cannot be written.
    """
    formats = Image.registered_extensions()
    if formats.get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"cannot write an image to {path}: expected a name such as sheet.png")
    check_writable(path)
