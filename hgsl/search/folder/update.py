"""The next state of an index folder: rows are appended to its files, and ``index.json`` is replaced at the end."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import FLAT, check_factory
from hgsl.common.files import remove_partial, write_json
from hgsl.evaluation.knn.vectors import Floats
from hgsl.search.folder import faiss_file
from hgsl.search.folder.appender import Appender, names_of, resumed
from hgsl.search.folder.faiss_update import is_intact, update_faiss
from hgsl.search.folder.layout import MODEL, RECORD, has_index, last_number, state_files
from hgsl.search.folder.reader import FolderState, read_state
from hgsl.search.folder.record import FORMAT, FormatError, read_record
from hgsl.search.folder.snapshot import FolderSnapshot
from hgsl.search.folder.table import ImageTable
from hgsl.search.stores.protocol import ImageFile, ImageRow, State

FLUSH_SECONDS = 5.0  # between flushes: the work that a crash can lose
REMOVED_SHARE = 0.2  # of the rows: with more, an update writes the files anew
BYTES_PER_IMAGE = 300  # of the image table, roughly


class FolderUpdate:
    """The next state of an index folder; see :class:`hgsl.search.stores.protocol.Update`.

    Args:
        folder: The index folder, locked by this process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.previous: State | None
        self._state: FolderState | None
        self.previous, self._state = self._read_previous()
        self._rewrite = _has_many_removed(self._state)  # found by the update after the one that removed them
        self._record: dict[str, Any] = {}
        self._appender: Appender | None = None
        self._row_of: dict[int, int] = {}
        self._removed: list[int] = []
        self._next_number = 0
        self._last_flush = time.monotonic()

    def begin(self, record: Mapping[str, Any]) -> dict[int, ImageRow]:
        """Starts writing; returns the images that an interrupted update has stored."""
        self._record = dict(record)
        model, width = record["model"]["fingerprint"], record["dimensions"]
        if self._state is not None:
            previous, table, _ = self._state
            files = {key: previous["files"][key] for key in ("embeddings", "images")}
            stored, size = resumed(self.folder, files, table, previous["bytes"], model)
            self._next_number = previous["next_id"]
        else:
            table, files = ImageTable(), names_of(last_number(self.folder, "images"))
            stored, size = [], 0
            if self.previous is None or self.previous.record["files"].get("images") != files["images"]:
                stored, size = resumed(self.folder, files, table, 0, model)
            if not stored:  # the files may belong to a damaged state that readers have open
                files = names_of(last_number(self.folder) + 1)
        self._next_number = max([self._next_number, *(table.numbers[row] + 1 for row in stored)])
        self._appender = Appender(self.folder, files, table, size, width, model)
        self._row_of = {table.numbers[row]: row for row in table.live().tolist()}
        return {table.numbers[row]: table.row(row) for row in stored}

    def reserve(self, new_images: int, images: int) -> None:
        """Checks that the FAISS index can be built for so many images, and that the disk has space."""
        factory, width = self._record["index_type"], self._record["dimensions"]
        check_factory(factory, faiss_file.METRIC, width, images)
        copies = new_images + (images if self._rewrite else 0) + (0 if factory == FLAT else images)
        check_writable(self.folder, (4 * width + BYTES_PER_IMAGE) * copies)

    def upsert(self, rows: Sequence[ImageRow], vectors: Floats) -> None:
        """Appends images, and flushes them every few seconds."""
        if rows:
            numbers = list(range(self._next_number, self._next_number + len(rows)))
            self._next_number += len(rows)
            self._files.add(numbers, rows, vectors)
        if time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last flush."""
        self._last_flush = time.monotonic()
        self._files.flush()

    def vectors(self, numbers: Sequence[int]) -> Floats:
        """Returns the vectors of images of the previous state or of an interrupted update."""
        return self._files.vectors().rows(np.array([self._row_of[number] for number in numbers], dtype=np.int64))

    def delete(self, numbers: Sequence[int]) -> None:
        """Removes images of the previous state or of an interrupted update."""
        self._removed += [self._row_of[number] for number in numbers]

    def needs_upkeep(self) -> bool:
        """Whether many rows are removed ones, or the FAISS file is damaged."""
        return self._state is None or self._rewrite or not is_intact(self.folder, self._state.record)

    def prepare(self, broken: Mapping[ImageFile, str], retrain: bool = False) -> FolderSnapshot:
        """Writes everything but ``index.json``, and opens it."""
        self.flush()
        if self._removed or broken != self._files.table.broken:
            self._files.change(self._removed, broken)
        if self._rewrite:
            compact = self._files.rewritten(last_number(self.folder) + 1)
            self._files.close()
            self._appender = compact
        table, vectors = self._files.table, self._files.vectors()
        previous = None if self._state is None else self._state.record
        faiss = update_faiss(self.folder, self._record, previous, vectors, table.live(), self._rewrite, retrain)
        self.notes += [] if faiss.advice is None else [faiss.advice]
        self._record |= {
            "images": len(table.live()),
            "rows": len(table),
            "bytes": self._files.size,
            "next_id": self._next_number,
            "files": {**self._files.files, **faiss.files},
            "trained": faiss.trained,
        }
        return FolderSnapshot(self._record, table, vectors, faiss.backend)

    def publish(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces ``index.json``, then removes files that it does not name, and those of interrupted writes.

        Readers keep those that are open.
        """
        number = 1 + (self.previous.record["state"] if self.previous else 0)
        content = {"format": FORMAT, "state": number, **self._record, **measured}
        write_json(self.folder / RECORD, content)
        for path in state_files(self.folder):
            if path.name not in content["files"].values():
                path.unlink(missing_ok=True)
        for folder in (self.folder, self.folder / MODEL):
            remove_partial(folder)
        return content

    def close(self) -> None:
        """Closes the files."""
        if self._appender is not None:
            self._appender.close()

    @property
    def _files(self) -> Appender:
        assert self._appender is not None, "begin() comes first"
        return self._appender

    def _read_previous(self) -> tuple[State | None, FolderState | None]:
        """The existing state, for the protocol and as it is on disk; a damaged one is reported in ``notes``."""
        if not has_index(self.folder):
            return None, None
        record: dict[str, Any] = {}
        try:
            record = read_record(self.folder)
            state = read_state(self.folder)
        except FormatError:
            raise
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # such as a permission or a network share: not damaged
                raise
            settings = "with its settings" if record else "with the labels, FAISS factory and threshold of a new index"
            self.notes.append(f"the index was damaged and has been rebuilt {settings} ({error})")
            return State(record) if record else None, None
        table = state.table
        rows = {table.numbers[row]: table.row(row) for row in table.live().tolist()}
        return State(state.record, rows, dict(table.broken)), state


def _has_many_removed(state: FolderState | None) -> bool:
    return state is not None and len(state.table.removed) > REMOVED_SHARE * len(state.table)
