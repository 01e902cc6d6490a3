"""Embeddings of a data set computed on a cluster: the vectors and files of ``embed``, continued in the same way."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from hgsl.common import ranks
from hgsl.common.device import dtype_name
from hgsl.common.errors import InputError
from hgsl.common.files import locked, remove_partial
from hgsl.common.fingerprint import fingerprint
from hgsl.evaluation.extract import Embeddings, forward
from hgsl.evaluation.parts.batches import read_batches
from hgsl.evaluation.parts.cluster import RayCluster, embed_parts
from hgsl.evaluation.parts.part import LOCK, Columns, PartContent, divide, read_part
from hgsl.evaluation.store import EmbeddingStore


def embed_on_cluster(
    model: nn.Module,
    dataset: Dataset[Any],
    cluster: RayCluster,
    store: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    identity: str = "",
    files: Columns | None = None,
    record: Mapping[str, Any] | None = None,
) -> Embeddings:
    """Embeds a data set as :func:`hgsl.evaluation.extract.embed` does, in the same batches, on a cluster of Ray.

    Parts are written to ``store``, which all machines share, and then assembled to the arrays of ``embed``; either
    function continues what the other has begun.

    Args:
        model, dataset, batch_size, dtype, progress, identity: See ``embed``. Model and data set are pickled.
        cluster: The cluster.
        store: Folder of parts and arrays.
        num_workers: Threads that read images in each process.
        files: Further columns of the parts, such as path, size and modification time of each image.
        record: Entries of the record of the parts.

    Raises:
        InputError: As in ``embed`` and ``embed_parts``, or under torchrun.
    """
    if ranks.world_size() > 1:
        raise InputError("--engine ray runs processes of its own: start the command without torchrun")
    count, folder = len(dataset), Path(store)  # type: ignore[arg-type]
    if not count:
        raise InputError("the data set has no images: there is nothing to embed")
    starts = range(0, count, batch_size)
    weights = f"{fingerprint(model, f'{batch_size} {dtype_name(dtype)}')[:16]} {identity}"
    sink = EmbeddingStore(folder, count, len(starts), weights)
    pending = set(sink.pending())
    if not pending:
        sink.open(0)  # complete, or not yet so because a process was killed after its last batch
    else:
        with locked(folder / LOCK, f"another process is writing to {folder}: wait until it has finished"):
            remove_partial(folder)
            parts = divide({"row": list(range(count)), **(files or {})}, batch_size, weights)
            missing = [part for part in parts if not part.path(folder).exists()]
            if missing:
                embedder = DatasetEmbedder(copy.deepcopy(model).cpu(), dataset, batch_size, num_workers, dtype)
                embed_parts(missing, embedder, folder, record or {}, cluster, progress=progress)
            for part in parts:
                _assemble(part.path(folder), sink, pending, batch_size)
    return Embeddings(*sink.finish())


def _assemble(path: Path, sink: EmbeddingStore, pending: set[int], batch_size: int) -> None:
    """Writes the batches of a part that are pending."""
    _, columns, vectors = read_part(path, ("row", "label", "id"))
    rows = columns["row"]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        number = batch[0] // batch_size
        if number in pending:
            if not hasattr(sink, "arrays"):
                sink.open(vectors.shape[1])
            part = slice(start, start + len(batch))
            arrays = (vectors[part].copy(), np.array(columns["label"][part]), np.array(columns["id"][part]))
            sink.write(number, batch, [torch.from_numpy(array) for array in arrays])


class DatasetEmbedder:
    """Embeds rows of a data set in a process of a cluster; see :class:`hgsl.evaluation.parts.cluster.PartEmbedder`."""

    def __init__(self, model: nn.Module, dataset: Dataset[Any], batch_size: int, threads: int, dtype: torch.dtype):
        self.model, self.dataset, self.batch_size, self.threads, self.dtype = model, dataset, batch_size, threads, dtype

    def open(self, device: torch.device) -> None:
        """Moves the model to the device."""
        self.device = device
        self.model.eval().to(device)

    def __call__(self, columns: Columns) -> PartContent:
        """Embeds the rows of a part in batches."""
        rows = columns["row"]
        matrices, labels, ids = [], [], []
        batches = read_batches(lambda number: self.dataset[rows[number]], len(rows), self.batch_size, self.threads)
        for batch in batches:
            images = torch.stack([torch.as_tensor(image) for image, _, _ in batch])
            with torch.inference_mode():
                matrices.append(forward(self.model, images.to(self.device), self.dtype).numpy())
            labels += [int(label) for _, label, _ in batch]
            ids += [int(number) for _, _, number in batch]
        return PartContent({**columns, "label": labels, "id": ids}, np.concatenate(matrices), [])
