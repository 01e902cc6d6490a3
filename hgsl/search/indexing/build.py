"""Construction and update of an index: only images that are new or changed are embedded."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from hgsl.common.device import pick_device
from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import FLAT
from hgsl.common.locations import local_or_uri
from hgsl.common.paths import check_path
from hgsl.evaluation.parts.cluster import RayCluster
from hgsl.evaluation.parts.part import remove_parts
from hgsl.search.checks import check_counts, check_engine, check_sources, given_index_type
from hgsl.search.encoder import Encoder
from hgsl.search.indexing.changes import Changes, changes_between
from hgsl.search.indexing.image_folder import FolderListing, list_images
from hgsl.search.indexing.labels import label_source, read_attributes
from hgsl.search.indexing.missing import EmbedOptions, embed_missing
from hgsl.search.indexing.model import prepare_encoder
from hgsl.search.indexing.no_match import calibrated, threshold_source
from hgsl.search.indexing.overlap import measure_overlap
from hgsl.search.indexing.report import IndexReport, make_report
from hgsl.search.indexing.stored_embeddings import StoredEmbeddings, open_stored
from hgsl.search.stores.address import open_store
from hgsl.search.stores.protocol import ImageFile, ImageRow, State, Store, Update
from hgsl.version import __version__

DEFAULT_TYPES = {"folder": FLAT, "milvus": "FLAT"}  # store -> index type of a new index, which is exact
COPIED = 4096  # vectors of relabeled images that are copied at a time


def build_index(
    folder: str | Path,
    images: str | Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    labels: str | Path | None = None,
    faiss: str | None = None,
    milvus_index: str | None = None,
    retrain: bool = False,
    no_match: float | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
    from_embeddings: str | Path | None = None,
    engine: str = "local",
    address: str | None = None,
    parts: str | Path | None = None,
    progress: bool = True,
) -> IndexReport:
    """Indexes a folder of images, or updates its index: new and changed images are embedded, deleted ones dropped.

    An image is unchanged while its path, size and modification time are. An interrupted call loses a few seconds of
    work. Readers open the previous state until the new one is complete. Images that could not be read are tried again
    by every call.

    Args:
        folder: The index: a folder, created if missing; or the address of Milvus: a local file that ends with ".db", or
            "http://HOST:19530", each with an optional "#COLLECTION".
        images: The image folder, searched recursively. None: the images of ``from_embeddings``.
        checkpoint: The folder of a trained model, or a model on the Hub. A folder stores a copy and Milvus the name, so
            that later calls need none; another model is refused, since vectors of two models cannot be compared.
        labels: A table with the columns ``path`` and ``label``, whose further columns can be searched by, or "folders"
            for the names of the class folders. None keeps the source recorded in the index; "folders" for a new index.
        faiss: "Flat" (exact) or a FAISS factory string such as "IVF256,Flat nprobe=16". None keeps the recorded
            one; "Flat" for a new index.
        milvus_index: "FLAT" (exact) or a Milvus index with parameters, such as "HNSW M=16 efConstruction=200 ef=64".
            None keeps the recorded one; "FLAT" for a new index.
        retrain: Whether an approximate index is trained anew on its present images.
        no_match: The similarity below which a search reports no match. None uses the one calibrated by an evaluation
            of the checkpoint, else keeps the recorded one.
        device: Device of the model.
        batch_size: Images per forward pass.
        workers: Processes that load images; 0 loads in this one. With Ray, threads of each process that embeds.
        from_embeddings: A folder of parts, which ``engine="ray"`` and an evaluation with it write: images that are in
            them, by path, size and modification time, are not embedded again.
        engine: "local" embeds in this process; "ray" on a cluster of Ray, or in processes on this machine.
        address: Of the cluster; see :func:`hgsl.evaluation.parts.ray_session.ray_session`.
        parts: Folder of the parts that Ray writes, on every machine under this path; they are kept. None is a folder
            beside the index, which is removed when the index is complete.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Raises:
        FileNotFoundError: The image folder, the checkpoint or the table does not exist.
        InputError: The model differs from that of the index, no image is readable, or an argument is invalid.
        OSError: The index cannot be written, or the disk is full.
    """
    paths = {"folder": folder, "images": images, "checkpoint": checkpoint, "labels": labels, "parts": parts}
    for name, path in {**paths, "from_embeddings": from_embeddings}.items():
        if path is not None or name == "folder":
            check_path(name, path)
    check_counts(batch_size, workers)
    check_sources(images, from_embeddings)
    parts_folder = check_engine(engine, str(folder), parts, address, from_embeddings)
    options = EmbedOptions(batch_size, workers, progress, RayCluster(address, device), parts_folder)
    target = pick_device(device if parts_folder is None else "cpu")
    listed = None if images is None else _list_images(images)
    with closing(open_store(folder)) as store, store.update() as update:
        previous = update.previous or State({})
        encoder = prepare_encoder(store, checkpoint, target, previous.record)
        stored = None if from_embeddings is None else open_stored(Path(from_embeddings).expanduser(), encoder)
        root, listing = _listing_of(stored, update.notes) if listed is None else listed
        index_type = given_index_type(store.kind, store.address, faiss, milvus_index)
        settings = _settings(store.kind, root, index_type, labels, checkpoint, encoder, previous.record)
        if retrain:
            _check_retrain(store, settings["index_type"])
        threshold = threshold_source(no_match, checkpoint, previous.record, update.notes)
        attributes = read_attributes(settings["labels"], root, [image.path for image in listing.images], update.notes)
        wanted = [attributes.row(image) for image in listing.images]
        settings["columns"] = attributes.columns
        staged = update.begin(settings)
        changes = changes_between(previous.rows | staged, wanted)
        update.reserve(len(changes.missing) + len(changes.relabeled), len(wanted))
        new = [row.file for row in changes_between(previous.rows, wanted).missing]
        broken = embed_missing(changes.missing, new, root, encoder, update, stored, options)
        _check_any(root, listing, broken)
        _apply(update, changes)
        is_changed = _is_changed(previous, staged, changes, broken, settings, threshold)
        if is_changed or retrain or update.needs_upkeep():
            snapshot = update.prepare(broken, retrain)
            overlap = measure_overlap(snapshot, {} if retrain else previous.record, update.notes)
            entry = calibrated(threshold, snapshot, update.notes)
            record = update.publish({"no_match": entry, "overlap": overlap})
        else:
            record = previous.record
        if parts_folder is not None and parts is None:
            remove_parts(parts_folder)
    return make_report(previous, listing, staged, broken, record, update.notes)


def _list_images(images: str | Path) -> tuple[Path | str, FolderListing]:
    """The absolute image folder, or its address, and its contents."""
    location = local_or_uri(str(images))
    root = location.absolute() if isinstance(location, Path) else location
    return root, list_images(root)


def _listing_of(stored: StoredEmbeddings | None, notes: list[str]) -> tuple[Path | str, FolderListing]:
    """The same from the embeddings alone."""
    assert stored is not None  # see check_sources
    return local_or_uri(stored.root()), stored.listing(notes)


def _settings(
    kind: str,
    root: Path | str,
    index_type: str | None,
    labels: str | Path | None,
    checkpoint: str | Path | None,
    encoder: Encoder,
    previous: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings of the index: the given ones, else those of its previous state, else the defaults."""
    recorded = previous.get("model", {}).get("checkpoint")
    if checkpoint is not None:
        folder = Path(checkpoint).expanduser()
        # A folder index has a copy of the model; Milvus has its path alone, for commands that run elsewhere.
        recorded = str(folder.absolute() if kind == "milvus" and folder.is_dir() else checkpoint)
    return {
        "root": str(root),
        "index_type": index_type or previous.get("index_type", DEFAULT_TYPES[kind]),
        "labels": label_source(labels, previous),
        "model": {**encoder.description(), "checkpoint": recorded},
        "dimensions": encoder.dimensions,
        "hgsl": __version__,
    }


