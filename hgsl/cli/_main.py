"""Frame of every command: invalid input ends in one line and an exit status, never in a traceback."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hgsl.cli._interrupt import EXIT_INTERRUPTED, end_on_interrupt
from hgsl.cli._streams import check_output, open_ended_output
from hgsl.common.cores import wait_without_spinning
from hgsl.common.errors import InputError
from hgsl.common.files import as_text

EXIT_OK = 0
EXIT_BUG = 1
EXIT_INPUT = 2


def run(work: Callable[[], int | None], *, ends_process: bool = False) -> int:
    """Calls ``work`` and returns the exit status: 0, 2 after bad input or lost output, 130 after Ctrl-C.

    Args:
        work: The command; its own exit status, or None for 0.
        ends_process: Whether this call is a process of its own, which a failure ends at once, with its children: the
            interpreter would take seconds to free its memory, and might wait for threads that wait for other processes.
            Otherwise an unexpected exception is raised.
    """
    if ends_process:
        end_on_interrupt()
        wait_without_spinning()
    with plain_warnings(), open_ended_output():
        try:
            status = _status_of(work)
        except Exception:
            if not ends_process:
                raise
            sys.excepthook(*sys.exc_info())
            status = EXIT_BUG
    if ends_process and status != EXIT_OK:
        for child in multiprocessing.active_children():
            child.terminate()
        os._exit(status)
    return status


def _status_of(work: Callable[[], int | None]) -> int:
    try:
        try:
            status = work() or EXIT_OK
        except SystemExit:  # of a parser, after --help
            check_output()
            raise
        check_output()
        return status
    except (InputError, OSError) as error:
        _print_error(f"error: {one_line(error)}")
        return EXIT_INPUT
    except KeyboardInterrupt:
        _print_error("interrupted")
        return EXIT_INTERRUPTED


def _print_error(message: str) -> None:
    with suppress(OSError):  # the exit status remains
        print(message, file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Prints the package's own warnings as one line, without file and line of the source.

    PyTorch's compiler imports a module of PyTorch that uses the deprecated ``torch.jit.script_method``: no one who runs
    a command can change that, so the warning is hidden.
    """
    with_source = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], filename: str, *position: object) -> str:
        ours = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1])
        return f"warning: {message}\n" if ours else with_source(message, category, filename, *position)  # type: ignore[arg-type]

    warnings.formatwarning = plain  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # about unusual images; those that fail are named
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.script_method` is ")
            yield
    finally:
        warnings.formatwarning = with_source


def one_line(error: Exception) -> str:
    """The message of ``error`` alone, also where a data-loading process wrapped it in its own traceback.

    Control characters, such as a line feed in a file name, are escaped; of several lines of a library, the last counts.
    """
    if isinstance(error, OSError) and error.strerror:
        path = f": {error.filename}" if error.filename else ""
        return as_text(f"{error.strerror}{path}")
    name, text = type(error).__qualname__, str(error).strip() or type(error).__name__
    ours = isinstance(error, InputError) or type(error) is FileNotFoundError
    wrapped = text.startswith("Caught ") and f"{name}: " in text
    text = text.rpartition(f"{name}: ")[2] if wrapped else text if ours else text.splitlines()[-1]
    return as_text(text.removeprefix(f"{type(error).__module__}.{name}: ").removeprefix(f"{name}: "))
