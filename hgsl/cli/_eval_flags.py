"""Flags of ``hgsl eval``: what they are, what they need, and which settings have an effect."""

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from hgsl.cli._help import hide, promote
from hgsl.cli._settings import build_parser, setting_names
from hgsl.common.errors import InputError, unknown
from hgsl.common.eval_checks import check_embedding_files, check_options, check_output_files, check_store
from hgsl.common.extras import require
from hgsl.config import Config

DESCRIPTION = """Measure retrieval: of the model of a run (--checkpoint RUN, on its own data set or, with --data.name
and --data.root, on another one), of a pretrained network without training (--model TIMM_NAME with --data...), or of
embeddings in files (--embeddings E.npy --labels L.npy). With --checkpoint the settings are those of the run, in place
of the defaults named here."""

# Flag, type of its value ([type]: one or more values; None: no value), help.
INPUT_FLAGS: list[tuple[str, Any, str]] = [
    ("--checkpoint", str, "Folder of a run."),
    ("--embeddings", str, "Embeddings (N, D) as .npy, .npz or .safetensors, float16 and bfloat16 too."),
    ("--labels", str, "Their labels, (N,) integers or class names."),
    ("--ids", str, "Their ids, (N,) integers: no image is a neighbor of a query of its id."),
    ("--groups", str, "Their groups, (N,) integers such as camera numbers: an image with a query's label and group is "
                      "no neighbor of it; an image without a group takes a number of its own."),
    ("--gallery-embeddings", [str], "Separate galleries, one file each, evaluated one by one."),
    ("--gallery-labels", [str], "Their labels, one file per gallery."),
    ("--gallery-ids", [str], "Their ids, if the galleries may contain the queries."),
    ("--gallery-groups", [str], "Their groups, one file per gallery."),
    ("--training-embeddings", str, "Embeddings to fit --whiten on; a network embeds its training split itself."),
    ("--calibration-embeddings", str, "Embeddings to calibrate --no-match on; a network embeds its validation split."),
    ("--calibration-labels", str, "Their labels, encoded like those of the gallery."),
]  # fmt: skip
EVALUATION_FLAGS: list[tuple[str, Any, str]] = [
    ("--k", [int], "The K of Recall@K, Precision@K and mAP@K, in place of eval.ks (1 2 4 8)."),
    ("--metric", str, "Similarity: one of cosine, inner_product and l2."),
    ("--index", str, "Exact Flat, or a FAISS factory such as 'IVF4096,Flat nprobe=32'."),
    (
        "--max-memory",
        float,
        "GB that the search may use beyond the embeddings; on a GPU, also half of what is free.",
    ),
    (
        "--ignore-same-group",
        None,
        "Exclude gallery images with a query's class and group (a csv table's category, "
        "or --data.options.group_column, such as camera).",
    ),
    ("--flip", None, "Average each embedding with that of the mirrored image."),
    ("--crops", int, "Average this many crops: 1 (the whole image) or 5."),
    ("--whiten", int, "PCA-whiten to this many dimensions, fitted on training images; 0 keeps all."),
    ("--query-expansion", int, "Apply alpha query expansion with this many neighbors."),
    ("--augment-gallery", int, "Apply database augmentation with this many neighbors."),
    ("--expansion-alpha", float, "Exponent of both: a neighbor weighs similarity^alpha."),
    ("--rerank", None, "Re-rank the first 100 neighbors by their k-reciprocal neighbors."),
    ("--no-match", float, "Calibrate the threshold of no match to this false-accept rate."),
]
OUTPUT_FLAGS: list[tuple[str, Any, str]] = [
    ("--json", str, "Write scores, counts, versions and the scores of each query."),
    ("--csv", str, "Write a table of the scores of each query."),
    ("--html", str, "Write a page: worst queries, classes, confusions, suspicious pairs, a map."),
    ("--heat", None, "Show in the page of --html which parts of the images of a suspicious pair match."),
    ("--map-images", int, "Images on the map of --html; more than 2,000 need the extra [map]."),
    ("--sheet", str, "Write a contact sheet of queries with their right and wrong neighbors."),
    ("--curves", str, "Write a figure (.png, .pdf, .svg) of Recall@K and of a run's loss."),
    ("--per-class", None, "Add the scores of each class, and of each category if the data has some."),
    ("--bootstrap", int, "Add 95% intervals from bootstrap samples, such as 1000."),
    ("--cluster", None, "Add NMI and AMI of a k-means clustering."),
    ("--save-embeddings", str, "Folder to keep the embeddings in; a killed command continues from there."),
    ("--engine", str, "Embed in this process (local), or on a Ray cluster (ray), which shares --save-embeddings."),
    ("--address", str, "Ray cluster, 'auto' for that of this machine; by default Ray is started on this machine."),
]
MOST_USED = (
    *("--checkpoint", "--model", "--embeddings", "--labels", "--data.name", "--data.root"),
    *("--k", "--json", "--html", "--per-class"),
)
MODEL_SETTINGS = ("backbone", "pooling", "embedding_size", "weights", "output_stride")
# Flags that are arguments of EmbeddingFiles, EvalOptions and EvalOutputs under the same name.
FILES = [flag.removeprefix("--").replace("-", "_") for flag, *_ in INPUT_FLAGS if flag != "--checkpoint"]
OPTIONS = [
    *("metric", "index", "ignore_same_group", "flip", "crops", "whiten", "query_expansion", "augment_gallery"),
    *("expansion_alpha", "rerank", "no_match", "cluster", "bootstrap"),
]
# Settings that have an effect, by what is evaluated; any other that is given is refused.
DATA_SETTINGS = [
    *("data.name", "data.root", "data.options", "data.protocol", "data.test_share", "data.val_share", "data.val_fold"),
    *("data.crop_to_boxes", "data.image_size", "data.crop_pct", "data.workers", "data.cache", "eval.ks"),
    *(
        "eval.image_size",
        "eval.flip",
        "eval.scales",
        "eval.batch_size",
        "run.device",
        "run.precision",
        "run.threads",
        "run.deterministic",
    ),
]
USED_SETTINGS = {
    "--checkpoint": DATA_SETTINGS,
    "--model": [*DATA_SETTINGS, "run.seed", *(f"model.{name}" for name in MODEL_SETTINGS)],
    "--embeddings": ["eval.ks", "run.device"],
}
# Flag -> the flags of which one must be given for it to have an effect.
NEEDS = {
    "--training-embeddings": ("--whiten",),
    "--calibration-embeddings": ("--no-match",),
    "--calibration-labels": ("--no-match",),
    "--map-images": ("--html",),
    "--heat": ("--html",),
    "--engine": ("--save-embeddings",),
    "--address": ("--engine",),
    "--expansion-alpha": ("--query-expansion", "--augment-gallery"),
    "--data.val_share": ("--no-match", "--whiten"),
    "--data.val_fold": ("--no-match", "--whiten"),
}
METAVARS = {
    **{"--checkpoint": "RUN", "--metric": "NAME", "--index": "FACTORY"},
    **{"--max-memory": "GB", "--no-match": "RATE", "--save-embeddings": "DIR"},
    **{"--engine": "NAME", "--address": "HOST:PORT"},
}
OUTPUTS = ["json", "csv", "html", "heat", "map_images", "sheet", "curves", "per_class"]
DEFAULTS = {
    "map_images": 2000,
    "metric": "cosine",
    "index": "Flat",
    "max_memory": 1.0,
    "crops": 1,
    "expansion_alpha": 3.0,
    "bootstrap": 0,
    "engine": "local",
}
ENGINES = ("local", "ray")


