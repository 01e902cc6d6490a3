"""Allocator settings of the C library."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees, instead of handing it back to the system at once.

    Each training step on a CPU frees the hundreds of megabytes that the next one asks for again, and the system clears
    every page before it gives it out: a third of the time of a step. Peak memory stays about the same, and is held
    until the process ends. Source: ``man 3 mallopt``.

    Returns:
        Whether the C library has such a setting; only glibc has.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, -1))
