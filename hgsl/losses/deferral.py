"""Deferred checks: on a GPU, the values of a loss's inputs are read when the training loop asks, not in every call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from hgsl.common.errors import InputError

DEFERRING_DEVICES = ("cuda", "mps")  # a CPU has nothing to wait for

FindError = Callable[[list[float], int], str | None]


class DeferredChecks:
    """The extremes of the input values of all calls since the last :meth:`raise_errors`, held on the device."""

    def __init__(self) -> None:
        self._extremes: dict[tuple[torch.device, int], tuple[Tensor, FindError]] = {}
        self._parts: dict[int, DeferredChecks] = {}

    def add(self, extremes: Tensor, num_classes: int, find_error: FindError) -> None:
        """Includes a call in place, so that a CUDA graph can replay it if another call came before the capture.

        Args:
            extremes: ``(n,)``, a minimum, a maximum, a minimum, and so on; NaN if any value is.
            num_classes: of the loss.
            find_error: returns what is wrong with the extremes, given as a list, or None.
        """
        key = extremes.device, num_classes
        if key not in self._extremes:
            self._extremes[key] = _neutral(extremes), find_error
        total, _ = self._extremes[key]
        torch.minimum(total[::2], extremes[::2], out=total[::2])
        torch.maximum(total[1::2], extremes[1::2], out=total[1::2])

    def deferred(self) -> bool:
        """Whether a context of ``deferred_checks`` is active, which then also raises the errors of this object."""
        active = _active.get()
        if active is not None:
            active._parts[id(self)] = self
        return active is not None

    def raise_errors(self) -> None:
        """Reads the extremes of all calls since the last time, which waits for the device.

        Raises:
            InputError: A value was invalid. The loss of its call, or the gradients, were NaN or infinite.
        """
        errors = []
        for (_, num_classes), (total, find_error) in self._extremes.items():
            values = total.tolist()
            total.copy_(_neutral(total))
            if values[0] != float("inf"):  # there was a call
                errors.append(find_error(values, num_classes))
        for error in filter(None, errors):
            raise InputError(f"{error} (in a batch since the last check)")
        for part in self._parts.values():
            part.raise_errors()


_active: ContextVar[DeferredChecks | None] = ContextVar("deferred_checks", default=None)


@contextmanager
def deferred_checks() -> Iterator[DeferredChecks]:
    """Defers the checks of values on a GPU within the context, so that the loss's ``forward`` does not wait for it.

    Call ``raise_errors()`` of the returned object where the host reads other values too, and at the end::

        with deferred_checks() as checks:
            for step, (images, labels) in enumerate(batches):
                loss_fn(network(images), labels).backward()
                ...
                if step % 50 == 49:
                    checks.raise_errors()
            checks.raise_errors()

    The loss of a batch with an invalid label or embedding is NaN: skip its optimizer step. On a CPU, and without this
    context, every call raises at once.
    """
    with deferring(DeferredChecks()) as checks:
        yield checks


@contextmanager
def deferring(checks: DeferredChecks) -> Iterator[DeferredChecks]:
    """Collects the checks of the calls within the context in ``checks``."""
    token = _active.set(checks)
    try:
        yield checks
    finally:
        _active.reset(token)


def deferred_on(device: torch.device) -> DeferredChecks | None:
    """Returns the object that collects the checks of calls on ``device``, or None if they are checked at once."""
    return _active.get() if device.type in DEFERRING_DEVICES else None


def _neutral(extremes: Tensor) -> Tensor:
    neutral = torch.full_like(extremes, torch.inf)
    neutral[1::2] = -torch.inf
    return neutral
