"""``hgsl-export``: export of a trained model to another runtime, to a folder for the Hub, or to the Hub itself."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgsl.cli._help import HelpFormatter
from hgsl.cli._main import run
from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError
from hgsl.common.extras import EXPORT_EXTRAS, require
from hgsl.common.files import read_json
from hgsl.common.model_source import WEIGHTS_NAME, check_model_source, check_repository

if TYPE_CHECKING:
    from hgsl.models import Embedder

DESCRIPTION = """Export a trained model. onnx, openvino and torch-export write a file that takes batches of any size,
and beside it a JSON file that specifies input, output and preprocessing; the exported file is compared with PyTorch
(1e-4) before it is kept. hub writes a folder with config.json, model.safetensors and a model card that states the
scores of the run."""
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torch-export": "model.pt2", "hub": "hub"}  # in the run folder
BELONGS_TO = {  # flag -> format
    **{"int8": "onnx", "keep_slower": "onnx", "root": "onnx"},
    **{"push": "hub", "private": "hub", "license": "hub"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument("run", metavar="RUN", help="Run folder, folder of --format hub, or OWNER/NAME on the Hub.")
    parser.add_argument("--format", choices=tuple(FILES), default="onnx", help="Format of the export.")
    names = ", ".join(f"RUN/{name}" for name in FILES.values())
    parser.add_argument("--out", metavar="PATH", help=f"File to write, or the folder of hub, in place of {names}.")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="Write 8-bit files as well, measure their speed and scores, and keep those that are faster (onnx).",
    )
    parser.add_argument("--keep-slower", action="store_true", help="Keep files of --int8 that are slower, too.")
    parser.add_argument("--root", metavar="DIR", help="Folder of the images of the run for --int8, if they were moved.")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="Upload the folder of hub with HF_TOKEN or `hf auth login`."
    )
    parser.add_argument("--private", action="store_true", help="Make the new repository of --push private.")
    parser.add_argument("--license", metavar="NAME", help="License of the weights for hub, such as apache-2.0.")
    return run(lambda: _export(parser.parse_args(arguments)), ends_process=arguments is None)


def _export(flags: argparse.Namespace) -> None:
    _check_flags(flags)
    path = _check_paths(flags)
    from hgsl.models import load_embedder

    model = load_embedder(flags.run)
    if flags.format == "hub":
        _to_hub(model, path, flags)
    else:
        _to_file(model, path, flags)


def _check_flags(flags: argparse.Namespace) -> None:
    """Checks that flags are not empty, contradictory or without effect."""
    for flag in ("out", "root", "push", "license"):
        if getattr(flags, flag) == "":
            raise InputError(f"--{flag} is empty: give a value, or leave it out")
    for flag, needed in BELONGS_TO.items():
        if getattr(flags, flag) and flags.format != needed:
            raise InputError(f"--{flag.replace('_', '-')} belongs to --format {needed}, not to {flags.format}")
    if flags.root and not flags.int8:
        raise InputError("--root names the images for --int8: give both")
    if flags.keep_slower and not flags.int8:
        raise InputError("--keep-slower keeps files of --int8: give both")
    if flags.private and not flags.push:
        raise InputError("--private belongs to --push: give both")
    if flags.push:
        check_repository(flags.push)
    if flags.format in EXPORT_EXTRAS:
        require(EXPORT_EXTRAS[flags.format], f"exporting to {flags.format}")


def _check_paths(flags: argparse.Namespace) -> Path:
    """Checks the paths to read and to write, before PyTorch is imported; returns the path to write."""
    check_model_source(flags.run)
    run = Path(flags.run)
    if flags.int8 and not (run / "config.yaml").is_file():
        raise InputError(f"--int8 is measured on the data set of a run, and {run} has no config.yaml")
    if flags.root and not Path(flags.root).is_dir():
        raise FileNotFoundError(f"no folder {flags.root}: --root is the folder with the images of the run")
    if not flags.out and not run.is_dir():
        raise InputError(f"{run} is on the Hub: name the file or folder to write with --out")
    path = Path(flags.out or run / FILES[flags.format])
    weights = run / WEIGHTS_NAME
    target = path / WEIGHTS_NAME if flags.format == "hub" else path
    check_writable(target, weights.stat().st_size if weights.is_file() else 0)
    return path


def _to_hub(model: "Embedder", folder: Path, flags: argparse.Namespace) -> None:
    from hgsl.models import push_to_hub, save_pretrained

    about: dict[str, Any] = {"report": _report(Path(flags.run)), "license": flags.license}
    save_pretrained(model, folder, name=flags.push, **about)
    print(f"written: {folder} (config.json, model.safetensors, README.md)")
    if flags.push:
        print(f"uploaded: {push_to_hub(model, flags.push, private=flags.private, **about)}")


def _report(folder: Path) -> dict[str, Any] | None:
    path = folder / "report.json"
    if not path.is_file():
        return None
    content = read_json(path, "the report of a run")
    return content if isinstance(content.get("after"), dict) else None


def _to_file(model: "Embedder", path: Path, flags: argparse.Namespace) -> None:
    import torch

    from hgsl.cli._int8 import compare_int8, int8_data
    from hgsl.cli._runtimes import compare_speed, megabytes
    from hgsl.common.files import write_json
    from hgsl.engine.folder.environment import versions
    from hgsl.export import describe, export_files, export_model

    data = int8_data(Path(flags.run), flags.root, model) if flags.int8 else None
    differences = export_model(model, path, format=flags.format)
    write_json(f"{path}.json", describe(model, flags.format, differences, versions()))
    files = export_files(path, flags.format)
    names = " and ".join(map(str, files))
    print(f"written: {names} ({megabytes(*files)}), and beside it {path.name}.json with the preprocessing")
    print("largest difference from PyTorch:", ", ".join(f"{v:.1e} (batch {k})" for k, v in differences.items()))
    if flags.format == "torch-export":
        return
    if model.prefers_channels_last(torch.device("cpu")):
        model.to(memory_format=torch.channels_last)  # as every command runs it
    if data:
        compare_int8(model, path, data, keep_slower=flags.keep_slower)
    else:
        compare_speed(model, path, flags.format)
