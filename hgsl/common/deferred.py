"""Deferred checks: conditions on values of a device, collected until the host reads from the device anyway."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

Check = Callable[[Sequence[float]], None]  # raises if the numbers that it is given are wrong

_collector: ContextVar["DeferredChecks | None"] = ContextVar("deferred_checks", default=None)


@dataclass
class DeferredChecks:
    """Checks in the order of their calls, and the numbers that each of them reads.

    Attributes:
        values: A tensor ``(n,)`` of numbers on the device for each check.
        checks: The checks.
    """

    values: list[Tensor] = field(default_factory=list)
    checks: list[tuple[int, Check]] = field(default_factory=list)

    def add(self, values: Tensor, check: Check) -> None:
        """Appends a check of the numbers ``values`` ``(n,)``."""
        self.values.append(values)
        self.checks.append((len(values), check))

    def tensor(self, first: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns the scalars ``first`` and then the numbers of all checks in one tensor on the device."""
        return torch.cat(
            [torch.stack([value.detach().to(dtype) for value in first]), *[v.to(dtype) for v in self.values]]
        )

    def run(self, numbers: Sequence[float]) -> None:
        """Calls every check with its share of ``numbers``, those after ``first`` of :meth:`tensor`."""
        start = 0
        for count, check in self.checks:
            check(numbers[start : start + count])
            start += count


@contextmanager
def deferred_checks() -> Iterator[DeferredChecks]:
    """Collects the checks of :func:`check_numbers` within the context, which then do not wait for the device."""
    collected = DeferredChecks()
    token = _collector.set(collected)
    try:
        yield collected
    finally:
        _collector.reset(token)


def check_numbers(values: Tensor, check: Check) -> None:
    """Calls ``check`` with the numbers of ``values`` ``(n,)``, now or, within :func:`deferred_checks`, later.

    Reading them waits for the device. A check that is called later must not hold large tensors, and sees the values
    that other tensors have by then.
    """
    collected = _collector.get()
    if collected is None:
        check(values.detach().tolist())
    else:
        collected.add(values.detach(), check)


def checks_are_deferred() -> bool:
    """Whether checks are collected at the moment."""
    return _collector.get() is not None
