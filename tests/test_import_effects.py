"""Importing the package: threads, allocator, signal handlers and warnings of the process stay as they are."""

import pytest

from tests.helpers import run_code

# The libraries come first: what they change is not ours.
CODE = """
import ctypes, importlib, logging, os, pkgutil, signal, sys, warnings
import faiss, jsonargparse, matplotlib, numpy, safetensors.torch, sklearn.cluster, timm, torch, torchvision
from torch.utils import tensorboard

def state():
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), faiss.omp_get_max_threads()),
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "warnings": list(warnings.filters),
        "hooks": (sys.excepthook, warnings.showwarning, warnings.formatwarning),
        "environment": dict(os.environ),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "random": (torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()),
        "arithmetic": (
            torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
        ),
        "figures": matplotlib.get_backend(auto_select=False),
        "folder": os.getcwd(),
    }

before, loaded, load = state(), [], ctypes.CDLL
ctypes.CDLL = lambda name, *words, **options: (loaded.append(name), load(name, *words, **options))[1]
import hgsl
names = [module.name for module in pkgutil.walk_packages(hgsl.__path__, "hgsl.")]
names.remove("hgsl.__main__")
failed = []
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:  # of an extra that is not installed
        failed.append(str(error))
after = state()
print(len(names), None in loaded, [key for key in before if before[key] != after[key]], failed)
"""


@pytest.mark.slow
def test_importing_every_module_changes_nothing_in_the_process() -> None:
    count, _, rest = run_code(CODE).strip().partition(" ")
    assert int(count) > 150
    assert rest.startswith("False [] "), rest
