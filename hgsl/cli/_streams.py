"""Standard output and error whose reader may go away."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class OpenEnded:
    """A text stream that drops what is written after its reader has gone, as ``| head`` goes after ten lines.

    The command goes on and writes its files; characters that the stream's encoding lacks are written as ``\\xff``.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        """Sends what is buffered, and all that follows, to the null device."""
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, self._stream.fileno())
        os.close(descriptor)


@contextmanager
def open_ended_output() -> Iterator[None]:
    """Makes standard output and error open-ended while entered, and flushes them on leaving."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and OpenEnded(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        sys.stdout, sys.stderr = before
