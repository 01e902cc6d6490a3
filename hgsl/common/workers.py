"""Signals of the worker processes of a data loader."""

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1


def init_worker(_: int) -> None:
    """``worker_init_fn`` of a loader: the worker ends when its parent says so or dies, and on no other signal.

    Ctrl-C, and most that stop a service or a job, signal all processes of a group at once. A worker that died of it
    would take with it the step that its parent means to finish and save. So SIGINT is ignored, and SIGTERM counts only
    if the parent sent it, as multiprocessing does when the parent exits after an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_when_told_by, args=(parent,), daemon=True).start()


def _exit_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
