"""Makes an index of a folder of photos, or brings it up to date: only what is new or changed is embedded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hgsl.common.device import pick_device
from hgsl.common.errors import InputError
from hgsl.evaluation.knn.vectors import Floats
from hgsl.models import load_embedder, save_embedder
from hgsl.search import neighbors as neighbors
from hgsl.search import settings, store
from hgsl.search.embedding import embed_photos
from hgsl.search.encoder import Encoder
from hgsl.search.photos import Listing, Photo, list_photos
from hgsl.search.unfinished import Source, Unfinished
from hgsl.version import __version__


@dataclass(frozen=True)
class IndexReport:
    """What :func:`build_index` did.

    Attributes:
        photos: How many are in the index now.
        new, changed, unchanged, dropped: Photos, against the state before; broken ones among them.
        resumed: How many of the new and changed ones a run that was cut off had embedded already.
        broken: Path -> why it could not be read; these are not in the index.
        ignored: How many files that are no photos there are, by suffix.
        record: What ``index.json`` says now.
        notes: What the user must know.
    """

    photos: int
    new: int
    changed: int
    unchanged: int
    dropped: int
    resumed: int
    broken: Mapping[str, str]
    ignored: Mapping[str, int]
    record: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


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
    """Indexes a folder of photos; a second call embeds what is new or changed and drops what is gone.

    A photo counts as unchanged while its path, size and time of modification are. A call that was cut off, however,
    goes on where it was, but for the last seconds. The index stays as it was until the new state is complete.

    Args:
        folder: Of the index; made if missing.
        images: The folder of photos, with any folders below it.
        checkpoint: The folder of a trained model. The index keeps a copy, so that later calls need none; another model
            than the first is refused, since vectors of two models cannot be compared.
        labels: A table with columns ``path`` and ``label``, or "folders": the name of the class folder. None for what
            it was before, at first folders.
        faiss: "Flat" (exact) or a FAISS factory string, such as "IVF256,Flat nprobe=16". None for what it was before,
            at first Flat.
        no_match: The similarity below which a search says that it found nothing. None for what evaluation has
            calibrated for the checkpoint, if it has, else what it was before.
        device: Where the model computes.
        batch_size: Photos a forward pass.
        workers: Processes that read photos; 0 reads them in this one.
        progress: Whether to show a bar on stderr, if that is a terminal.

    Raises:
        FileNotFoundError: The photos, the checkpoint or the table are not there.
        InputError: Another model, no photo that can be read, or anything else that is wrong with the arguments.
    """
    folder, root = Path(folder), Path(images).expanduser().absolute()
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size}")
    if workers < 0:
        raise InputError(f"workers must be at least 0, found {workers}")
    listing = list_photos(root)
    _check_folder(folder)
    with store.locked(folder):
        before = store.read(folder) if (folder / store.RECORD).is_file() else None
        old = before.record if before else {}
        encoder = _encoder(folder, checkpoint, device)
        if before and encoder.fingerprint != old["model"].get("fingerprint"):
            raise InputError(
                f"{folder / store.MODEL} is another model than the one that embedded the photos: put it back"
            )
        notes: list[str] = []
        record: dict[str, Any] = {
            "root": str(root),
            "faiss": faiss or old.get("faiss", neighbors.FLAT),
            "labels": settings.label_source(labels, old),
            "no_match": settings.no_match(no_match, checkpoint, notes) or old.get("no_match"),
            "model": settings.model_record(encoder, checkpoint or old.get("model", {}).get("checkpoint")),
            "hgsl": __version__,
        }
        label_of = settings.labels(record["labels"], root, listing, notes)
        known, broken = _known(before)
        unfinished = Unfinished(folder / store.UNFINISHED, encoder.fingerprint)
        wanted = [photo for photo in listing.photos if photo not in known and photo not in broken]
        todo = [photo for photo in wanted if photo not in unfinished.vectors and photo not in unfinished.broken]
        embed_photos(todo, root, encoder, unfinished, batch_size, workers, progress)
        known |= unfinished.vectors
        broken |= unfinished.broken
        table = store.Table(
            photos=(kept := [photo for photo in listing.photos if photo in known]),
            labels=[label_of.get(photo.path) for photo in kept],
            broken={photo: broken[photo] for photo in listing.photos if photo in broken},
        )
        if not kept:
            raise InputError(
                f"none of the {len(listing.photos)} photos in {root} can be read, the first: {_first(table)}"
            )
        width = known[kept[0]][0].shape[1]
        record |= {"photos": len(kept), "dimensions": width}
        if before is None or before.table != table or any(old.get(key) != value for key, value in record.items()):
            store.write(folder, table, width, _rows_of(kept, known), record)
        unfinished.remove()
        record = store.read_record(folder)
    return _report(before, listing, table, len(wanted) - len(todo), record, notes)


def _check_folder(folder: Path) -> None:
    """Refuses a folder that holds something else."""
    ours = {store.LOCK, store.MODEL, store.UNFINISHED}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: an index is a folder")
    if folder.is_dir() and not (folder / store.RECORD).is_file():
        others = [path.name for path in folder.iterdir() if path.name not in ours and not path.name.startswith(".")]
        started = (folder / store.MODEL).is_dir()
        if others and not started:
            raise InputError(f"{folder} holds other files ({others[0]}): name an empty or a new folder for the index")


def _encoder(folder: Path, checkpoint: str | Path | None, device: str) -> Encoder:
    place, own = pick_device(device), folder / store.MODEL
    if (own / store.MODEL_COMPLETE).is_file():
        encoder = Encoder(load_embedder(own), place)
        if checkpoint is not None:
            other = Encoder(load_embedder(checkpoint), place)
            if other.fingerprint != encoder.fingerprint:
                raise InputError(
                    f"{folder} was made with another model than {checkpoint} ({encoder.fingerprint}, not "
                    f"{other.fingerprint}): their vectors cannot be compared, so name another folder for the index"
                )
        return encoder
    if checkpoint is None:
        raise InputError(f"{folder} is a new index: give the trained model with --checkpoint RUN")
    encoder = Encoder(load_embedder(checkpoint), place)
    save_embedder(encoder.model, own)
    return encoder


def _known(before: store.State | None) -> tuple[dict[Photo, Source], dict[Photo, str]]:
    """Where the vectors of the state before are, and what was broken in it."""
    if before is None:
        return {}, {}
    matrix = np.asarray(before.vectors.data)
    return {photo: (matrix, row) for row, photo in enumerate(before.table.photos)}, dict(before.table.broken)


def _rows_of(photos: list[Photo], known: Mapping[Photo, Source]) -> Callable[[slice], Floats]:
    def rows(part: slice) -> Floats:
        return np.stack([known[photo][0][known[photo][1]] for photo in photos[part]])

    return rows


def _first(table: store.Table) -> str:
    photo, reason = next(iter(table.broken.items()))
    return f"{photo.path}: {reason}"


def _report(
    before: store.State | None,
    listing: Listing,
    table: store.Table,
    resumed: int,
    record: dict[str, Any],
    notes: list[str],
) -> IndexReport:
    old = set() if before is None else {*before.table.photos, *before.table.broken}
    old_paths, now_paths = {photo.path for photo in old}, {photo.path for photo in listing.photos}
    unchanged = sum(photo in old for photo in listing.photos)
    new = len(now_paths - old_paths)
    broken = {photo.path: reason for photo, reason in table.broken.items()} | dict(listing.unusable)
    return IndexReport(
        photos=len(table.photos),
        new=new,
        changed=len(listing.photos) - unchanged - new,
        unchanged=unchanged,
        dropped=len(old_paths - now_paths),
        resumed=resumed,
        broken=broken,
        ignored=listing.ignored,
        record=record,
        notes=notes,
    )
