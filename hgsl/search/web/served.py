"""The indexes of a server: each is replaced by its next state as soon as that is published."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from hgsl.common.suggestions import nearest
from hgsl.search.index import SearchIndex
from hgsl.search.web.errors import RequestError

REFRESH_SECONDS = 2.0  # between looks at the state of an index


class ServedIndex:
    """An index that is served; requests in progress keep the state with which they began.

    Attributes:
        index: The state that new requests get.
        error: Why the last look at the store failed; None if it did not.
        errors: Number of looks that failed.
    """

    def __init__(self, index: SearchIndex) -> None:
        self.index = index
        self.error: str | None = None
        self.errors = 0

    def refresh(self) -> None:
        """Opens the next state, if there is one; the present one is served on if that fails."""
        try:
            if self.index.store.state() != self.index.record["state"]:
                index = self.index.reopened()
                index.encoder  # noqa: B018 (loads the model now, if it is another one)
                self.index = index
            self.error = None
        except Exception as error:  # of a disk or of the network: tried again
            self.errors += 1
            if self.error is None:
                message = f"{self.index.store.address} cannot be refreshed: {error}"
                logging.getLogger("uvicorn.error").warning(message)
            self.error = str(error)


class ServedIndexes:
    """The indexes of a server by their names; the first is that of requests which name none.

    >>> async with ServedIndexes({"": index}) as served:      # doctest: +SKIP
    ...     served.find(None)
    """

    def __init__(self, indexes: Mapping[str, SearchIndex]) -> None:
        self._indexes = {name: ServedIndex(index) for name, index in indexes.items()}
        self._thread = ThreadPoolExecutor(1, "refresh")
        self._task: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[tuple[str, ServedIndex]]:
        return iter(self._indexes.items())

    def find(self, name: str | None) -> SearchIndex:
        """Returns the present state of an index.

        Raises:
            RequestError: 404, there is none of this name.
        """
        if name is None:
            return next(iter(self._indexes.values())).index
        if name not in self._indexes:
            close = nearest(name[:100], self._indexes)
            hint = f"did you mean {close!r}?" if close else f"this server has {len(self._indexes)}"
            raise RequestError(404, f"no index has this name: {hint}")
        return self._indexes[name].index

    async def __aenter__(self) -> "ServedIndexes":
        self._task = asyncio.create_task(self._refresh())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            for served in self._indexes.values():
                await loop.run_in_executor(self._thread, served.refresh)
