"""Software versions, machine and start of a run, as recorded in its folder and report."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hgsl.version import __version__


def environment() -> dict[str, Any]:
    """Returns the content of ``environment.json``."""
    return {"versions": versions(), "machine": machine(), "start": start()}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that affect the results of a run."""
    numbers = {"hgsl": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "pillow"):
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "missing"
    return numbers


def machine() -> dict[str, str | int]:
    """Returns processor, threads and accelerator."""
    description: dict[str, str | int] = {
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        description["gpu"] = torch.cuda.get_device_name()
    return description


def start() -> dict[str, str]:
    """Returns date, command line, and the commits of hgsl's source and of the working directory, where there are any.

    A commit with changes that are not committed ends in ``+changes``.
    """
    source = Path(__file__)
    commits = {
        "commit": commit_of(source.parent, source.name),
        "commit_of_working_directory": commit_of(Path.cwd()),
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command_line(),
        **{name: commit for name, commit in commits.items() if commit},
    }


def _command_line() -> str:
    program, *words = sys.argv
    names = program.split() if program.startswith("hgsl ") else [program]  # the command hgsl sets both words as one
    return shlex.join([*names, *words])


def commit_of(folder: Path, tracked: str | None = None) -> str | None:
    """Returns the commit that is checked out in the git repository around ``folder``; None without one, or git.

    Args:
        folder: A folder of the repository.
        tracked: A file in ``folder`` that must be under version control, which an installed package is not.
    """
    try:
        if tracked:
            _git(folder, "ls-files", "--error-unmatch", tracked)
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    # A repository may name a program in core.fsmonitor, which git status would start.
    command = ["git", "-C", str(folder), "--no-optional-locks", "-c", "core.fsmonitor=false", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
