"""The store of an index in Milvus."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.paths import public_uri
from hgsl.models import Embedder
from hgsl.search.milvus.client import connect, disconnect, milvus_errors
from hgsl.search.milvus.schema import built_type
from hgsl.search.milvus.snapshot import MilvusSnapshot
from hgsl.search.milvus.states import SUFFIX, current_state, open_states, read_state
from hgsl.search.milvus.update import MilvusUpdate


class MilvusStore:
    """An index in Milvus; see :class:`hgsl.search.stores.protocol.Store`.

    Args:
        uri: A local file or the address of a server.
        collection: Of the images; that of the states has its name and a suffix.
        address: As the user wrote it; messages have it without a password.
    """

    kind = "milvus"

    def __init__(self, uri: str, collection: str, address: str) -> None:
        self.uri, self.collection, self.address = uri, collection, public_uri(address)
        self.model: Path | None = None  # the record names it

    def state(self) -> int:
        """Returns the number of the current state."""
        with milvus_errors(self.uri):
            return self._existing(current_state(self._client, self.collection))

    def open(self) -> MilvusSnapshot:
        """Opens the current state."""
        with milvus_errors(self.uri):
            number, record = read_state(self._client, self.collection)
            self._existing(number)
        return MilvusSnapshot(self._client, self.uri, self.collection, number, record)

    @contextmanager
    def update(self) -> Iterator[MilvusUpdate]:
        """Takes the lease of the writer and reads the state."""
        with milvus_errors(self.uri):
            if "_client" not in self.__dict__:
                self.__dict__["_client"] = connect(self.uri, create=True)
            open_states(self._client, self.collection)
            update = MilvusUpdate(self._client, self.uri, self.collection)
            try:
                yield update
            finally:
                update.close()

    def save_model(self, model: Embedder) -> None:
        """Stores nothing: the record names the checkpoint."""

    def close(self) -> None:
        """Closes the connection; a local file can then be opened by another process."""
        client = self.__dict__.pop("_client", None)
        if client is not None:
            disconnect(client, self.uri)

    @cached_property
    def _client(self) -> Any:
        """A connection to read the loaded collections."""
        client = connect(self.uri)
        try:
            for name in (self.collection, self.collection + SUFFIX):
                if client.has_collection(name):
                    self._load(client, name)
        except BaseException:
            disconnect(client, self.uri)
            raise
        return client

    def _load(self, client: Any, name: str) -> None:
        try:
            client.load_collection(name)
        except Exception as error:
            if built_type(client, name) is not None:
                raise
            raise InputError(
                f"{self.address} has no vector index: an update is building one, or was interrupted before; then run "
                "hgsl-search index again, which builds it"
            ) from error

    def _existing(self, state: int) -> int:
        if not state:
            raise FileNotFoundError(f"no index in {self.address}: make one with hgsl-search index --store milvus")
        return state
