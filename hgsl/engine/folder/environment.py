"""Software versions and machine of a run, as recorded in its folder and report."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hgsl.version import __version__


def environment() -> dict[str, Any]:
    """Returns the content of ``environment.json``."""
    return {"versions": versions(), "machine": machine()}


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
