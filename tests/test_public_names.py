"""Public names of the package, and what importing it loads."""

import ast
import importlib
import inspect

import pytest

import hgsl
from tests.helpers import run_code

NAMES = {
    "Callback",
    "HardGlobalSoftminLoss",
    "InputError",
    "SearchIndex",
    "SoftMaskedConv2d",
    "SoftMaskedLinear",
    "build_dataset",
    "create_embedder",
    "evaluate_embeddings",
    "load_config",
    "load_embedder",
    "push_to_hub",
    "save_pretrained",
    "sparsify",
    "train",
}


def test_public_names() -> None:
    assert set(hgsl.__all__) >= NAMES | {"__version__"}
    for name in NAMES:
        assert callable(getattr(hgsl, name)), name
    assert set(hgsl.__all__) <= set(dir(hgsl))


def test_signatures_are_readable_in_help() -> None:
    for name in NAMES - {"InputError"}:
        value = getattr(hgsl, name)
        methods = [method for key, method in vars(value).items() if inspect.isfunction(method) and key[0] != "_"]
        for function in [value, *(methods if inspect.isclass(value) else [])]:
            text = str(inspect.signature(function))
            assert len(text) < 900, f"{function.__qualname__}: {len(text)} characters"
            assert "Union[" not in text, function.__qualname__
    assert "labels: 'Array'" in str(inspect.signature(hgsl.evaluate_embeddings))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'HardLocalLoss'"):
        _ = hgsl.HardLocalLoss


@pytest.mark.slow
def test_subpackages_are_imported_on_first_use() -> None:
    code = """
import sys, hgsl
print(sorted(name for name in sys.modules if name.startswith("hgsl.")))
print(hgsl.losses.sparse_optimizer.__name__, hgsl.search.build_index.__name__, hgsl.export.quantize.__name__)
"""
    assert run_code(code).split("\n")[:2] == ["['hgsl.version']", "sparse_optimizer build_index quantize"]
    assert {"data", "evaluation", "export", "losses", "models", "search", "sparsity"} <= set(dir(hgsl))


@pytest.mark.parametrize("package", ["hgsl", "hgsl.search"])
def test_a_type_checker_knows_the_public_names_and_no_others(package: str) -> None:
    """A checker reads what is under TYPE_CHECKING; if it saw ``__getattr__``, misspelled names would be of type Any."""
    module = importlib.import_module(package)
    tree = ast.parse(inspect.getsource(module))
    assert "__getattr__" not in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    branches = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for branch in branches for node in branch.body if isinstance(node, ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    assert names | {"__version__"} >= set(dir(module)) & set(module.__all__)
    if package == "hgsl":
        assert names | {"__version__"} == set(dir(hgsl))


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
