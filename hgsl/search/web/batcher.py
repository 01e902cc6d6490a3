"""Requests that arrive together are computed together: one forward pass, one search."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

from hgsl.search.web.refusal import Refusal

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """A queue before one working thread: what has come in while a batch was computed is the next batch.

    So a lone request never waits for company, and the busier the server, the larger the batches.

    Args:
        work: A list of items -> their results, called in one thread, never twice at a time.
        max_batch: Items a call.
        max_waiting: Items that may wait; more are refused, so that a flood costs neither memory nor patience.
    """

    def __init__(self, work: Callable[[list[Item]], Sequence[Result]], max_batch: int = 16, max_waiting: int = 64):
        self._work = work
        self._max_batch = max_batch
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue(max_waiting)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Batcher[Item, Result]":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def submit(self, item: Item) -> Result:
        """Returns the result of ``item`` when its batch is done.

        Raises:
            Refusal: 429, too many are waiting.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, future))
        except asyncio.QueueFull:
            raise Refusal(429, "too many searches are waiting: try again in a moment") from None
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "search") as thread:
            while True:
                batch = [await self._queue.get()]
                # A power of two: the network's libraries keep kernels and buffers for every batch size they have met.
                waiting = min(1 + self._queue.qsize(), self._max_batch)
                while 2 * len(batch) <= waiting:
                    batch += [self._queue.get_nowait() for _ in range(len(batch))]
                batch = [(item, future) for item, future in batch if not future.done()]  # whose client is still there
                if not batch:
                    continue
                try:
                    results = await loop.run_in_executor(thread, self._work, [item for item, _ in batch])
                except Exception as error:  # a bug or a full memory: each of them must learn of it
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