def _check_retrain(store: Store, index_type: str) -> None:
    """Refuses to train an exact index anew, which has nothing to train."""
    if index_type == DEFAULT_TYPES[store.kind]:
        raise InputError(
            f"--retrain trains an approximate index anew, and {store.address} is exact ({index_type}): leave it out"
        )


def _check_any(root: Path | str, listing: FolderListing, broken: Mapping[ImageFile, str]) -> None:
    """Checks that at least one image is in the index."""
    if len(broken) == len(listing.images):
        first, reason = next(iter(broken.items()))
        raise InputError(f"none of the {len(broken)} images in {root} can be read, the first is {first.path}: {reason}")


def _apply(update: Update, changes: Changes) -> None:
    """Copies the vectors of images with a new label, and removes what is gone."""
    relabeled = list(changes.relabeled.items())
    for start in range(0, len(relabeled), COPIED):
        part = relabeled[start : start + COPIED]
        update.upsert([row for _, row in part], update.vectors([number for number, _ in part]))
    update.flush()
    update.delete(changes.deleted)


def _is_changed(
    previous: State,
    staged: Mapping[int, ImageRow],
    changes: Changes,
    broken: Mapping[ImageFile, str],
    settings: Mapping[str, Any],
    threshold: Mapping[str, Any] | None,
) -> bool:
    """Whether a new state must be written."""
    embedded = len(changes.missing) > len(broken)
    if staged or embedded or changes.relabeled or changes.deleted or broken != previous.broken:
        return True
    recorded = previous.record.get("no_match") or {}
    if any(recorded.get(key) != value for key, value in (threshold or {}).items()):
        return True
    return any(previous.record.get(key) != value for key, value in settings.items())
