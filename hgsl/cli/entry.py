"""``hgsl`` and ``python -m hgsl``: one entry point for every command, and a summary of the installation."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from hgsl.cli._help import HelpFormatter
from hgsl.common.errors import unknown
from hgsl.common.extras import EXTRAS, missing
from hgsl.version import __version__

# Name -> (module, one line of help); each is also installed as hgsl-NAME.
COMMANDS = {
    "train": ("hgsl.cli.train", "Train an embedding model and measure retrieval."),
    "eval": ("hgsl.cli.eval_retrieval", "Measure retrieval of a model or of embeddings."),
    "tune": ("hgsl.cli.tune", "Search settings on folds of the training classes."),
    "compare": ("hgsl.cli.compare", "Put reports side by side."),
    "search": ("hgsl.cli.search", "Index a folder of images, query it, serve it."),
    "export": ("hgsl.cli.export", "Export a model to ONNX, torch.export or the Hub."),
    "sparsify": ("hgsl.cli.sparsify", "Search a sparse sub-network (a ticket)."),
    "prepare": ("hgsl.cli.prepare_dataset", "Download, verify and audit a data set."),
}
PACKAGES = ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "pillow", "safetensors")


class _EntryHelpFormatter(argparse.RawDescriptionHelpFormatter, HelpFormatter):
    """The help format of every command, with the list of commands as it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, and returns its exit code; 2 for an unknown command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-"):
        return _run_command(words[0], words[1:], ends_process=arguments is None)
    listed = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="hgsl",
        usage="hgsl [-h] [--version] COMMAND ...",
        description=f"Fine-grained image retrieval. The commands, each with --help:\n\n{listed}",
        formatter_class=_EntryHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="Print versions, and the device and precision of auto.")
    flags = parser.parse_args(words)
    print(about() if flags.version else parser.format_help().rstrip())
    return 0


def _run_command(name: str, words: list[str], *, ends_process: bool) -> int:
    if name not in COMMANDS:
        print(f"error: {unknown('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"hgsl {name}", *words]  # the usage line names the command as it was typed
    module, _ = COMMANDS[name]
    try:
        return int(import_module(module).main(None if ends_process else words))
    except KeyboardInterrupt:  # during the imports; the command itself handles its own
        print("interrupted", file=sys.stderr)
        return 130


def about() -> str:
    """Returns versions, the device and precision that ``auto`` stands for on this machine, and one line per extra."""
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
