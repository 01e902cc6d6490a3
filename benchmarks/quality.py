"""Comparison of losses: one recipe, an equal tuning budget, several seeds, on classes absent from training.

    python benchmarks/quality.py --data cub100 --root PATH/TO/cub100
    python benchmarks/quality.py --data flowers17 --root PATH/TO/flowers17 --only hgsl_topk ProxyAnchor

Every loss has at most six trials, in three stages: its scale (three), the learning rates (two), and one more setting of
its own (one), each around the best so far. The last third of the training classes is held out to choose by MAP@R; the
tables of these runs lack the test classes. The chosen setting then trains on all training classes, once per seed, and
is measured on the test classes. Each run writes one JSON file to ``--out``, named by a hash of its configuration:
another call repeats no finished run and resumes an unfinished one. Every call rewrites ``table.md`` there.
"""

import argparse
import hashlib
import json
import platform
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from hgsl.cli._main import run
from hgsl.cli._settings import CONFIGS, build_parser, parse
from hgsl.common.errors import InputError
from hgsl.common.files import write_json, write_text
from hgsl.data import Manifest, load_manifest
from hgsl.data.adapters.table import write_table
from hgsl.data.build_manifest import make_manifest
from hgsl.data.protocols import apply_protocol, cut_validation
from hgsl.engine.folder.run_folder import CONFIG, STATE
from hgsl.engine.loop.stop import Diverged, Stopped
from hgsl.engine.run import train

Setting = dict[str, Any]  # dotted name -> value, which overrides the recipe
MAX_TRIALS = 6
VALIDATION = 1 / 3  # of the training classes
RATES: list[Setting] = [
    {"optim.lr": 6e-4, "optim.projection_lr": 6e-3, "optim.centers_lr": 2e-2},
    {"optim.lr": 1.5e-4, "optim.projection_lr": 1.5e-3, "optim.centers_lr": 5e-3},
]
GLOBAL: Setting = {"loss.top_k": None, "loss.hard_set": "all", "loss.both_sides": 0.0}  # every class is in the hard set
NOT_DESCRIBED = (  # settings that all runs of a loss share
    *("loss.name", "loss.miner", "loss.hard_set", "loss.both_sides", "loss.centers", "type_of_triplets"),
    *("data.sampler", "data.per_class", "optim.projection_lr"),
)


def hgsl(setting: Setting) -> list[Setting]:
    """HGSL at three pairs of alpha and margin."""
    pairs = ((0.4, 0.0), (0.4, 0.1), (0.6, 0.1))
    return [{"loss.alpha": alpha, "loss.margin": margin, **setting} for alpha, margin in pairs]


def of_library(name: str, **options: Any) -> Setting:
    """A loss of pytorch-metric-learning."""
    return {"loss.name": name, **GLOBAL, "loss.options": options}


def triplet(margin: float) -> Setting:
    """Semi-hard triplets, which need pairs in their batches: four images of each of a few classes.

    Where there are too few classes for that (flowers17), the batches are random, and still contain pairs.
    """
    return {
        **of_library("TripletMarginLoss", margin=margin),
        "loss.miner": "TripletMarginMiner",
        "loss.miner_options": {"margin": margin, "type_of_triplets": "semihard"},
        "data.sampler": "m_per_class",
        "data.per_class": 4,
    }


# Loss -> stages of trials; the trials of a stage override the best setting of the stages before it.
LOSSES: dict[str, list[list[Setting]]] = {
    "hgsl_global": [
        hgsl(GLOBAL),
        RATES,
        [{"loss.decorrelation": 0.0}],
    ],
    "hgsl_both": [
        hgsl({"loss.top_k": 5, "loss.both_sides": 1.0}),
        RATES,
        [{"loss.top_k": 10}],
    ],
    "hgsl_topk": [
        hgsl({"loss.top_k": 5, "loss.both_sides": 0.0}),
        RATES,
        [{"loss.top_k": 10}],
    ],
    "ProxyAnchor": [
        [of_library("ProxyAnchorLoss", alpha=alpha, margin=0.1) for alpha in (32, 16, 64)],
        RATES,
        [{"loss.options": {"margin": 0.2}}],
    ],
    "NormalizedSoftmax": [
        [of_library("NormalizedSoftmaxLoss", temperature=temperature) for temperature in (0.05, 0.1, 0.2)],
        RATES,
        [{"loss.options": {"temperature": 0.07}}],
    ],
    "ArcFace": [
        [of_library("ArcFaceLoss", scale=scale, margin=17.2) for scale in (16, 32, 64)],
        RATES,
        [{"loss.options": {"margin": 28.6}}],
    ],
    "triplet": [
        [triplet(margin) for margin in (0.1, 0.05, 0.2)],
        RATES,
        [{"loss.options": {"smooth_loss": True}}],
    ],
}


