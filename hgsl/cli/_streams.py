"""Standard output and error that tolerate a closed pipe, and keep any other error of writing."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class OpenEnded:
    """A text stream that discards output after its pipe is closed, as ``| head`` closes it after ten lines.

    The command continues and writes its files; characters that the encoding lacks are written as ``\\xff``. Any other
    error, such as that of a full disk, is raised, and kept for :meth:`check`: a parser that prints its help ignores it.

    Args:
        stream: Where the output goes.
        name: Of the stream, for the message of an error.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._error: OSError | None = None
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with self._drop_after_errors():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._drop_after_errors():
            self._stream.flush()

    def check(self) -> None:
        """Flushes the stream.

        Raises:
            OSError: Some output could not be written.
        """
        self.flush()
        if self._error is not None:
            raise self._error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _drop_after_errors(self) -> Iterator[None]:
        """Redirects the stream, with its buffered text, to the null device when it cannot be written."""
        try:
            yield
        except OSError as error:
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, self._stream.fileno())
            os.close(descriptor)
            if not isinstance(error, BrokenPipeError):
                error.filename = self._name
                self._error = error
                raise


def check_output() -> None:
    """Flushes standard output.

    Raises:
        OSError: Some of it could not be written, and the pipe was not closed.
    """
    if isinstance(sys.stdout, OpenEnded):
        sys.stdout.check()


@contextmanager
def open_ended_output() -> Iterator[None]:
    """Makes standard output and error open-ended within the context, and flushes them at its end."""
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stdout and OpenEnded(sys.stdout, "standard output")
    sys.stderr = sys.stderr and OpenEnded(sys.stderr, "standard error")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # of a command that has failed before
                if stream:
                    stream.flush()
        sys.stdout, sys.stderr = before
