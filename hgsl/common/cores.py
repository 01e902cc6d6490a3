"""Processor cores: how many this process may use, and whether OpenMP threads share them with other work.

A thread of OpenMP that waits for the others spins: it occupies a core. Where cores are shared, also with loader
processes, the thread that is waited for then runs late, and a step takes many times as long.
"""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container under cgroups 2: "200000 100000", or "max 100000"
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
    """Returns a warning if ``threads`` of one process share their cores with each other or with other work, or None."""
    cores, load = available_cores(), os.getloadavg()[0]
    if threads == 1:
        return None
    if threads > cores:
        return f"{threads} threads share {cores} cores, which slows every step: set run.threads {cores}"
    if load + threads > cores + 1:
        return (
            f"other work occupies {load:.1f} of {cores} cores (load average), which slows every step of {threads} "
            "threads: end it, or set run.threads lower"
        )
    return None
