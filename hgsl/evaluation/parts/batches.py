"""Batches of images read by threads: a process of a cluster cannot fork, and threads suffice to decode images."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def read_batches(read: Callable[[int], Any], count: int, batch_size: int, threads: int) -> Iterator[list[Any]]:
    """Yields ``read(0)``, ..., ``read(count - 1)`` in batches; the next batch is read while the caller computes.

    >>> list(read_batches(lambda row: 10 * row, 3, batch_size=2, threads=2))
    [[0, 10], [20]]
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        waiting: list[Future[Any]] = []
        for start in range(0, count + batch_size, batch_size):  # one more than there are batches
            ready, waiting = waiting, [pool.submit(read, row) for row in range(start, min(start + batch_size, count))]
            if ready:
                yield [future.result() for future in ready]
