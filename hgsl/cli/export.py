"""``hgsl-export``: export of a trained model to another runtime, to a folder for the Hub, or to the Hub itself."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgsl.cli._help import HelpFormatter
from hgsl.cli._main import run
from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError
from hgsl.common.extras import require
from hgsl.common.files import read_json
from hgsl.common.model_source import WEIGHTS_NAME, check_model_source, check_repository

if TYPE_CHECKING:
    from hgsl.export import OnnxEmbedder
    from hgsl.models import Embedder

DESCRIPTION = """Export a trained model. onnx and torch-export write one file that takes batches of any size, and beside
it a JSON file that specifies input, output and preprocessing; the exported file is compared with PyTorch (1e-4) before
it is kept. hub writes a folder with config.json, model.safetensors and a model card that states the scores of the
run."""
FILES = {"onnx": "model.onnx", "torch-export": "model.pt2", "hub": "hub"}  # format -> default name in the run folder
BELONGS_TO = {"int8": "onnx", "root": "onnx", "push": "hub", "private": "hub", "license": "hub"}  # flag -> format


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument("run", metavar="RUN", help="Run folder, folder of --format hub, or OWNER/NAME on the Hub.")
    parser.add_argument("--format", choices=tuple(FILES), default="onnx", help="Format of the export.")
    names = ", ".join(f"RUN/{name}" for name in FILES.values())
    parser.add_argument("--out", metavar="PATH", help=f"File to write, or the folder of hub, in place of {names}.")
    parser.add_argument(
        "--int8", action="store_true", help="Write 8-bit weights as well, and measure their cost (onnx)."
    )
    parser.add_argument("--root", metavar="DIR", help="Folder of the images of the run for --int8, if they were moved.")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="Upload the folder of hub with HF_TOKEN or `hf auth login`."
    )
    parser.add_argument("--private", action="store_true", help="Make the new repository of --push private.")
    parser.add_argument("--license", metavar="NAME", help="License of the weights for hub, such as apache-2.0.")
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _export(flags), ends_process=arguments is None)


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
            raise InputError(f"--{flag} belongs to --format {needed}, not to {flags.format}")
    if flags.root and not flags.int8:
        raise InputError("--root names the images for --int8: give both")
    if flags.private and not flags.push:
        raise InputError("--private belongs to --push: give both")
    if flags.push:
        check_repository(flags.push)
    if flags.format == "onnx":
        require("export", "exporting to ONNX")


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

    from hgsl.common.files import write_json
    from hgsl.common.tables import format_cells
    from hgsl.engine.folder.environment import versions
    from hgsl.export import OnnxEmbedder, describe, export_model, latencies, quantize

    differences = export_model(model, path, format=flags.format)
    write_json(f"{path}.json", describe(model, flags.format, differences, versions()))
    print(f"written: {path} ({_megabytes(path)}), and beside it {path.name}.json with the preprocessing")
    print("largest difference from PyTorch:", ", ".join(f"{v:.1e} (batch {k})" for k, v in differences.items()))
    if flags.format != "onnx":
        return
    if model.prefers_channels_last(torch.device("cpu")):
        model.to(memory_format=torch.channels_last)  # as every command runs it
    networks: dict[str, Any] = {"PyTorch": model, "ONNX Runtime": OnnxEmbedder(path)}
    if flags.int8:
        quantized = path.with_suffix(f".int8{path.suffix}")
        quantize(path, quantized)
        print(f"written: {quantized} ({_megabytes(quantized)})")
        networks["ONNX Runtime, int8"] = OnnxEmbedder(quantized)
    times = latencies(networks, model.data_config["image_size"])
    cells = {name: [f"{time:.1f}" for time in row.values()] for name, row in times.items()}
    print(f"\nmilliseconds per batch, fastest of several, threads: {torch.get_num_threads()}")
    print(format_cells(cells, [f"batch {size}" for size in next(iter(times.values()))]))
    if flags.int8:
        _print_cost(model, networks, flags)


def _print_cost(model: "Embedder", networks: "dict[str, Embedder | OnnxEmbedder]", flags: argparse.Namespace) -> None:
    """Prints the retrieval scores of each network on the data set of the run."""
    from dataclasses import replace

    import torch

    from hgsl.cli._settings import build_parser, parse
    from hgsl.common.tables import format_table
    from hgsl.engine.evaluation import EvalOptions, evaluate_model
    from hgsl.engine.parts.build import build_eval_set
    from hgsl.engine.parts.run_images import images_of_run
    from hgsl.engine.runtime import build_runtime

    words = ["--config", str(Path(flags.run) / "config.yaml"), *(["--data.root", flags.root] if flags.root else [])]
    config, _ = parse(build_parser(""), words)
    runtime = replace(build_runtime(config), device=torch.device("cpu"), dtype=torch.float32)
    if config.data.test_share == 0:
        print("\nno scores of the 8-bit weights: the run was trained on all of its images (data.test_share 0)")
        return
    images = images_of_run(config.data, Path(flags.run))
    images.print_notes()
    dataset = build_eval_set(config.data, images.manifest, model)
    options = EvalOptions.of_training(config.eval, runtime)
    scores = {name: evaluate_model(network, dataset, options).summary() for name, network in networks.items()}
    first = next(iter(scores.values()))
    print(f"\n{first['num_queries']:,} queries, {first['num_gallery']:,} images, {first['protocol']}, ", end="")
    print(f"split {first['split_hash']}, in percent")
    print(format_table(scores))


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
