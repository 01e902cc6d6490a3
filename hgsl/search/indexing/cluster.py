"""Embedding of the images of an index on a cluster: into parts, from which the index is filled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hgsl.common.files import locked, remove_partial
from hgsl.evaluation.parts.batches import read_batches
from hgsl.evaluation.parts.cluster import RayCluster, embed_parts
from hgsl.evaluation.parts.part import (
    LOCK,
    Columns,
    Part,
    PartContent,
    divide,
    list_parts,
    read_columns,
    read_record,
)
from hgsl.models import Embedder
from hgsl.search.encoder import Encoder
from hgsl.search.indexing.embedding import TransformedImages, embed_batch
from hgsl.search.indexing.stored_embeddings import FILE_COLUMNS, files_of
from hgsl.search.stores.protocol import ImageFile


def embed_on_cluster(
    images: Sequence[ImageFile],
    root: Path | str,
    encoder: Encoder,
    folder: Path,
    cluster: RayCluster,
    *,
    batch_size: int,
    workers: int,
    progress: bool,
) -> dict[ImageFile, str]:
    """Embeds images with Ray, except those that a part in ``folder`` has a vector of.

    Args:
        images: The images, in the order of their batches.
        root: Of their paths.
        encoder: The model, on the CPU.
        folder: Of the parts.
        cluster: The cluster.
        batch_size: Images per forward pass.
        workers: Threads that read images in each process of the cluster.
        progress: Whether to show a progress bar.

    Returns:
        Image file -> why it could not be embedded.
    """
    with locked(folder / LOCK, f"another process is writing to {folder}: wait until it has finished"):
        remove_partial(folder)
        parts = missing_parts(images, folder, encoder.fingerprint, batch_size)
        embedder = ImageFileEmbedder(encoder.model, root, batch_size, workers)
        if parts:
            record = {"model": encoder.fingerprint, "root": str(root)}
            embed_parts(parts, embedder, folder, record, cluster, progress=progress)
    broken: dict[ImageFile, str] = {}
    for part in map(read_record, list_parts(folder)):
        if part["model"] == encoder.fingerprint:
            broken |= {ImageFile(path, size, mtime): reason for path, size, mtime, reason in part["broken"]}
    return broken


def missing_parts(images: Sequence[ImageFile], folder: Path, model: str, batch_size: int) -> list[Part]:
    """The parts to be computed, so that each readable image has a vector.

    Parts that exist are skipped, and so are images in parts of another list. Images that could not be read are tried
    again.

    Raises:
        InputError: A part in the folder is damaged.
    """
    parts = divide(_columns(images), batch_size, model) if images else []
    named = {part.path(folder) for part in parts}
    embedded: set[ImageFile] = set()  # in parts of other lists
    for path in list_parts(folder):
        if path not in named:
            record, columns = read_columns(path, FILE_COLUMNS)
            if record["model"] == model:
                embedded |= set(files_of(columns))
    missing: list[Part] = []
    rest: list[ImageFile] = []
    for part in parts:
        path = part.path(folder)
        if path.exists():
            rest += [ImageFile(*file) for *file, _ in read_record(path)["broken"]]
        elif embedded.isdisjoint(files_of(part.columns)):
            missing.append(part)
        else:
            rest += files_of(part.columns)
    rest = [file for file in rest if file not in embedded]
    return missing + (divide(_columns(rest), batch_size, model) if rest else [])


def _columns(images: Sequence[ImageFile]) -> Columns:
    return {name: [getattr(image, name) for image in images] for name in FILE_COLUMNS}


class ImageFileEmbedder:
    """Embeds image files in a process of a cluster; see :class:`hgsl.evaluation.parts.cluster.PartEmbedder`.

    Args:
        model: The model.
        root: Of the paths.
        batch_size: Images per forward pass.
        workers: Threads that read images.
    """

    def __init__(self, model: Embedder, root: Path | str, batch_size: int, workers: int) -> None:
        self.model, self.root, self.batch_size, self.workers = model, root, batch_size, max(1, workers)

    def open(self, device: torch.device) -> None:
        """Moves the model to the device."""
        self.encoder = Encoder(self.model, device)

    def __call__(self, columns: Columns) -> PartContent:
        """Embeds the images of a part in batches."""
        files = files_of(columns)
        dataset = TransformedImages(self.root, files, self.encoder.transform)
        embedded: list[ImageFile] = []
        matrices = [np.empty((0, self.encoder.dimensions), np.float32)]
        broken: dict[ImageFile, str] = {}
        start = 0
        for items in read_batches(dataset.__getitem__, len(files), self.batch_size, self.workers):
            batch = files[start : start + len(items)]
            start += len(items)
            result = embed_batch(batch, items, self.encoder)
            embedded += [batch[position] for position in result.positions]
            matrices.append(result.vectors)
            broken |= result.broken
        vectors = np.concatenate(matrices)
        return PartContent(_columns(embedded), vectors, [[*file, reason] for file, reason in broken.items()])
