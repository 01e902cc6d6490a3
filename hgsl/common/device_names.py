"""Names of devices, checked before torch is imported as far as the system knows which devices are present."""

import ctypes
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from hgsl.common.errors import InputError

DEVICE_TYPES = ("auto", "cpu", "mps", "cuda")
ABSENT = "is not present on this machine: use auto or cpu"
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def check_device_name(name: str, setting: str) -> None:
    """Checks the form of a device name, and that the device is not certain to be absent; torch decides the other cases.

    Args:
        name: The device.
        setting: The setting or flag, for the message.

    Raises:
        InputError: The name has another form than auto, cpu, mps, cuda or cuda:N, or there is no such device.
    """
    device_type, colon, number = name.partition(":")
    if device_type not in DEVICE_TYPES or (colon and (device_type != "cuda" or not number.isdigit())):
        raise InputError(f"unknown {setting} {name!r}: use auto, cpu, mps, cuda or cuda:N, such as cuda:1")
    if device_type == "mps" and sys.platform != "darwin":
        raise InputError(f"{setting} {name!r} {ABSENT}")
    if device_type == "cuda":
        count = max_cuda_devices()
        if count is not None and int(number or 0) >= count:
            raise InputError(f"{setting} {name!r} {ABSENT}{f', or cuda:0 to cuda:{count - 1}' if count else ''}")


def max_cuda_devices() -> int | None:
    """Returns how many CUDA devices torch can find at most, or None if only torch can know.

    A build of torch for ROCm has devices of this name without the driver of NVIDIA.
    """
    builds = torch_builds()
    if builds is None or "hip" in builds or not sys.platform.startswith("linux"):
        return None
    if "cuda" not in builds:
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # torch loads this library, too
        return 0
    count = ctypes.c_int()
    status = driver.cuInit(0)
    if status == NO_DEVICE:
        return 0
    if status or driver.cuDeviceGetCount(ctypes.byref(count)):
        return None
    return count.value


def torch_builds() -> set[str] | None:
    """Returns the backends (cuda, hip, xpu, ...) that the installed torch was built for; None if it cannot be read."""
    package = find_spec("torch")
    try:
        source = Path(str(package and package.origin)).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    assigned = re.findall(r"^(\w+)\b[^=\n]*= (.*)$", source, re.MULTILINE)
    if "cuda" not in dict(assigned):
        return None
    return {name for name, value in assigned if value.strip() not in ("None", "''")}
