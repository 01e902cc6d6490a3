"""Signals and the end of worker processes: of a data loader, and of a cluster."""

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hgsl.common.errors import InputError

PR_SET_PDEATHSIG = 1


@contextmanager
def named_worker_errors(advice: str) -> Iterator[None]:
    """Converts the errors of a data loader whose worker process was killed to an InputError that ends with ``advice``.

    An exception in a worker, which the loader raises again, stays as it is.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if not _is_of_killed_worker(error):
            raise
        if threading.current_thread() is threading.main_thread():
            # The loader's signal handler would raise again for each other worker while they are shut down.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise InputError(
            f"a worker process that reads images was killed, often by the system for lack of memory: {advice}"
        ) from None


def _is_of_killed_worker(error: Exception) -> bool:
    """Whether the loader says so, or reading from the pipe of a worker has failed."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(module.startswith("multiprocessing.") for module in modules)


def init_worker(_: int) -> None:
    """``worker_init_fn`` of a loader: the worker ends if its parent terminates it or dies, and on no other signal.

    Ctrl-C and most service managers and schedulers signal all processes of a group at once. If workers ended then, the
    parent could not finish and save the current step. So SIGINT is ignored, and SIGTERM is obeyed only if the parent
    sent it, as multiprocessing does when the parent exits after an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    parent = end_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_sigterm_from, args=(parent,), daemon=True).start()


def end_with_parent() -> int:
    """Lets the kernel kill this process when its parent ends, on Linux; returns the parent."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)
    return parent


def _exit_on_sigterm_from(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
