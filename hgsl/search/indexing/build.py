"""Construction and update of an index: only images that are new or changed are embedded."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgsl.common.device import pick_device
from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import FLAT, check_factory
from hgsl.common.paths import check_path
from hgsl.evaluation.knn.vectors import Floats
from hgsl.models import load_embedder, save_embedder
from hgsl.search.checks import check_counts, check_has_model, check_index_folder
from hgsl.search.encoder import Encoder, fingerprint_of
from hgsl.search.indexing.embedding import embed_images
from hgsl.search.indexing.image_folder import FolderListing, list_images
from hgsl.search.indexing.labels import label_source, read_labels
from hgsl.search.indexing.no_match import calibrated, threshold_source
from hgsl.search.indexing.report import IndexReport, make_report
from hgsl.search.storage import faiss_file
from hgsl.search.storage.layout import MODEL, PENDING, ImageFile, ImageTable, has_index, has_model, locked
from hgsl.search.storage.pending import PendingEmbeddings, VectorRow
from hgsl.search.storage.reader import Snapshot, is_intact, read_snapshot
from hgsl.search.storage.record import FormatError, read_record
from hgsl.search.storage.writer import snapshot_bytes, write_snapshot
from hgsl.version import __version__


def build_index(
    folder: str | Path,
    images: str | Path,
    *,
    checkpoint: str | Path | None = None,
    labels: str | Path | None = None,
    faiss: str | None = None,
    no_match: float | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
) -> IndexReport:
    """Indexes a folder of images, or updates its index: new and changed images are embedded, deleted ones dropped.

    An image is unchanged while its path, size and modification time are. An interrupted call loses a few seconds of
    work. Readers open the previous snapshot until the new one is complete. Images that could not be read are tried
    again by every call.

    Args:
        folder: The index; created if missing.
        images: The image folder, searched recursively.
        checkpoint: The folder of a trained model, or a model on the Hub. The index stores a copy, so that later calls
            need none; another model is refused, since vectors of two models cannot be compared.
        labels: A table with columns ``path`` and ``label``, or "folders" for the names of the class folders. None keeps
            the source recorded in the index; "folders" for a new index.
        faiss: "Flat" (exact) or a FAISS factory string such as "IVF256,Flat nprobe=16". None keeps the recorded
            one; "Flat" for a new index.
        no_match: The similarity below which a search reports no match. None uses the one calibrated by an evaluation
            of the checkpoint, else keeps the recorded one.
        device: Device of the model.
        batch_size: Images per forward pass.
        workers: Processes that load images; 0 loads in this one.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Raises:
        FileNotFoundError: The image folder, the checkpoint or the table does not exist.
        InputError: The model differs from that of the index, no image is readable, or an argument is invalid.
        OSError: The index folder cannot be written, or the disk is full.
    """
    for name, path in {"folder": folder, "images": images, "checkpoint": checkpoint, "labels": labels}.items():
        if path is not None or name in ("folder", "images"):
            check_path(name, path)
    folder, root = Path(folder).expanduser(), Path(images).expanduser().absolute()
    check_counts(batch_size, workers)
    target = pick_device(device)
    listing = list_images(root)
    check_index_folder(folder)
    with locked(folder):
        notes: list[str] = []
        previous_record, previous = _read_previous(folder, notes)
        encoder = _prepare_encoder(folder, checkpoint, target, previous_record)
        record = _settings(root, faiss, labels, checkpoint, encoder, previous_record)
        threshold = threshold_source(no_match, checkpoint, previous_record, notes)
        label_of = read_labels(record["labels"], root, [image.path for image in listing.images], notes)
        pending = PendingEmbeddings(folder / PENDING, encoder.fingerprint)
        resumed = sum(image in pending.vectors for image in listing.images)
        missing = _missing_images(folder, listing, previous, pending, record)
        broken = embed_images(missing, root, encoder, pending, batch_size, workers, progress)
        vectors = _known_vectors(previous) | pending.vectors
        table = _make_table(root, listing, vectors, label_of, broken)
        record |= {"images": len(table.images)}
        if _differs(folder, previous, table, record, threshold):
            calibrate = partial(calibrated, threshold, table, notes=notes)
            record = write_snapshot(folder, table, record, _rows_of(table, vectors), calibrate)
        else:
            record = read_record(folder)
        pending.remove()
    return make_report(None if previous is None else previous.table, listing, table, resumed, record, notes)


def _settings(
    root: Path,
    faiss: str | None,
    labels: str | Path | None,
    checkpoint: str | Path | None,
    encoder: Encoder,
    previous: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings in ``index.json``: the given ones, else those of the previous ``index.json``, else the defaults."""
    recorded = previous.get("model", {}).get("checkpoint")
    return {
        "root": str(root),
        "faiss": faiss or previous.get("faiss", FLAT),
        "labels": label_source(labels, previous),
        "model": {**encoder.description(), "checkpoint": recorded if checkpoint is None else str(checkpoint)},
        "dimensions": encoder.dimensions,
        "hgsl": __version__,
    }


