"""Embeddings written to a folder as they are computed, so that a killed extraction continues from its last flush.

The folder holds ``embeddings.npy`` (N, D) float32, ``labels.npy`` and ``ids.npy`` (N,) int64, which any NumPy reads by
memory map. Until the last batch is in, their names end in ``.part.npy``, ``done.npy`` has one byte per batch, set
once the batch is on the disk, and ``extraction.json`` identifies the extraction, so that no other one is written there.
``checksums.json`` holds the checksums of the complete files, which are verified before they are used again.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from hgsl.common import ranks
from hgsl.common.disk import named_disk_errors, reserve_space
from hgsl.common.errors import InputError
from hgsl.common.eval_checks import STORE_RECORD, check_store
from hgsl.common.files import read_json, write_json
from hgsl.common.fingerprint import word_sum

ARRAYS = ("embeddings", "labels", "ids")
CHECKSUMS = "checksums.json"  # of the complete files
FLUSH_SECONDS = 2.0  # at most this much work is lost


class EmbeddingStore:
    """The folder of one extraction, opened by every rank of the run.

    Args:
        folder: Created if it is missing.
        count: N, the number of images.
        batches: The number of batches.
        identity: Everything that determines the vectors, as text.

    Raises:
        InputError: The folder holds another extraction, or other files.
    """

    def __init__(self, folder: str | os.PathLike[str], count: int, batches: int, identity: str) -> None:
        self.folder = Path(folder)
        self.count = count
        self.batches = batches
        self.unmarked: list[int] = []
        self.flushed = time.monotonic()
        self._claim({"images": count, "batches": batches, "identity": identity})

    def pending(self) -> list[int]:
        """The batches still to be computed; equal on all ranks if called before any batch is written."""
        if self._path("embeddings").is_file():
            return []
        marks = self.folder / "done.npy"
        if not marks.is_file():
            return list(range(self.batches))
        return np.flatnonzero(np.load(marks, allow_pickle=False) == 0).tolist()

    def open(self, width: int) -> None:
        """Creates or opens the files for vectors of ``width`` numbers; called once by every rank."""
        if self._path("embeddings").is_file():
            return
        marks = self.folder / "done.npy"
        if ranks.is_main() and not marks.is_file():
            for name in ARRAYS:
                shape: tuple[int, ...] = (self.count, width) if name == "embeddings" else (self.count,)
                dtype = np.float32 if name == "embeddings" else np.int64
                path = self._path(name, part=True)
                with named_disk_errors(path):
                    open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
                reserve_space(path)
            open_memmap(marks, mode="w+", dtype=np.uint8, shape=(self.batches,)).flush()  # written last
        ranks.barrier()
        self.arrays = {name: np.load(self._current(name), mmap_mode="r+", allow_pickle=False) for name in ARRAYS}
        self.marks = np.load(marks, mmap_mode="r+", allow_pickle=False)
        if width and self.arrays["embeddings"].shape[1] != width:
            raise InputError(
                f"{self.folder}: holds vectors of {self.arrays['embeddings'].shape[1]} numbers and the network returns "
                f"{width}: remove the folder or name another"
            )

    def write(self, batch: int, rows: Sequence[int], values: Sequence[torch.Tensor]) -> None:
        """Writes the vectors, labels and ids of one batch."""
        part = slice(rows[0], rows[-1] + 1)
        for name, tensor in zip(ARRAYS, values, strict=True):
            self.arrays[name][part] = tensor.numpy()
        self.unmarked.append(batch)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self._flush()

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Gives the files their final names once every rank is done, and returns them as read-only memory maps.

        Raises:
            InputError: A file that was complete before is damaged.
        """
        if self._path("embeddings").is_file():
            self._verify()
        else:
            self._flush()
            ranks.barrier()
            if ranks.is_main():
                write_json(self.folder / CHECKSUMS, {name: word_sum(self._current(name)) for name in ARRAYS})
                for name in reversed(ARRAYS):  # the vectors last: their presence marks the store as complete
                    os.replace(self._current(name), self._path(name))
        ranks.barrier()
        embeddings, labels, ids = (np.load(self._path(name), mmap_mode="r", allow_pickle=False) for name in ARRAYS)
        return embeddings, labels, ids

    def _verify(self) -> None:
        checksums = read_json(self.folder / CHECKSUMS, "the checksums of stored embeddings")
        for name in ARRAYS:
            if word_sum(self._path(name)) != checksums.get(name):
                raise InputError(f"{self._path(name)} is damaged: remove the folder and embed the images again")

    def _claim(self, identity: dict[str, object]) -> None:
        record = self.folder / STORE_RECORD
        if ranks.is_main() and not record.is_file():
            check_store(self.folder)
            write_json(record, identity)
        ranks.barrier()
        if read_json(record, "the identity of stored embeddings") != identity:
            raise InputError(
                f"{self.folder}: holds the embeddings of another network, data set or setting: "
                "remove the folder or name another"
            )

    def _flush(self) -> None:
        for array in self.arrays.values():
            array.flush()
        self.marks[self.unmarked] = 1  # only now: a mark must never reach the disk before its vectors
        self.marks.flush()
        self.unmarked.clear()
        self.flushed = time.monotonic()

    def _path(self, name: str, *, part: bool = False) -> Path:
        return self.folder / f"{name}.part.npy" if part else self.folder / f"{name}.npy"

    def _current(self, name: str) -> Path:
        """The file of an array until the store is complete; a killed process may have renamed some already."""
        part = self._path(name, part=True)
        return part if part.is_file() else self._path(name)