def eval_parser(settings: type[Config] = Config) -> ArgumentParser:
    """Returns the parser of the flags and settings that an evaluation uses, the most used first."""
    parser = build_parser(DESCRIPTION, settings)
    parser.usage = (
        "%(prog)s [-h] (--checkpoint RUN | --model NAME | --embeddings FILE --labels FILE) [--FLAG VALUE ...]"
    )
    groups = []
    for title, flags in (
        ("Embeddings in files", INPUT_FLAGS),
        ("Evaluation", EVALUATION_FLAGS),
        ("Results", OUTPUT_FLAGS),
    ):
        groups.append(parser.add_argument_group(title))
        for flag, value_type, text in flags:
            _add_flag(groups[-1], flag, value_type, text)
    unused = {name for name in setting_names(settings) if not _has_effect(name, USED_SETTINGS["--model"])}
    aliases = {"eval.ks", "model.backbone"}  # of --k and --model
    hide(parser, [f"--{name}" for name in (unused | aliases) - {"model"}])
    model = parser._option_string_actions["--model"]
    model.help, model.metavar = "Name of a timm network, which is evaluated without training.", "NAME"
    promote(parser, MOST_USED, *groups)
    return parser


def _add_flag(group: Any, flag: str, value_type: Any, text: str) -> None:
    default = DEFAULTS.get(flag.removeprefix("--").replace("-", "_"))
    if value_type is None:
        group.add_argument(flag, action="store_true", help=text)
        return
    single, nargs = (value_type[0], "+") if isinstance(value_type, list) else (value_type, None)
    metavar = METAVARS.get(flag) or {str: "FILE", int: "N", float: "X"}[single]
    group.add_argument(flag, type=single, nargs=nargs, default=default, help=text, metavar=metavar)


