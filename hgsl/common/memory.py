"""Memory: allocator settings of the C library, and the errors about a full GPU or a full machine."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hgsl.common.errors import InputError, first_line

CPU_ALLOCATOR = "DefaultCPUAllocator"  # in the error of PyTorch, which is a plain RuntimeError
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Makes the allocator of this process reuse freed memory instead of returning it to the system at once.

    Each training step on a CPU frees hundreds of megabytes that the next one allocates again, and the system zeroes
    every new page, which takes a third of the time of a step. Peak memory stays about the same, and is held until the
    process ends. Source: ``man 3 mallopt``.

    Returns:
        Whether it was set: only glibc has the setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, -1))


@contextmanager
def named_memory_errors(advice: str) -> Iterator[None]:
    """Converts errors about full memory, also those of loader processes, to an InputError that ends with ``advice``."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        requested = first_line(error).split(". ")
        raise InputError(f"{'. '.join(requested[:2]).rstrip('.')}: {advice}") from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and CPU_ALLOCATOR not in str(error):
            raise
        raise InputError(f"the memory of this machine is full: {advice}") from None
