"""Absent devices, found without torch, and never refused where torch finds them."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hgsl.common import device_names
from hgsl.common.device_names import check_device_name, max_cuda_devices, torch_builds
from hgsl.common.errors import InputError


def _driver(status: int, count: int) -> SimpleNamespace:
    def get_count(target: object) -> int:
        target._obj.value = count  # type: ignore[attr-defined]
        return status

    return SimpleNamespace(cuInit=lambda _: status, cuDeviceGetCount=get_count)


@pytest.mark.parametrize(
    ("builds", "driver", "expected"),
    [
        ({"cuda"}, _driver(0, 2), 2),
        ({"cuda"}, _driver(100, 0), 0),  # a driver without a device
        ({"cuda"}, _driver(999, 0), None),  # a failure that torch reports
        ({"cuda"}, None, 0),
        (set(), None, 0),  # a build for the CPU alone
        ({"hip"}, None, None),  # AMD: devices named cuda without this driver
        (None, None, None),
    ],
)
def test_the_number_of_cuda_devices(
    builds: set[str] | None, driver: SimpleNamespace | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> SimpleNamespace:
        if driver is None:
            raise OSError
        return driver

    monkeypatch.setattr(device_names.sys, "platform", "linux")
    monkeypatch.setattr(device_names, "torch_builds", lambda: builds)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert max_cuda_devices() == expected
    for number in range(3):
        if expected is not None and number >= expected:
            with pytest.raises(InputError, match=f"run.device 'cuda:{number}' is not present on this machine"):
                check_device_name(f"cuda:{number}", "run.device")
        else:
            check_device_name(f"cuda:{number}", "run.device")


def test_what_torch_finds_is_not_refused() -> None:
    for number in range(torch.cuda.device_count()):
        check_device_name(f"cuda:{number}", "run.device")
    if torch.cuda.is_available():
        check_device_name("cuda", "run.device")
    if torch.backends.mps.is_available():
        check_device_name("mps", "run.device")
    for name in ("auto", "cpu"):
        check_device_name(name, "run.device")
    builds = torch_builds()
    assert builds is not None
    assert ("cuda" in builds) == (torch.version.cuda is not None)
    assert ("hip" in builds) == (torch.version.hip is not None)


def test_an_unreadable_version_of_torch_decides_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find: Callable[[str], SimpleNamespace] = lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py"))  # noqa: E731
    monkeypatch.setattr(device_names, "find_spec", find)
    assert torch_builds() is None
    (tmp_path / "version.py").write_text("__version__ = '3'\n")
    assert torch_builds() is None
    (tmp_path / "version.py").write_text("from typing import Optional\ncuda = '13.0'\nhip: Optional[str] = None\n")
    assert torch_builds() == {"cuda"}
