"""What every tool does around its work: a user's mistake ends in one line and an exit code, never in a traceback."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hgsl.common.errors import InputError

EXIT_OK = 0
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130


def run(work: Callable[[], int | None]) -> int:
    """Calls ``work`` and returns the exit code: 0, 2 after bad input, 130 after Ctrl-C. Bugs keep their traceback."""
    try:
        with plain_warnings():
            return work() or EXIT_OK
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Prints the package's own warnings as one line, without the place in the source that gave them."""
    with_source = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], filename: str, *place: object) -> str:
        ours = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1])
        return f"warning: {message}\n" if ours else with_source(message, category, filename, *place)  # type: ignore[arg-type]

    warnings.formatwarning = plain  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = with_source


def one_line(error: Exception) -> str:
    """The message of ``error`` alone, also where a data-loading process wrapped it in its own traceback."""
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}"
    last = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    kind = type(error)
    return last.removeprefix(f"{kind.__module__}.{kind.__qualname__}: ").removeprefix(f"{kind.__qualname__}: ")
