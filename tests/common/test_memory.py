import platform

import pytest

from tests.helpers import run_code

FAULTS = """
import resource, sys
import torch
from hgsl.common.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25_000_000)  # 100 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(20)))  # at first, small things settle between the large ones
"""


def faults(how: str) -> int:
    return int(run_code(FAULTS, how))


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")
def test_freed_memory_is_taken_again_without_a_fault() -> None:
    assert faults("leave") > 20_000  # one a page of 4 KiB
    assert faults("keep") < 100
