"""What every tool does around its work: a user's mistake ends in one line and an exit code, never in a traceback."""

import sys
from collections.abc import Callable

from hgsl.common.errors import InputError

EXIT_OK = 0
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130


def run(work: Callable[[], int | None]) -> int:
    """Calls ``work`` and returns the exit code: 0, 2 after bad input, 130 after Ctrl-C. Bugs keep their traceback."""
    try:
        return work() or EXIT_OK
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def one_line(error: Exception) -> str:
    """The message of ``error`` alone, also where a data-loading process wrapped it in its own traceback."""
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}"
    last = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    kind = type(error)
    return last.removeprefix(f"{kind.__module__}.{kind.__qualname__}: ").removeprefix(f"{kind.__qualname__}: ")
