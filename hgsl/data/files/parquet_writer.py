"""Conversion of a data set to Parquet files, which the adapter ``parquet`` and Hugging Face ``datasets`` read."""

import glob
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.extras import require
from hgsl.common.files import PARTIAL, atomic_path, locked
from hgsl.common.locations import name_of, read_bytes
from hgsl.common.progress import progress_bar
from hgsl.data.adapters.table import BOX_COLUMNS
from hgsl.data.files.fingerprints import content_fingerprint
from hgsl.data.files.parquet_images import FINGERPRINT
from hgsl.data.manifest import Manifest

FILE_BYTES = 256 << 20  # of images in a file
GROUP_BYTES = 1 << 20  # of images in a row group, which is what reading one image decodes
READERS = 8  # threads
PART = 64  # images that are read at a time
LOCK = ".lock"  # of a folder that is being written


def check_parquet_folder(folder: Path) -> None:
    """Checks that a folder can be written.

    Raises:
        InputError: pyarrow is not installed, or the folder exists and is not empty.
    """
    require("parquet", "--to parquet")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists: name an empty or a new folder for the Parquet files, or remove it")


def write_parquet(
    manifest: Manifest, folder: Path, *, file_bytes: int = FILE_BYTES, group_bytes: int = GROUP_BYTES
) -> int:
    """Writes every image as it is, with its path, class, split, flags, group, box and fingerprint.

    The order of images and classes is kept, and so the hash of each split. The folder appears when it is complete.

    Args:
        manifest: The data set; drawn images are stored as PNG.
        folder: A new folder, for ``00000.parquet`` and so on.
        file_bytes: Bytes of images after which the next file begins.
        group_bytes: Bytes of images after which the next row group begins.

    Returns:
        The number of files.

    Raises:
        InputError: An image is missing, empty or cannot be fetched; the message names it.
        OSError: The folder cannot be written, or the disk is full.
    """
    check_parquet_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=PARTIAL, dir=folder.parent))
    try:
        groups, number = _row_groups(manifest, group_bytes), 0
        with locked(staging / LOCK, f"another process is writing to {staging}"):
            for first in groups:
                _write_file(staging / f"{number:05}.parquet", manifest, chain([first], groups), file_bytes)
                number += 1
            staging.chmod(0o777 & ~_umask())
            (staging / LOCK).unlink()
            os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return number


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed conversions to the same folder have left; one that is running holds its lock."""
    for staging in folder.parent.glob(f".{glob.escape(folder.name)}.*{PARTIAL}"):
        with suppress(InputError, OSError), locked(staging / LOCK, "it is being written"):
            shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _row_groups(manifest: Manifest, group_bytes: int) -> Iterator[list[tuple[int, bytes]]]:
    """Yields lists of (row, encoded image), of about ``group_bytes`` each."""
    group: list[tuple[int, bytes]] = []
    size = 0
    with (
        ThreadPoolExecutor(READERS) as pool,
        progress_bar(log_lines=True, total=len(manifest), desc="converting", unit="image") as bar,
    ):
        for start in range(0, len(manifest), PART):
            rows = range(start, min(start + PART, len(manifest)))
            for row, content in zip(rows, pool.map(lambda row: _content(manifest, row), rows), strict=True):
                group.append((row, content))
                size += len(content)
                bar.update()
                if size >= group_bytes:
                    yield group
                    group, size = [], 0
    if group:
        yield group


def _content(manifest: Manifest, row: int) -> bytes:
    if manifest.render is not None:
        buffer = io.BytesIO()
        manifest.render(int(manifest.ids[row])).save(buffer, "PNG")
        return buffer.getvalue()
    location = manifest.location(row)
    try:
        content = read_bytes(location)
    except FileNotFoundError:
        raise InputError(f"image {name_of(location)} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read image {name_of(location)}: {error.strerror}") from None
    if not content:
        raise InputError(f"image {name_of(location)} is an empty file: replace it or remove it from the data")
    return content


def _write_file(path: Path, manifest: Manifest, groups: Iterator[list[tuple[int, bytes]]], file_bytes: int) -> None:
    """Writes row groups until the file has ``file_bytes`` of images."""
    import pyarrow
    import pyarrow.parquet

    schema = _schema(manifest)
    columns = [name for name in schema.names if name != "image"]
    # Images do not compress, and without statistics none is copied into the footer.
    options: Any = {"compression": "none", "use_dictionary": columns, "write_statistics": columns}
    size = 0
    with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema, **options) as writer:
        for group in groups:
            table = pyarrow.table(_columns(manifest, group), schema=schema)
            writer.write_table(table, row_group_size=len(group))
            size += sum(len(content) for _, content in group)
            if size >= file_bytes:
                break


def _columns(manifest: Manifest, group: Sequence[tuple[int, bytes]]) -> dict[str, Any]:
    rows, categories = np.array([row for row, _ in group]), manifest.categories
    columns: dict[str, Any] = {
        "image": [{"bytes": content, "path": manifest.paths[row]} for row, content in group],
        "label": manifest.labels[rows],
        "split": manifest.split[rows].tolist(),
        "is_query": manifest.is_query[rows],
        "is_gallery": manifest.is_gallery[rows],
        "category": [categories.get(image) for image in manifest.ids[rows].tolist()],
        FINGERPRINT: [content_fingerprint(content) for _, content in group],
    }
    if manifest.boxes is not None:
        columns |= dict(zip(BOX_COLUMNS, manifest.boxes[rows].T, strict=True))
    return {name: columns[name] for name in _schema(manifest).names}


def _schema(manifest: Manifest) -> Any:
    """The columns, with the description of the features that Hugging Face ``datasets`` reads."""
    import pyarrow

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"image": image, "label": pyarrow.int64()}
    if any(manifest.split):
        columns["split"] = pyarrow.string()
    columns |= {"is_query": pyarrow.bool_(), "is_gallery": pyarrow.bool_()}
    if manifest.groups is not None:
        columns["category"] = pyarrow.string()
    if manifest.boxes is not None:
        columns |= dict.fromkeys(BOX_COLUMNS, pyarrow.float64())
    columns[FINGERPRINT] = pyarrow.string()
    names = {"string": "string", "bool": "bool", "int64": "int64", "double": "float64"}
    features: dict[str, Any] = {
        name: {"dtype": names[str(kind)], "_type": "Value"} for name, kind in columns.items() if name != "image"
    }
    features |= {"image": {"_type": "Image"}, "label": {"names": manifest.class_names, "_type": "ClassLabel"}}
    return pyarrow.schema(columns).with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