class Runner:
    """Trains each setting over one recipe, and stores its result as a file in ``out``."""

    def __init__(
        self, recipe: Mapping[str, Any], tables: Mapping[str, Path], images: Path, out: Path, classes: int
    ) -> None:
        self.recipe, self.tables, self.images, self.out, self.classes = recipe, tables, images, out, classes

    def run(self, phase: str, loss: str, setting: Setting, seed: int = 0) -> dict[str, Any]:
        """Trains and measures, or reads the result of an earlier call; a loss that diverges scores 0."""
        table = self.tables[phase]
        source = {"data.name": "csv", "data.root": str(table), "data.options": {"image_root": str(self.images)}}
        sections = nested({**setting, **source, "run.seed": seed}, self.recipe)
        if self.classes * sections["data"].get("per_class", 4) < sections["train"]["batch_size"]:
            sections["data"]["sampler"] = "random"
        digest = hashlib.sha256((yaml.safe_dump(sections) + table.read_text(encoding="utf-8")).encode()).hexdigest()
        path = self.out / f"{phase}-{loss}-seed{seed}-{digest[:12]}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        work = self.out / "unfinished" / path.stem
        config_file = self.out / "unfinished" / f"{path.stem}.yaml"
        write_text(config_file, yaml.safe_dump(sections))
        config, _ = parse(build_parser(""), ["--config", str(config_file)])
        print(f"\n{phase}: {loss}, seed {seed}, {describe(setting)}", flush=True)
        has_state = (work / STATE).is_file()
        try:
            report = train(config, work, resume=has_state, overwrite=(work / CONFIG).is_file())
            scores, seconds = report["after"], report["seconds"]
        except Diverged as error:
            print(error)
            scores, seconds = {"recall@1": 0.0, "map@r": 0.0, "num_queries": 0, "split_hash": ""}, 0.0
        result = {"phase": phase, "loss": loss, "setting": setting, "seed": seed, "seconds": seconds}
        result |= {name: scores[name] for name in ("recall@1", "map@r", "num_queries", "split_hash")}
        write_json(path, result)
        shutil.rmtree(work)
        config_file.unlink()
        return result


def tune(runner: Runner, loss: str, budget: int) -> tuple[Setting, list[dict[str, Any]]]:
    """Returns the setting with the best MAP@R on the validation classes, and the trials in their order.

    Without a budget this is the first setting: that of the authors of the loss or of the recipe.
    """
    if not budget:
        return LOSSES[loss][0][0], []
    best: dict[str, Any] = {"setting": {}, "map@r": -1.0}
    trials: list[dict[str, Any]] = []
    for stage in LOSSES[loss]:
        base = best["setting"]
        for change in stage[: budget - len(trials)]:
            trials.append(runner.run("tune", loss, merged_settings(base, change)))
            best = max(best, trials[-1], key=lambda result: result["map@r"])
    return best["setting"], trials


def merged_settings(base: Setting, change: Setting) -> Setting:
    """Returns ``base`` overridden by ``change``; arguments of a loss are merged, not replaced as a whole."""
    merged = {**base, **change}
    if "loss.options" in base and "loss.options" in change:
        merged["loss.options"] = {**base["loss.options"], **change["loss.options"]}
    return merged


