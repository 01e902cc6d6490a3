"""Ctrl-C of a command: handled from its first line on, and also where a library swallows the exception.

This module is the first that an entry point imports, and imports next to nothing.
"""

import os
import signal
import sys
from types import FrameType

EXIT_INTERRUPTED = 130
SECONDS_TO_UNWIND = 1.5


def exit_on_interrupt() -> None:
    """Lets Ctrl-C end the process at once, while the command is still being imported and has nothing to lose."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def end_on_interrupt() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt as before, and ends the process soon afterwards in any case.

    An exception raised within an import or a callback of a library may be caught there (``except:``), or printed and
    dropped (a destructor, a callback of C code): the command would go on, with a module imported by half. A process
    that ignores SIGINT (``nohup``, a background job of a shell) and one with a handler of its own are left alone.
    """
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _exit):
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGALRM, _end)  # a timer of the system takes no lock, which the interrupted code may hold
    signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_UNWIND)
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    for child in sys.modules["multiprocessing"].active_children():
        child.terminate()
    _exit(number, frame)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)
