"""``hgsl --help`` and ``hgsl --version``: the commands, and a summary of the installation."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from hgsl.cli._help import HelpFormatter
from hgsl.common.extras import EXTRAS, missing
from hgsl.common.tables import count_of
from hgsl.version import __version__

PACKAGES = ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "pillow", "safetensors")


class _SummaryHelpFormatter(argparse.RawDescriptionHelpFormatter, HelpFormatter):
    """The help format of every command, with the list of commands as it is."""


def summarize(words: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> str:
    """Returns the list of commands or, with ``--version``, the summary of the installation."""
    listed = "\n".join(f"  {name:<10}{text}" for name, (_, text) in commands.items())
    parser = argparse.ArgumentParser(
        prog="hgsl",
        usage="hgsl [-h] [--version] COMMAND ...",
        description=f"Fine-grained image retrieval. The commands, each with --help:\n\n{listed}",
        formatter_class=_SummaryHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="Print versions, and the device and precision of auto.")
    flags = parser.parse_args(words)
    return about() if flags.version else parser.format_help().rstrip()


def about() -> str:
    """Returns versions, the device and precision that ``auto`` stands for on this machine, and one line per extra."""
    import torch

    from hgsl.common.device import cpu_has_amx, dtype_name, pick_device, pick_precision

    device = pick_device("auto")
    precision = dtype_name(pick_precision("auto", device))
    if device.type == "cpu" and precision != "float32" and not cpu_has_amx():
        precision += " (float32 for networks with depthwise convolutions)"
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    lines = [
        f"hgsl {__version__}",
        f"python {sys.version.split()[0]}, " + ", ".join(f"{package} {_version(package)}" for package in PACKAGES),
        f"auto picks: device {device}{name}, precision {precision}, {count_of(torch.get_num_threads(), 'thread')}",
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
