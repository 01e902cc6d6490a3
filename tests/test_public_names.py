"""The public names, written down once: removing one breaks somebody's code, and this test."""

import pytest

import hgsl
from tests.helpers import run_code

NAMES = {
    "HardGlobalSoftminLoss",
    "SearchIndex",
    "SoftMaskedConv2d",
    "SoftMaskedLinear",
    "build_dataset",
    "create_embedder",
    "evaluate_embeddings",
    "load_embedder",
    "push_to_hub",
    "save_pretrained",
    "sparsify",
}


def test_public_names() -> None:
    assert set(hgsl.__all__) >= NAMES | {"__version__"}
    for name in NAMES:
        assert callable(getattr(hgsl, name)), name
    assert set(hgsl.__all__) <= set(dir(hgsl))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'HardLocalLoss'"):
        _ = hgsl.HardLocalLoss


def test_import_alone_loads_nothing_heavy() -> None:
    code = "import sys, hgsl; print(sorted({'torch', 'faiss', 'timm', 'torchvision', 'sklearn'} & set(sys.modules)))"
    assert run_code(code).strip() == "[]"


def test_the_loss_and_the_masks_need_neither_backbones_nor_search() -> None:
    code = """
import sys, hgsl
hgsl.HardGlobalSoftminLoss, hgsl.sparsify
print(sorted({'faiss', 'timm', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)))
"""
    assert run_code(code).strip() == "[]"
