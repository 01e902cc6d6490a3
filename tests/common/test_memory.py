import platform

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.common.memory import named_memory_errors
from tests.helpers import run_code

FAULTS = """
import resource
import torch
from hgsl.common.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25_000_000)  # 100 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(20)))  # at first, small things settle between the large ones
assert keep_freed_memory()
print(min(faults() for _ in range(20)))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")
def test_freed_memory_is_taken_again_without_a_fault() -> None:
    before, after = map(int, run_code(FAULTS).split())
    assert before > 20_000  # one a page of 4 KiB
    assert after < 100


def test_a_full_gpu_is_one_line_with_a_way_out() -> None:
    message = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB of which 1 GiB is free. "
        "Including non-PyTorch memory, this process has 78 GiB memory in use. See the documentation\nfor more"
    )
    expected = "^CUDA out of memory. Tried to allocate 2.00 GiB: lower the batch size$"
    with pytest.raises(InputError, match=expected), named_memory_errors("lower the batch size"):
        raise torch.OutOfMemoryError(message)
    with pytest.raises(RuntimeError, match="another"), named_memory_errors("lower the batch size"):
        raise RuntimeError("another")


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Caught MemoryError in DataLoader worker process 0.")])
def test_a_full_machine_is_one_line_with_a_way_out(error: MemoryError) -> None:
    with pytest.raises(InputError, match="memory of this machine is full: fewer"), named_memory_errors("fewer"):
        raise error


def test_a_refused_allocation_of_pytorch_is_one_line_with_a_way_out() -> None:
    with pytest.raises(InputError, match="memory of this machine is full: fewer"), named_memory_errors("fewer"):
        torch.empty(1 << 55)
