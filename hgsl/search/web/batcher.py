"""Batching of concurrent requests: one forward pass and one search for all waiting requests."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

from hgsl.search.web.errors import RequestError

Item = TypeVar("Item")
Result = TypeVar("Result")
Waiting = tuple[Item, asyncio.Future[Result]]


class Batcher(Generic[Item, Result]):
    """A queue in front of one worker thread: the items that arrive while a batch is computed form the next batch.

    A single request never waits for others, and batches grow with the load.

    Args:
        work: A list of items -> their results, called in one thread, never concurrently.
        max_batch: Items per call.
        max_waiting: Items that may wait; more are refused, which bounds memory and latency.
    """

    def __init__(self, work: Callable[[list[Item]], Sequence[Result]], max_batch: int = 16, max_waiting: int = 64):
        self._work = work
        self._max_batch = max_batch
        self._queue: asyncio.Queue[Waiting[Item, Result]] = asyncio.Queue(max_waiting)
        self._thread = ThreadPoolExecutor(1, "search")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Batcher[Item, Result]":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def submit(self, item: Item) -> Result:
        """Returns the result of ``item`` when its batch is done.

        Raises:
            RequestError: 429, too many are waiting.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, future))
        except asyncio.QueueFull:
            raise RequestError(429, "too many searches are waiting: try again in a moment") from None
        return await future

    async def _run(self) -> None:
        while True:
            batch = [waiting for waiting in await self._next_batch() if not waiting[1].done()]  # done: client is gone
            if batch:
                await self._compute(batch)

    async def _next_batch(self) -> list[Waiting[Item, Result]]:
        """Waits for an item; its batch is a power of two: libraries cache kernels and buffers for each batch size."""
        batch = [await self._queue.get()]
        available = min(1 + self._queue.qsize(), self._max_batch)
        while 2 * len(batch) <= available:
            batch += [self._queue.get_nowait() for _ in range(len(batch))]
        return batch

    async def _compute(self, batch: list[Waiting[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        futures = [future for _, future in batch]
        try:
            results = await loop.run_in_executor(self._thread, self._work, [item for item, _ in batch])
        except Exception as error:  # a bug or no memory: every client of the batch gets the error
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, result in zip(futures, results, strict=True):
            if not future.done():
                future.set_result(result)
