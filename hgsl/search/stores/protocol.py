"""The protocol of an index store.

A store has numbered states. Readers hold one state, a ``Snapshot``, which does not change. One writer at a time
prepares the next state with an ``Update``: vectors are stored as they are computed, and become visible all at once when
the state is published. After a crash, readers have the previous state, and the next ``Update`` continues with the
stored vectors.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from hgsl.evaluation.knn.vectors import Floats, Vectors
    from hgsl.models import Embedder
    from hgsl.search.where.nodes import Condition

Value = str | float | None  # in a column of the table of labels


class ImageFile(NamedTuple):
    """An image file as listed. Equal values mean that the file has not been modified."""

    path: str  # relative to the image folder, POSIX
    size: int  # bytes
    mtime_ns: int


class ImageRow(NamedTuple):
    """An image with its label and its values in the columns of the table of labels."""

    file: ImageFile
    label: str | None
    values: Mapping[str, Value]


class Hit(NamedTuple):
    """An image of the index: its number, its path in the image folder, its label, and its cosine similarity."""

    id: int
    path: str
    label: str | None
    similarity: float


@dataclass(frozen=True)
class State:
    """The state that an update starts from.

    Attributes:
        record: Its settings.
        rows: Number -> image.
        broken: Image file -> why it could not be read; these have no row.
    """

    record: dict[str, Any]
    rows: dict[int, ImageRow] = field(default_factory=dict)
    broken: dict[ImageFile, str] = field(default_factory=dict)


class Snapshot(Protocol):
    """A state of an index that is read.

    Attributes:
        record: Its settings: model, preprocessing, threshold.
        labels: Label -> number of images.
        exact: Whether a search compares with every vector.
    """

    record: dict[str, Any]
    labels: Mapping[str, int]
    exact: bool

    def __len__(self) -> int:
        """Number of images."""
        ...

    def search(self, queries: "Vectors", k: int, where: "Condition | None" = None) -> list[list[Hit]]:
        """Returns the k nearest images of each query that satisfy a condition, ordered by (-similarity, path).

        Similarities are those of the stored vectors, computed in float64 and rounded to float32.
        """
        ...

    def search_exactly(self, queries: "Vectors", k: int) -> list[list[Hit]]:
        """The same among all images, compared with every vector even if the index is approximate.

        Raises:
            InputError: The store cannot read so many vectors.
        """
        ...

    def count(self, where: "Condition | None" = None) -> int:
        """Returns the number of images that satisfy a condition."""
        ...

    def images(self, numbers: Sequence[int]) -> list[Hit]:
        """Returns images by their numbers, with similarity 1; unknown numbers are left out."""
        ...

    def vectors(self, numbers: Sequence[int]) -> "Floats":
        """Returns the vectors (B, D) of images, which must be in the index."""
        ...

    def spread(self, count: int, where: "Condition | None" = None) -> list[int]:
        """Returns ``count`` numbers of images that satisfy a condition, spaced over the index."""
        ...

    def labeled(self) -> tuple[list[int], list[str]]:
        """Returns the numbers and the labels of the images that have one, in the order of their paths."""
        ...

    def nearest_of_other_label(self, numbers: Sequence[int]) -> tuple["Floats", list[str]]:
        """Returns for labeled images (Q,) the similarity and the label of the nearest image of another label."""
        ...


class Update(Protocol):
    """The next state of an index, while its store is locked for other writers.

    Attributes:
        previous: The state to start from; None for a new index.
        notes: Messages to the user about the previous state.
    """

    previous: State | None
    notes: list[str]

    def begin(self, record: Mapping[str, Any]) -> dict[int, ImageRow]:
        """Starts writing an index with these settings.

        Returns:
            Number -> image of the vectors of the same model that an interrupted update has stored.
        """
        ...

    def reserve(self, new_images: int, images: int) -> None:
        """Checks before any image is embedded that the index can be written.

        Args:
            new_images: Images that will be added.
            images: All images of the next state, at most.

        Raises:
            InputError: The index cannot be built for so many images.
            OSError: There is no space for them.
        """
        ...

    def upsert(self, rows: Sequence[ImageRow], vectors: "Floats") -> None:
        """Adds images with their vectors (B, D); they get new numbers. Within seconds they survive a crash."""
        ...

    def flush(self) -> None:
        """Makes what was added survive a crash."""
        ...

    def vectors(self, numbers: Sequence[int]) -> "Floats":
        """Returns the vectors (B, D) of images of the previous state or of an interrupted update."""
        ...

    def delete(self, numbers: Sequence[int]) -> None:
        """Removes images of the previous state or of an interrupted update."""
        ...

    def needs_upkeep(self) -> bool:
        """Whether the store should write a new state even if no image has changed."""
        ...

    def prepare(self, broken: Mapping[ImageFile, str], retrain: bool = False) -> Snapshot:
        """Completes the next state and opens it; other readers do not see it yet.

        Args:
            broken: Image file -> why it could not be read.
            retrain: Whether an approximate index is trained anew.
        """
        ...

    def publish(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Makes the prepared state the current one, at once and for every reader.

        Args:
            measured: Entries of the record that were measured on the prepared state.

        Returns:
            The complete record.
        """
        ...


class Store(Protocol):
    """An index at an address.

    Attributes:
        kind: ``folder`` or ``milvus``.
        address: As the user wrote it, without a password.
        model: Folder of the copy of the model; None for a store that holds no model.
    """

    kind: str
    address: str
    model: Path | None

    def state(self) -> int:
        """Returns the number of the current state, which is cheap.

        Raises:
            FileNotFoundError: There is no index.
            InputError: It is damaged.
        """
        ...

    def open(self) -> Snapshot:
        """Opens the current state.

        Raises:
            FileNotFoundError: There is no index.
            InputError: It is damaged.
        """
        ...

    def update(self) -> AbstractContextManager[Update]:
        """Locks the index and reads its state.

        Raises:
            InputError: Another process is writing.
        """
        ...

    def close(self) -> None:
        """Closes connections; a snapshot of a folder stays readable."""
        ...

    def save_model(self, model: "Embedder") -> None:
        """Stores a copy of the model, if the store holds one."""
        ...