def _missing_images(
    folder: Path,
    listing: FolderListing,
    previous: Snapshot | None,
    pending: PendingEmbeddings,
    record: Mapping[str, Any],
) -> list[ImageFile]:
    """The images to embed.

    Raises:
        InputError: The FAISS index cannot be built for so many images.
        OSError: The disk is full.
    """
    known = _known_vectors(previous)
    missing = [image for image in listing.images if image not in known and image not in pending.vectors]
    factory, width, count = record["faiss"], record["dimensions"], len(listing.images)
    check_factory(factory, faiss_file.METRIC, width, count)
    check_writable(folder, snapshot_bytes(count, len(missing), width, factory))
    return missing


def _read_previous(folder: Path, notes: list[str]) -> tuple[dict[str, Any], Snapshot | None]:
    """The settings and the snapshot of the existing index; a damaged index is reported in ``notes`` and rebuilt."""
    if not has_index(folder):
        return {}, None
    record: dict[str, Any] = {}
    try:
        record = read_record(folder)
        snapshot = read_snapshot(folder)
    except FormatError:
        raise
    except InputError as error:
        if isinstance(error.__cause__, OSError):  # such as a permission or a network share: not damaged
            raise
        settings = "with its settings" if record else "with the labels, FAISS factory and threshold of a new index"
        notes.append(f"the index was damaged and has been rebuilt {settings} ({error})")
        return record, None
    return record, snapshot


def _prepare_encoder(
    folder: Path, checkpoint: str | Path | None, device: torch.device, record: Mapping[str, Any]
) -> Encoder:
    """Loads the model of the index, and stores a copy in the index folder.

    Raises:
        InputError: The index has no model, or one that ``record`` does not name.
    """
    copy = folder / MODEL
    expected = record["model"].get("fingerprint") if record else None
    if checkpoint is None:
        check_has_model(folder)
        try:
            encoder = Encoder(load_embedder(copy), device)
        except (InputError, FileNotFoundError) as error:
            raise InputError(f"{error}: replace the copy of the model with --checkpoint RUN") from error
        if record and encoder.fingerprint != expected:
            raise InputError(f"{copy} is not the model that embedded the images: give that model with --checkpoint RUN")
        return encoder
    encoder = Encoder(load_embedder(checkpoint), device)
    if record and encoder.fingerprint != expected:
        raise InputError(
            f"{folder} was made with another model than {checkpoint} ({expected}, not {encoder.fingerprint}): their "
            "vectors cannot be compared, so name another folder for the index"
        )
    if not (has_model(folder) and _is_copy(copy, encoder.fingerprint)):
        save_embedder(encoder.model, copy)
    return encoder


def _is_copy(folder: Path, fingerprint: str) -> bool:
    """Whether the folder holds an undamaged model of this fingerprint."""
    try:
        return fingerprint_of(load_embedder(folder)) == fingerprint
    except (InputError, OSError):
        return False


def _known_vectors(previous: Snapshot | None) -> dict[ImageFile, VectorRow]:
    if previous is None:
        return {}
    matrix = np.asarray(previous.vectors.data)
    return {image: (matrix, row) for row, image in enumerate(previous.table.images)}


def _make_table(
    root: Path,
    listing: FolderListing,
    vectors: Mapping[ImageFile, VectorRow],
    label_of: Mapping[str, str],
    broken: dict[ImageFile, str],
) -> ImageTable:
    """The image table of the next snapshot.

    Raises:
        InputError: No image could be embedded.
    """
    images = [image for image in listing.images if image in vectors]
    if not images:
        first, reason = next(iter(broken.items()))
        raise InputError(
            f"none of the {len(listing.images)} images in {root} can be read, the first is {first.path}: {reason}"
        )
    return ImageTable(images, [label_of.get(image.path) for image in images], broken)


def _rows_of(table: ImageTable, vectors: Mapping[ImageFile, VectorRow]) -> Callable[[slice], Floats]:
    """A function: slice of the table -> the vectors of its images, (B, D)."""

    def rows(part: slice) -> Floats:
        return np.stack([matrix[row] for matrix, row in (vectors[image] for image in table.images[part])])

    return rows


def _differs(
    folder: Path,
    previous: Snapshot | None,
    table: ImageTable,
    record: Mapping[str, Any],
    threshold: Mapping[str, Any] | None,
) -> bool:
    """Whether a new snapshot must be written."""
    if previous is None or not is_intact(folder, previous):
        return True
    recorded = previous.record.get("no_match") or {}
    if any(recorded.get(key) != value for key, value in (threshold or {}).items()):
        return True
    return previous.table != table or any(previous.record.get(key) != value for key, value in record.items())