def check_flags(flags: Namespace, words: list[str]) -> None:
    """Checks, before anything is loaded, that flags do not contradict each other and paths can be written."""
    given = {"--checkpoint": flags.checkpoint, "--model": value_of(words, "--model"), "--embeddings": flags.embeddings}
    named = [flag for flag, value in given.items() if value is not None]
    if not named:
        raise InputError(
            "nothing to measure: give --checkpoint RUN (such as runs/quickstart), --model NAME or --embeddings FILE"
        )
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} name different things to measure: give one")
    files = [flag for flag, *_ in INPUT_FLAGS if flag not in given]
    network = ["--flip", "--crops", "--save-embeddings", "--engine", "--ignore-same-group", "--sheet", "--heat"]
    used = {word.split("=")[0] for word in words}
    for flag in files if named != ["--embeddings"] else network:
        if flag in used:
            other = "--embeddings" if flag in files else "--checkpoint or --model"
            raise InputError(f"{flag} belongs to {other}, not to {named[0]}: leave it out")
    for word in words:
        setting = word.split("=")[0].removeprefix("--").removesuffix("+")
        if word.startswith("--") and "." in setting and not _has_effect(setting, USED_SETTINGS[named[0]]):
            raise InputError(f"--{setting} has no effect on an evaluation by {named[0]}: leave it out")
    for flag, needed in NEEDS.items():
        if flag in used and not any(_is_given(words, other) for other in needed):
            raise InputError(
                f"{flag} has no effect without {' or '.join(needed)}: give it as well, or leave {flag} out"
            )
    if not 0 < flags.max_memory < float("inf"):
        raise InputError(f"--max-memory must be a positive number of GB, found {flags.max_memory}")
    check_output_files(
        {name: flags[name] for name in OUTPUTS if name not in ("per_class", "heat", "map_images") and flags[name]}
    )
    if flags.save_embeddings:
        check_store(flags.save_embeddings)
    if flags.engine not in ENGINES:
        raise unknown("--engine", flags.engine, ENGINES)
    if flags.engine == "ray":
        require("ray", "--engine ray")


def option_values(flags: Namespace, config: Config) -> dict[str, Any]:
    """Returns the arguments of EvalOptions, checked before torch is imported."""
    values = {
        "ks": flags.k or config.eval.ks,
        "max_memory": int(flags.max_memory * 2**30),
        "batch_size": config.eval.batch_size,
        "store": flags.save_embeddings,
        **{name: flags[name] for name in OPTIONS},
    }
    check_options(values)
    return values


def check_files(flags: Namespace) -> None:
    """Checks the files of embeddings, and that those are given which the options need."""
    check_embedding_files({name: flags[name] for name in FILES if flags[name]})
    for name, images in (("whiten", "training"), ("no_match", "calibration")):
        if flags[name] is not None and not flags[f"{images}_embeddings"]:
            raise InputError(f"--{name.replace('_', '-')} on files needs --{images}-embeddings: give them as well")


def _is_given(words: Sequence[str], flag: str) -> bool:
    return any(word.partition("=")[0] == flag for word in words)


def _has_effect(setting: str, used: Sequence[str]) -> bool:
    return any(setting == name or setting.startswith(f"{name}.") for name in used)


def value_of(words: Sequence[str], flag: str) -> str | None:
    """The value of ``flag``, read before parsing since it determines the defaults."""
    for position, word in enumerate(words):
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
        if word == flag and position + 1 < len(words):
            return words[position + 1]
    return None
