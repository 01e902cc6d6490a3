"""A session of Ray: of a cluster that is running, or of processes on this machine, which end with this one."""

import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hgsl.common.cores import available_cores
from hgsl.common.errors import InputError, first_line
from hgsl.common.extras import require

LOCAL = "local"
PREFIX = "hgsl-ray-"  # of temporary folders
MAX_BASE = 12  # characters of the folder they are in: the path of a socket in them may have 107
OBJECT_STORE = 512 << 20  # bytes of shared memory on this machine: the model and lists of images pass through it
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's authors
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # errors are raised, not printed
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # processes without a GPU see none
}


@contextmanager
def ray_session(address: str | None = None) -> Iterator[Any]:
    """Connects to a cluster of Ray, or starts Ray on this machine, and yields the module ``ray``.

    A session that the caller has begun is used, and stays. Processes on this machine end with this process, however it
    ends (on Linux). They listen on all interfaces, and refuse who has not their random token,
    unless the caller has imported Ray before.

    Args:
        address: Of a cluster, such as ``auto`` for the one that this machine belongs to; by default that in the
            environment variable RAY_ADDRESS, else processes on this machine.

    Raises:
        InputError: Ray is not installed or does not start, or there is no cluster at the address.
    """
    require("ray", "--engine ray")
    target = address or os.environ.get("RAY_ADDRESS") or LOCAL
    variables = dict(ENVIRONMENT)
    if target == LOCAL and "ray" not in sys.modules:  # whose import reads the token
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    ray: Any = import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    folder = _temporary_folder() if target == LOCAL else None
    watch: subprocess.Popen[bytes] | None = None
    try:
        _connect(ray, target, folder)
        watch = _watch_processes() if folder is not None else None
        yield ray
    finally:
        ray.shutdown()
        if watch is not None:
            watch.communicate()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, target: str, folder: str | None) -> None:
    options: dict[str, Any] = {"address": target, "log_to_driver": False, "logging_level": logging.ERROR}
    if folder is not None:
        options |= {
            "num_cpus": available_cores(),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
            "_temp_dir": folder,
        }
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _silent_stderr():
            ray.init(**options)
    except Exception as error:  # a plain one if it does not start in time
        what = "Ray does not start on this machine" if folder is not None else f"no Ray cluster at {target}"
        raise InputError(f"{what}: {first_line(error)}") from None
    finally:
        if in_main_thread:  # Ray replaces it
            signal.signal(signal.SIGTERM, handler)


def _watch_processes() -> "subprocess.Popen[bytes]":
    """Starts a shell that waits for the end of this process, and kills those of Ray that still run then.

    The kernel kills most of them, but not the grandchildren, of which some would run for another minute.
    """
    script = """cat
    for process; do
        case $(tr '\\0' ' ' <"/proc/$process/cmdline") in *ray*) kill -KILL "$process" ;; esac
    done"""
    command = ["sh", "-c", script, "sh", *map(str, descendants(os.getpid()))]
    devnull = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=devnull, stderr=devnull, start_new_session=True)


def descendants(process: int) -> list[int]:
    """The processes below one, also those that it started through others; on Linux, elsewhere none."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    below = list(children.get(process, []))
    for child in below:  # which grows
        below += children.get(child, [])
    return below


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what libraries print to the standard error stream of the process: Ray reports its log level."""
    copy = os.dup(2)
    try:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(copy, 2)
        os.close(copy)


def _temporary_folder() -> str:
    """Creates a folder, and removes those that killed processes have left."""
    base = Path(tempfile.gettempdir())
    base = base if len(str(base)) <= MAX_BASE else Path("/tmp")
    for folder in base.glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdecimal() and not _is_running(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
