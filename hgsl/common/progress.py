"""Progress of long work: a bar in a terminal or notebook, a line from time to time in a log, nothing in quiet mode."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 60.0  # between two lines where standard error is no terminal

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet_mode(active: bool = True) -> Iterator[None]:
    """Within the context, no progress is shown and ``ranks.print_main`` prints results alone."""
    token = _quiet.set(active or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Whether :func:`quiet_mode` is active."""
    return _quiet.get()


def progress_bar(
    items: Iterable[Any] | None = None, *, shown: bool = True, log_lines: bool = False, **options: Any
) -> Any:
    """Returns a progress bar of tqdm, on standard error.

    Args:
        items: The items to iterate over; None for a bar that ``update`` moves.
        shown: Whether there is a bar at all.
        log_lines: Whether a line is written every ``LOG_SECONDS`` where standard error is neither terminal nor
            notebook; otherwise nothing is written there.
        options: Of tqdm, such as ``desc``, ``unit`` and ``total``.
    """
    if not shown or is_quiet():
        return tqdm(items, disable=True, **options)
    if in_notebook():
        return _notebook_class()(items, **options)
    if log_lines and not _is_terminal():
        return LogLines(items, **options)
    return tqdm(items, disable=None, **options)  # None disables it unless standard error is a terminal


class LogLines(tqdm):
    """A bar as lines of a log: one every ``LOG_SECONDS``, without the drawing and without control characters."""

    def __init__(self, items: Iterable[Any] | None = None, **options: Any) -> None:
        options |= {"mininterval": LOG_SECONDS, "delay": LOG_SECONDS, "miniters": 1, "leave": False}
        super().__init__(items, bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]", **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes the line; an empty one, with which tqdm clears a bar, is left out."""
        if msg != "":
            print(self if msg is None else msg, file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """Ends the bar; nothing has to be cleared."""
        self.disable = True


def in_notebook() -> bool:
    """Whether the code runs in the kernel of a notebook, whose standard error is no terminal but shows bars."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def _notebook_class() -> type[tqdm]:
    """The bar of a notebook: a widget where there are some, else text."""
    if find_spec("ipywidgets") is None:
        return tqdm
    from tqdm.notebook import tqdm as widget

    return widget


def _is_terminal() -> bool:
    return bool(sys.stderr is not None and getattr(sys.stderr, "isatty", lambda: False)())
