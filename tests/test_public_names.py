"""Public names of the package, and what importing it loads and changes."""

import inspect
from pathlib import Path

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


SIDE_EFFECTS = """
import ctypes, os, random, signal, sys, threading, warnings

def state():
    status = open("/proc/self/status").read().splitlines()
    return {
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "hooks": (sys.excepthook, threading.excepthook, warnings.formatwarning, warnings.showwarning),
        "warnings filters": list(warnings.filters),
        "threads": next(line for line in status if line.startswith("Threads")),
        "open files": os.listdir("/proc/self/fd"),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "random state": random.getstate(),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "settings of the C library": [name for name in called if name in ("mallopt", "prctl", "setrlimit")],
    }

called = []
lookup = ctypes.CDLL.__getattr__
ctypes.CDLL.__getattr__ = lambda library, name: (called.append(name), lookup(library, name))[1]
for module in sys.argv[1].split():
    __import__(module)  # other libraries, which do what they do
before = state()
for module in sys.argv[2].split():
    __import__(module)
after = state()
print(*(name for name in before if before[name] != after[name]), sep=", ")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="threads and files are read from Linux's /proc")
@pytest.mark.parametrize(
    ("libraries", "imported"),
    [
        ("", "hgsl"),
        (
            "torch torchvision timm faiss matplotlib.pyplot sklearn.cluster sklearn.decomposition sklearn.manifold "
            "torch.utils.tensorboard",  # which imports boto3 where it is installed
            "hgsl.losses hgsl.models hgsl.sparsity hgsl.data hgsl.evaluation hgsl.search hgsl.engine.run hgsl.cli",
        ),
    ],
)
def test_an_import_changes_nothing_in_the_process(libraries: str, imported: str) -> None:
    assert run_code(SIDE_EFFECTS, libraries, imported).strip() == ""
