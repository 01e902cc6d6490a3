"""Signals and the end of worker processes: of a data loader, and of a cluster."""

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1


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
