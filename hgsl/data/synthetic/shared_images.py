"""Images that are drawn once, in memory that a process shares with the loader processes that it forks."""

import mmap
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_BYTES = 100 * 2**20  # larger data sets are drawn each time


class SharedImages:
    """Row -> image, from ``draw`` in the first process that reads the row, and from shared memory in all later reads.

    Loader processes live for one pass over the data, so that memory of their own would be of no use. A process that is
    spawned rather than forked starts with empty memory.

    Args:
        draw: Row -> an RGB image, the same in every process.
        count: Number of images.
        side: Their width and height in pixels.
    """

    def __init__(self, draw: Callable[[int], Image.Image], count: int, side: int) -> None:
        self.draw, self.count, self.side = draw, count, side
        self._allocate()

    def __call__(self, row: int) -> Image.Image:
        if self._pixels is None:
            return self.draw(row)
        pixels = self._pixels[row]
        # The checksum tells whether all pixels are there, in whatever order the writes of another process arrive.
        if not self._checksums[row] or zlib.crc32(pixels) != self._checksums[row]:
            pixels[:] = np.asarray(self.draw(row))
            self._checksums[row] = zlib.crc32(pixels)
        return Image.fromarray(pixels)

    def _allocate(self) -> None:
        self._pixels: NDArray[np.uint8] | None = None
        shape = (self.count, self.side, self.side, 3)
        if (size := int(np.prod(shape))) <= MAX_BYTES:
            self._pixels = np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(shape)
            self._checksums = np.frombuffer(mmap.mmap(-1, 4 * self.count), np.uint32)

    def __getstate__(self) -> tuple[Any, ...]:
        return self.draw, self.count, self.side

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.draw, self.count, self.side = state
        self._allocate()
