"""Orderly stop: the first SIGINT or SIGTERM lets the step finish and the state be saved, a second one ends at once."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from hgsl.common.errors import InputError


class Diverged(InputError):
    """Training has produced numbers that are not finite."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state; ``exit_code`` is 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the state is saved, --resume goes on from it")
        self.exit_code = 128 + number


class StopRequest:
    """While entered, records the first SIGINT or SIGTERM in ``number`` instead of ending the process."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()  # the second signal has its usual effect

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
