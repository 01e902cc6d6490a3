"""Importing the package: threads, allocator, files, signal handlers and warnings of the process stay as they are."""

from pathlib import Path

import pytest

from tests.helpers import run_code

# The libraries come first: what they change is not ours.
CODE = """
import ctypes, importlib, logging, os, pkgutil, random, signal, sys, threading, warnings
import faiss, jsonargparse, matplotlib, numpy, safetensors.torch, sklearn.cluster, timm, torch, torchvision
from torch.utils import tensorboard

def state():
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), faiss.omp_get_max_threads()),
        "threads of the process": [line for line in open("/proc/self/status") if line.startswith("Threads")],
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "open files": os.listdir("/proc/self/fd"),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "warnings": list(warnings.filters),
        "hooks": (sys.excepthook, threading.excepthook, warnings.showwarning, warnings.formatwarning),
        "environment": dict(os.environ),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "random": (torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate()),
        "arithmetic": (
            torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
        ),
        "figures": matplotlib.get_backend(auto_select=False),
        "folder": os.getcwd(),
        "settings of the C library": [name for name in called if name in ("mallopt", "prctl", "setrlimit")],
    }

called, lookup = [], ctypes.CDLL.__getattr__
ctypes.CDLL.__getattr__ = lambda library, name: (called.append(name), lookup(library, name))[1]
before = state()
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
print(len(names), [key for key in before if before[key] != after[key]], failed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="threads and files are read from Linux's /proc")
def test_importing_every_module_changes_nothing_in_the_process() -> None:
    count, _, rest = run_code(CODE).strip().partition(" ")
    assert int(count) > 150
    assert rest.startswith("[] "), rest
