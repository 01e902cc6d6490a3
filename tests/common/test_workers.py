"""Errors of a data loader: a killed worker process is one line, an exception within a worker stays as it is."""

import os
import signal
from collections.abc import Callable

import pytest
from torch.utils.data import DataLoader, Dataset

from hgsl.common.errors import InputError
from hgsl.common.workers import named_worker_errors


def fail() -> None:
    raise RuntimeError("the data set is wrong")


def end_of_file() -> None:
    raise EOFError("a file is empty")


class Images(Dataset[int]):
    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        self.work()
        return index


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("work", "error"), [(fail, RuntimeError), (end_of_file, EOFError)])
def test_an_exception_in_a_worker_stays_as_it_is(
    work: Callable[[], None], error: type[Exception], workers: int
) -> None:
    with pytest.raises(error, match=r"the data set is wrong|a file is empty"), named_worker_errors("advice"):
        list(DataLoader(Images(work), num_workers=workers))


def test_a_killed_worker_is_one_line_with_a_way_out() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(InputError, match=r"images was killed.*: use fewer"), named_worker_errors("use fewer"):
            list(DataLoader(Images(lambda: os.kill(os.getpid(), signal.SIGKILL)), num_workers=2))
    finally:
        signal.signal(signal.SIGCHLD, before)
