"""``hgsl`` and ``python -m hgsl``: which commands there are, and what this installation can do."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from hgsl.common.extras import EXTRAS, missing
from hgsl.version import __version__

COMMANDS = {
    "hgsl-train": "train an embedding model and measure it",
    "hgsl-eval": "measure retrieval of a model or of embeddings",
    "hgsl-compare": "put reports side by side",
    "hgsl-search": "search a folder of photos",
    "hgsl-export": "export a model to ONNX, torch.export or the Hub",
    "hgsl-sparsify": "search a sparse sub-network",
    "hgsl-prepare-dataset": "fetch, verify and audit a data set",
}
PACKAGES = ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "pillow", "safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code 0; unknown flags end in argparse's 2."""
    listed = "\n".join(f"  {name:<22}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="hgsl",
        description=f"Fine-grained image retrieval. The commands, each with --help:\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="what is installed, and what auto picks here")
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    print(about() if flags.version else parser.format_help().rstrip())
    return 0


def about() -> str:
    """Versions, the device and precision that ``auto`` stands for on this machine, and the extras, a line each."""
    import torch

    from hgsl.common.device import pick_device, pick_precision

    device = pick_device("auto")
    precision = str(pick_precision("auto", device)).removeprefix("torch.")
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    lines = [
        f"hgsl {__version__}",
        f"python {sys.version.split()[0]}, " + ", ".join(f"{package} {_version(package)}" for package in PACKAGES),
        f"auto picks: device {device}{name}, precision {precision}, {torch.get_num_threads()} threads",
    ]
    for extra in EXTRAS:
        absent = missing(extra)
        state = f"missing {', '.join(absent)}: pip install 'hgsl[{extra}]'" if absent else "installed"
        lines.append(f"extra [{extra}]: {state}")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
