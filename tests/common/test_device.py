import pytest
import torch

from hgsl.common.device import check_device, cpu_has_bfloat16, pick_device, pick_precision
from hgsl.common.errors import InputError


def test_auto_is_a_device_that_works() -> None:
    torch.zeros(1, device=pick_device("auto"))


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        pick_device("cudaa")
    with pytest.raises(InputError, match="unknown device 'auto:1'"):
        pick_device("auto:1")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        check_device("gpu")


@pytest.mark.parametrize("device", [None, "", "cpu:x", "CPU", 2.5])
def test_what_is_no_device_is_refused_in_one_line(device: object) -> None:
    with pytest.raises(InputError, match="unknown device"):
        check_device(device)  # type: ignore[arg-type]


def test_devices_of_every_type_that_are_absent_are_refused() -> None:
    present = torch.accelerator.current_accelerator(check_available=True)
    for name in {"xpu", "hpu", "cuda", "mps", "cuda:77"} - {present.type if present else ""}:
        with pytest.raises(InputError, match="not present on this machine"):
            check_device(name)


def test_auto_is_checked_as_it_is_picked() -> None:
    assert check_device("auto") == pick_device("auto")


def test_a_device_that_is_present_is_taken_as_it_is_given() -> None:
    assert check_device(torch.device("cpu")) == check_device("cpu") == torch.device("cpu")
    assert check_device("meta").type == "meta"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_absent_device() -> None:
    for check in (pick_device, check_device):
        with pytest.raises(InputError, match="not present on this machine"):
            check("cuda")


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True}, False), ({"bf16": True}, True)],
)
def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch, found: dict, expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert cpu_has_bfloat16() is expected
    wanted = torch.bfloat16 if expected else torch.float32
    assert pick_precision("auto", torch.device("cpu")) == wanted


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float16), ((9, 0), torch.bfloat16)])
def test_precision_on_gpus(monkeypatch: pytest.MonkeyPatch, capability: tuple, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", torch.device("cuda")) == expected


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="needs a GPU"):
        pick_precision("float16", torch.device("cpu"))
