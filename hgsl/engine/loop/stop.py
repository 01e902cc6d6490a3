"""Orderly stop: the first SIGINT or SIGTERM ends the run after the step and a save, a second one at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from hgsl.common.errors import InputError


class Diverged(InputError):
    """Training has produced numbers that are not finite."""


class Stopped(Exception):
    """The run was stopped by a signal after saving its state; ``exit_code`` is 128 plus the signal number."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; the state is saved, the same command with --resume continues from it")
        self.exit_code = 128 + number


class StopRequest:
    """Within the context, the first SIGINT or SIGTERM is recorded in ``number`` and does not end the process.

    A training in another thread than the main one is not stopped by signals.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()  # the second signal has its usual effect

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
