"""What the processes that read images for a loader have in common."""

import signal


def ignore_signals(_: int) -> None:
    """``worker_init_fn`` of a loader: leaves SIGINT and SIGTERM to the process that the worker reads for.

    Ctrl-C, and most that stop a service or a job, signal all processes of a group at once. A worker that died of it
    would take with it the step that its process means to finish and save. Workers end when their process does.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