def nested(dotted: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of the sections ``base`` with each ``section.name`` set."""
    sections = {section: dict(values) for section, values in base.items()}
    for name, value in dotted.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def read_split(name: str, root: Path | None, swap_halves: bool = False) -> Manifest:
    """Splits the classes: the first half trains, with its last third for validation, and the second half is the test.

    ``swap_halves`` trains on the second half and tests on the first.
    """
    manifest = read_cub100(root) if name == "cub100" else load_manifest(name, root)
    if swap_halves:
        manifest = replace(manifest, split=np.where(manifest.split == "test", "train", "test"))
    return cut_validation(manifest, VALIDATION)


def read_cub100(root: Path | None) -> Manifest:
    """Reads a subset of CUB-200-2011, whose lists have a format of their own."""
    if root is None:
        raise InputError("cub100, a subset of CUB-200-2011, is not a data set of hgsl: give its folder with --root")
    classes, images, labels = (read_pairs(root / f"{file}.txt") for file in ("classes", "images", "image_class_labels"))
    numbers = [int(labels[image]) for image in images]
    raw = make_manifest("cub100", root / "images", list(images.values()), numbers, list(classes.values()))
    return apply_protocol(raw, "zero-shot")


def read_pairs(path: Path) -> dict[str, str]:
    """Reads the lines ``number, value`` of a list."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {number: value for number, _, value in (line.partition(", ") for line in lines)}


def write_tables(manifest: Manifest, out: Path) -> dict[str, Path]:
    """Writes a table per phase: ``final`` has all classes, ``tune`` the training ones, its test being validation."""
    split = manifest.split
    parts = {
        "final": replace(manifest, split=np.where(split == "test", "test", "train")),
        "tune": replace(manifest, split=np.where(split == "val", "test", "train")).take(
            np.flatnonzero(split != "test")
        ),
    }
    for phase, part in parts.items():
        write_table(part, out / f"{phase}.csv")
    return {phase: out / f"{phase}.csv" for phase in parts}


def describe(setting: Setting) -> str:
    """Formats a setting on one line, without the entries that all runs of its loss share."""

    def words() -> Iterator[str]:
        for name, value in setting.items():
            if isinstance(value, dict):
                yield from (f"{key} {item}" for key, item in value.items() if key not in NOT_DESCRIBED)
            elif name not in NOT_DESCRIBED and value is not None:
                yield f"{name.partition('.')[2]} {value}"

    return ", ".join(dict.fromkeys(words())) or "as in the recipe"


def table(finals: Mapping[str, list[dict[str, Any]]], trials: Mapping[str, list[dict[str, Any]]]) -> str:
    """Formats mean and standard deviation over seeds as Markdown, best MAP@R first, and then every trial."""
    lines = ["| loss | chosen setting | trials | seeds | R@1 | MAP@R |", "|---|---|---:|---:|---:|---:|"]
    order = sorted(finals, key=lambda loss: -statistics.mean(run["map@r"] for run in finals[loss]))
    for loss in order:
        runs = finals[loss]
        recall, map_at_r = (spread([run[name] for run in runs]) for name in ("recall@1", "map@r"))
        setting = describe(runs[0]["setting"])
        lines.append(f"| {loss} | {setting} | {len(trials.get(loss, []))} | {len(runs)} | {recall} | {map_at_r} |")
    lines += ["", "| trial on the validation classes | R@1 | MAP@R | seconds |", "|---|---:|---:|---:|"]
    for loss in order:
        for trial in trials.get(loss, []):
            scores = f"{100 * trial['recall@1']:.2f} | {100 * trial['map@r']:.2f} | {trial['seconds']:.0f}"
            lines.append(f"| {loss}: {describe(trial['setting'])} | {scores} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Formats the mean and, for two or more values, the sample standard deviation, in percent."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cub100", help="cub100, or a data set of hgsl.data.DATASETS")
    parser.add_argument("--root", type=Path, help="folder of the data set")
    parser.add_argument("--swap-halves", action="store_true", help="train on the test classes and test on the others")
    parser.add_argument("--recipe", type=Path, default=CONFIGS / "folder.yaml", help="recipe that all losses share")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    trials = f"trials per loss, 0 to {MAX_TRIALS}; 0 takes the first setting"
    parser.add_argument("--trials", type=int, default=MAX_TRIALS, help=trials)
    parser.add_argument("--only", nargs="+", choices=LOSSES, metavar="LOSS", help=f"of {', '.join(LOSSES)}")
    parser.add_argument("--out", type=Path, help="default: runs/quality/DATA-IMAGE_SIZE-EPOCHS[-swapped]")
    args = parser.parse_args()
    if not 0 <= args.trials <= MAX_TRIALS or args.seeds < 1:
        parser.error(f"--trials must be 0 to {MAX_TRIALS}, --seeds at least 1")
    halves = "-swapped" if args.swap_halves else ""
    out = args.out or Path("runs/quality") / f"{args.data}-{args.image_size}-{args.epochs}{halves}"
    return run(lambda: compare(args, out))


def compare(args: argparse.Namespace, out: Path) -> int:
    """Tunes and trains the losses in turn; the table is rewritten after each of them."""
    manifest = read_split(args.data, args.root, args.swap_halves)
    shared = {"data.image_size": args.image_size, "data.cache": "resized", "data.crop_to_boxes": False}
    recipe = yaml.safe_load(args.recipe.read_text(encoding="utf-8"))
    recipe = nested({**shared, "train.epochs": args.epochs, "eval.before": False, "eval.page": False}, recipe)
    counts = {split: len(np.unique(manifest.labels[manifest.split == split])) for split in ("train", "val", "test")}
    runner = Runner(recipe, write_tables(manifest, out), manifest.root.absolute(), out, counts["train"])
    swapped = ", halves swapped" if args.swap_halves else ""
    head = (
        f"{args.data}{swapped}: {counts['train'] + counts['val']} training and {counts['test']} test classes; "
        f"trials train on {counts['train']} and test on {counts['val']}. {args.image_size} px, {args.epochs} epochs, "
        f"recipe {args.recipe.name}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}. In percent, mean ± standard deviation over seeds.\n\n"
    )
    trials: dict[str, list[dict[str, Any]]] = {}
    try:
        finals = {"none (pretrained)": [runner.run("final", "none", {"train.epochs": 0})]}
        for loss in args.only or LOSSES:
            setting, trials[loss] = tune(runner, loss, args.trials)
            finals[loss] = [runner.run("final", loss, setting, seed) for seed in range(args.seeds)]
            write_text(out / "table.md", head + table(finals, trials))
    except Stopped as stopped:
        print(f"stopped; the same command resumes in {out}", file=sys.stderr)
        return stopped.exit_code
    print(f"\n{head}{table(finals, trials)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
