"""Processor cores: how many this process may use, and whether OpenMP threads share them with other work.

A thread of OpenMP that waits for the others spins: it occupies a core. Where cores are shared, also with loader
processes, the thread that is waited for then runs late, and a step takes many times as long.
"""

import math
import os
import time
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container under cgroups 2: "200000 100000", or "max 100000"
STAT = Path("/proc/stat")  # of Linux: since the start of the machine, what its processors did
OBSERVED_SECONDS = 0.2
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # of the OpenMP of GCC, and of Intel and LLVM


def available_cores() -> int:
    """Returns the number of cores that this process may use: of its affinity and of a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()
        return min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or no limit
        return cores


def wait_without_spinning() -> None:
    """Lets OpenMP threads sleep while they wait, unless the environment says how to wait; before torch is imported."""
    if not WAITING.keys() & os.environ.keys():
        os.environ.update(WAITING)


def shared_cores(threads: int) -> str | None:
    """Returns a warning if ``threads`` of one process share their cores with each other or with other work, or None.

    Observes the machine for a moment: its load average would still count what has just ended.
    """
    cores = available_cores()
    if threads == 1:
        return None
    if threads > cores:
        return f"{threads} threads share {cores} cores, which slows every step: set run.threads {cores}"
    machine, busy = os.cpu_count() or cores, cores_of_others(OBSERVED_SECONDS)
    if busy + threads > machine + 0.5:
        return (
            f"other work occupies {busy:.1f} of the machine's {machine} cores, which slows every step of {threads} "
            "threads: end it, or set run.threads lower"
        )
    return None


def cores_of_others(seconds: float) -> float:
    """Returns how many cores other processes occupy, observed for ``seconds``; 0 where the system does not say."""
    try:
        start, own, ticks = time.monotonic(), time.process_time(), _busy_ticks()
        time.sleep(seconds)
        busy = (_busy_ticks() - ticks) / os.sysconf("SC_CLK_TCK") - (time.process_time() - own)
    except (OSError, ValueError):
        return 0.0
    return max(0.0, busy / (time.monotonic() - start))


def _busy_ticks() -> int:
    """Ticks of all processors in "user", "nice", "system", "irq", "softirq" and "steal" together."""
    counts = [int(count) for count in STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return sum(counts[:3]) + sum(counts[5:])
