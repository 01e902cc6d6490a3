from collections.abc import Callable, Iterator

import pytest
import torch
from torch import backends

from hgsl.common.precision import SWITCHES, float32_products


def switches() -> list[str]:
    return [getattr(getattr(backends, backend), operation).fp32_precision for backend, operation in SWITCHES]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with float32_products():  # restores whatever a test leaves
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = True  # PyTorch's defaults
        yield


SETTINGS: dict[str, Callable[[], object]] = {
    "the defaults": lambda: None,
    "the older interface": lambda: torch.set_float32_matmul_precision("medium"),
    "convolutions": lambda: setattr(backends.cudnn, "allow_tf32", False),
    "the newer interface": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    "one operation": lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("set_before", SETTINGS.values(), ids=SETTINGS)
def test_float32_is_ieee_within_the_context_and_the_settings_return(set_before: Callable[[], object]) -> None:
    set_before()
    before = switches()
    with float32_products():
        assert not {"tf32", "bf16"} & set(switches())
        assert torch.get_float32_matmul_precision() == "highest"
        assert backends.cudnn.allow_tf32 is False
    assert switches() == before
    with pytest.raises(KeyError), float32_products(tf32=True):
        assert switches() == ["tf32"] * 4
        raise KeyError
    assert switches() == before


def test_a_precision_of_all_backends_is_not_inherited() -> None:
    before = backends.fp32_precision
    backends.fp32_precision = "tf32"
    try:
        with float32_products():
            assert set(switches()) == {"ieee"}
    finally:
        backends.fp32_precision = before
