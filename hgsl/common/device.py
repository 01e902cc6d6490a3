"""Devices and dtypes by name; ``auto`` selects the best that this machine supports."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hgsl.common.device_names import ABSENT
from hgsl.common.errors import InputError, unknown

DEVICES = ("auto", "cuda", "mps", "cpu")
FAST_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))  # compute capabilities of P100, V100, A100, H100 and B200
# Name -> dtype of autocast; tf32 is float32 with products in TensorFloat-32, see hgsl.common.precision.
PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def pick_device(name: str = "auto") -> torch.device:
    """Returns the device for ``auto`` (the best one present), ``cuda`` (also ``cuda:1``), ``mps`` or ``cpu``.

    Raises:
        InputError: The name is unknown, or this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device_type, _, number = name.partition(":")
    if device_type not in DEVICES or device_type == "auto" or (number and not number.isdigit()):
        raise unknown("device", name, DEVICES)
    present = {
        "cuda": torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not present[device_type]:
        raise InputError(f"device {name!r} {ABSENT}")
    return torch.device(name)


def check_device(device: torch.device | str) -> torch.device:
    """Returns ``device``, or what ``auto`` selects, as a ``torch.device``.

    Raises:
        InputError: The name is unknown, or this machine has no such device.
    """
    if device == "auto":
        return pick_device()
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError):
        raise unknown("device", str(device), DEVICES) from None
    if checked.type in DEVICES:
        return pick_device(str(checked))
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if checked.type != "meta" and (accelerator is None or accelerator.type != checked.type):
        raise InputError(f"device {str(checked)!r} {ABSENT}")
    return checked


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that a network computes in on ``device``.

    ``auto`` is bfloat16 where the hardware supports it natively (AMX or AVX-512 BF16 on x86, BF16 on ARM, compute
    capability 8 and up on CUDA), float16 on older CUDA devices (the caller then needs a gradient scaler), and float32
    elsewhere: without native support, bfloat16 on a CPU can be hundreds of times slower than float32. A run also
    considers its network: see ``hgsl.engine.runtime``.

    Raises:
        InputError: The name is unknown, or float16 or tf32 is asked for on a CPU.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else torch.float32
    if name not in PRECISIONS:
        raise unknown("precision", name, ("auto", *PRECISIONS))
    if name in ("float16", "tf32") and device.type == "cpu":
        raise InputError(f"precision {name!r} needs a GPU: on a CPU use 'auto', 'bfloat16' or 'float32'")
    return PRECISIONS[name]


def widest_float(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 on MPS, which has no wider type."""
    return torch.float32 if device.type == "mps" else torch.float64


def cpu_has_bfloat16() -> bool:
    """Whether this processor has bfloat16 matrix or dot-product instructions."""
    if hasattr(torch.cpu, "get_capabilities"):  # missing in the oldest supported torch
        return _cpu_has("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def cpu_has_amx() -> bool:
    """Whether this processor has matrix units for bfloat16, several times as fast as its float32 products.

    On these processors, the float32 products of torch were measured to outrun those of FAISS, too.
    """
    return _cpu_has("amx_bf16")


def cpu_has_int8() -> bool:
    """Whether this processor has 8-bit dot products, of which the sums do not overflow."""
    return _cpu_has("avx512_vnni", "avx_vnni", "dot", "i8mm")


def _cpu_has(*names: str) -> bool:
    get_capabilities: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    capabilities = get_capabilities()
    return any(bool(capabilities.get(name)) for name in names)


def has_fast_float64(device: torch.device) -> bool:
    """Whether float64 products cost little more than float32 ones: on NVIDIA's cards for data centers.

    Consumer cards run them at 1/64 of the speed of float32, and MPS has none.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in FAST_FLOAT64


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a dtype as in ``PRECISIONS``.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
