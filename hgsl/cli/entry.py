"""``hgsl``, ``python -m hgsl`` and ``hgsl-NAME``: the entry points of every command.

This module imports next to nothing, so that Ctrl-C is handled as soon as Python runs the first line of a command.
"""

import sys
from importlib import import_module

from hgsl.cli._interrupt import exit_on_interrupt

# Name -> (module, one line of help); each is also installed as hgsl-NAME.
COMMANDS = {
    "train": ("hgsl.cli.train", "Train an embedding model and measure retrieval."),
    "eval": ("hgsl.cli.eval_retrieval", "Measure retrieval of a model or of embeddings."),
    "tune": ("hgsl.cli.tune", "Search settings on folds of the training classes."),
    "compare": ("hgsl.cli.compare", "Put reports side by side."),
    "search": ("hgsl.cli.search", "Index a folder of images, query it, serve it."),
    "export": ("hgsl.cli.export", "Export a model to ONNX, OpenVINO, torch.export or the Hub."),
    "sparsify": ("hgsl.cli.sparsify", "Search a sparse sub-network (a ticket)."),
    "prepare": ("hgsl.cli.prepare_dataset", "Download, verify and audit a data set."),
}


def main(arguments: "list[str] | None" = None) -> int:
    """Runs the command that the first argument names, and returns its exit code; 2 for an unknown command."""
    if arguments is None:
        exit_on_interrupt()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0].startswith("-"):
        run = import_module("hgsl.cli._main").run
        return int(run(lambda: _print_summary(words), ends_process=arguments is None))
    name, *words = words
    if name not in COMMANDS:
        print(f"error: {import_module('hgsl.common.errors').unknown('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"hgsl {name}", *words]  # the usage line names the command as it was typed
    return _run(name, None if arguments is None else words)


def train() -> int:
    """``hgsl-train``."""
    return _start("train")


def evaluate() -> int:
    """``hgsl-eval``."""
    return _start("eval")


def tune() -> int:
    """``hgsl-tune``."""
    return _start("tune")


def compare() -> int:
    """``hgsl-compare``."""
    return _start("compare")


def search() -> int:
    """``hgsl-search``."""
    return _start("search")


def export() -> int:
    """``hgsl-export``."""
    return _start("export")


def sparsify() -> int:
    """``hgsl-sparsify``."""
    return _start("sparsify")


def prepare() -> int:
    """``hgsl-prepare``."""
    return _start("prepare")


def _print_summary(words: "list[str]") -> None:
    print(import_module("hgsl.cli._summary").summarize(words, COMMANDS))


def _start(name: str) -> int:
    exit_on_interrupt()
    return _run(name, None)


def _run(name: str, arguments: "list[str] | None") -> int:
    module, _ = COMMANDS[name]
    return int(import_module(module).main(arguments))
