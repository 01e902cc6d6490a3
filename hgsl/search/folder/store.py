"""The store of an index in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hgsl.common.paths import check_path
from hgsl.models import Embedder, save_embedder
from hgsl.search.checks import check_index_folder
from hgsl.search.folder.layout import MODEL, locked
from hgsl.search.folder.reader import open_snapshot
from hgsl.search.folder.record import read_record
from hgsl.search.folder.snapshot import FolderSnapshot
from hgsl.search.folder.update import FolderUpdate


class FolderStore:
    """An index in a folder, searched by FAISS; see :class:`hgsl.search.stores.protocol.Store`.

    Attributes:
        folder: The index folder.
        model: Its copy of the model.
    """

    kind = "folder"

    def __init__(self, folder: str | Path) -> None:
        check_path("folder", folder, "the path of an index")
        self.folder = Path(folder).expanduser()
        self.address = str(self.folder)
        self.model: Path | None = self.folder / MODEL

    def state(self) -> int:
        """Returns the number of the current state."""
        number: int = read_record(self.folder)["state"]
        return number

    def open(self) -> FolderSnapshot:
        """Opens the current state."""
        return open_snapshot(self.folder)

    @contextmanager
    def update(self) -> Iterator[FolderUpdate]:
        """Locks the folder and reads its state.

        Raises:
            InputError: It holds other files, or another process is writing there.
        """
        check_index_folder(self.folder)
        with locked(self.folder):
            update = FolderUpdate(self.folder)
            try:
                yield update
            finally:
                update.close()

    def close(self) -> None:
        """Closes nothing: files are open while they are read."""

    def save_model(self, model: Embedder) -> None:
        """Stores a copy of the model in the folder."""
        save_embedder(model, self.folder / MODEL)
