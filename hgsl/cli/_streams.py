"""Standard output and error that tolerate a closed pipe."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class OpenEnded:
    """A text stream that discards output after its pipe is closed, as ``| head`` closes it after ten lines.

    The command continues and writes its files; characters that the encoding lacks are written as ``\\xff``.
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
        """Redirects the stream, with its buffered text, to the null device."""
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, self._stream.fileno())
        os.close(descriptor)


@contextmanager
def open_ended_output() -> Iterator[None]:
    """Makes standard output and error open-ended within the context, and flushes them at its end."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and OpenEnded(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        sys.stdout, sys.stderr = before
