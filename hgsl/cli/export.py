"""``tools/export.py`` and ``hgsl-export``: a trained model for other runtimes, for others, or for the Hub."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgsl.cli._main import run
from hgsl.common.errors import InputError
from hgsl.common.files import read_json
from hgsl.common.model_source import check_model_source

if TYPE_CHECKING:
    from hgsl.export import OnnxEmbedder
    from hgsl.models import Embedder

DESCRIPTION = """Export the model of a run. onnx and torch-export write one file that takes batches of any size, with a
JSON beside it that describes input, output and preprocessing; the file is compared with PyTorch (1e-4) before it is
kept. hub writes a folder with config.json, model.safetensors and a model card that states the run's scores."""
FORMATS = ("onnx", "torch-export", "hub")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="A run folder, a folder of --format hub, or OWNER/NAME on the Hub.")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="What to write (default onnx).")
    parser.add_argument("--out", metavar="PATH", help="File, or folder for hub; by default in RUN, RUN/hub for hub.")
    parser.add_argument("--int8", action="store_true", help="onnx: also with 8-bit weights, and what that costs.")
    parser.add_argument("--root", metavar="DIR", help="--int8: where the photos of the run are now.")
    parser.add_argument("--push", metavar="OWNER/NAME", help="hub: also upload it; needs `hf auth login` or HF_TOKEN.")
    parser.add_argument("--private", action="store_true", help="--push: make the repository private.")
    parser.add_argument("--license", metavar="NAME", help="hub: license of the weights for the card (apache-2.0, ...).")
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _export(flags), ends_process=arguments is None)


def _export(flags: argparse.Namespace) -> None:
    _check(flags)
    from hgsl.models import load_embedder

    model = load_embedder(flags.run)
    if flags.format == "hub":
        _to_hub(model, flags)
    else:
        _to_file(model, flags)


def _check(flags: argparse.Namespace) -> None:
    """Refuses what contradicts itself, before anything is loaded."""
    check_model_source(flags.run)
    for flag, needed in (("int8", "onnx"), ("root", "onnx"), ("push", "hub"), ("private", "hub"), ("license", "hub")):
        if getattr(flags, flag) and flags.format != needed:
            raise InputError(f"--{flag} belongs to --format {needed}, not to {flags.format}")
    if flags.root and not flags.int8:
        raise InputError("--root says where --int8 finds the photos: give both")
    if flags.private and not flags.push:
        raise InputError("--private belongs to --push: give both")
    if flags.int8 and not (Path(flags.run) / "config.yaml").is_file():
        raise InputError(f"--int8 is measured on the data set of a run, and {flags.run} has no config.yaml")
    if not flags.out and not Path(flags.run).is_dir():
        raise InputError(f"{flags.run} is on the Hub: name the file or folder to write with --out")


def _to_hub(model: "Embedder", flags: argparse.Namespace) -> None:
    from hgsl.models import push_to_hub, save_pretrained

    folder = Path(flags.out or Path(flags.run) / "hub")
    about: dict[str, Any] = {"report": _report(Path(flags.run)), "license": flags.license}
    save_pretrained(model, folder, name=flags.push, **about)
    print(f"written: {folder} (config.json, model.safetensors, README.md)")
    if flags.push:
        print(f"uploaded: {push_to_hub(model, flags.push, private=flags.private, **about)}")


def _report(folder: Path) -> dict[str, Any] | None:
    path = folder / "report.json"
    if not path.is_file():
        return None
    content = read_json(path, "a run's report")
    return content if isinstance(content.get("after"), dict) else None


def _to_file(model: "Embedder", flags: argparse.Namespace) -> None:
    import torch

    from hgsl.common.files import write_json
    from hgsl.common.tables import format_cells
    from hgsl.engine.folder.environment import versions
    from hgsl.export import EXTENSIONS, OnnxEmbedder, describe, export_model, latencies, quantize

    path = Path(flags.out or Path(flags.run) / f"model{EXTENSIONS[flags.format]}")
    differences = export_model(model, path, format=flags.format)
    write_json(f"{path}.json", describe(model, flags.format, differences, versions()))
    print(f"written: {path} ({_megabytes(path)}), and beside it {path.name}.json with the preprocessing")
    print("largest difference from PyTorch:", ", ".join(f"{v:.1e} (batch {k})" for k, v in differences.items()))
    if flags.format != "onnx":
        return
    if model.is_convolutional:
        model.to(memory_format=torch.channels_last)  # as every tool here runs it
    networks: dict[str, Any] = {"PyTorch": model, "ONNX Runtime": OnnxEmbedder(path)}
    if flags.int8:
        small = path.with_suffix(f".int8{path.suffix}")
        quantize(path, small)
        print(f"written: {small} ({_megabytes(small)})")
        networks["ONNX Runtime, int8"] = OnnxEmbedder(small)
    times = latencies(networks, model.data_config["image_size"])
    cells = {name: [f"{time:.1f}" for time in row.values()] for name, row in times.items()}
    print(f"\nmilliseconds a batch, fastest of several, threads: {torch.get_num_threads()}")
    print(format_cells(cells, [f"batch {size}" for size in next(iter(times.values()))]))
    if flags.int8:
        _print_cost(model, networks, flags)


def _print_cost(model: "Embedder", networks: "dict[str, Embedder | OnnxEmbedder]", flags: argparse.Namespace) -> None:
    """Retrieval scores of each on the images that the run was measured on."""
    from dataclasses import replace

    import torch

    from hgsl.cli._settings import build_parser, parse
    from hgsl.common.tables import format_table
    from hgsl.engine.evaluation import EvalOptions, evaluate_model
    from hgsl.engine.parts.build import build_eval_set, build_manifest
    from hgsl.engine.runtime import build_runtime

    words = ["--config", str(Path(flags.run) / "config.yaml"), *(["--data.root", flags.root] if flags.root else [])]
    config, _ = parse(build_parser(""), words)
    runtime = replace(build_runtime(config), device=torch.device("cpu"), dtype=torch.float32)
    dataset = build_eval_set(config.data, build_manifest(config.data), model)
    options = EvalOptions.of_training(config.eval, runtime)
    scores = {name: evaluate_model(network, dataset, options).summary() for name, network in networks.items()}
    first = next(iter(scores.values()))
    print(f"\n{first['num_queries']:,} queries, {first['num_gallery']:,} images, {first['protocol']}, ", end="")
    print(f"split {first['split_hash']}, in percent")
    print(format_table(scores))


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
