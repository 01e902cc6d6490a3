"""``hgsl-eval``: the retrieval scores of a model, or of embeddings in files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from hgsl.cli._main import run
from hgsl.cli._settings import build_parser, parse
from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError

DESCRIPTION = """Measure retrieval: of the model of a run (--checkpoint RUN, on its own data set or, with --data.name
and --data.root, on another one), of a pretrained network without training (--model TIMM_NAME with --data...), or of
embeddings in files (--embeddings E.npy --labels L.npy)."""

# Flag, type of its value ([type]: one or more values; None: no value), help.
INPUT_FLAGS: list[tuple[str, Any, str]] = [
    ("--checkpoint", str, "Folder of a run."),
    ("--embeddings", str, "Embeddings (N, D) as .npy, .npz or .safetensors, float16 and bfloat16 too."),
    ("--labels", str, "Their labels, (N,) integers or class names."),
    ("--ids", str, "Their ids, (N,) integers: an image is never a neighbor of a query with the same id."),
    ("--groups", str, "Their groups, (N,) integers such as camera numbers: an image with a query's label and group is "
                      "not its neighbor; an image without a group takes a number of its own."),
    ("--gallery-embeddings", [str], "Separate galleries, one file each, evaluated one by one."),
    ("--gallery-labels", [str], "Their labels, one file per gallery."),
    ("--gallery-ids", [str], "Their ids, if the galleries may contain the queries."),
    ("--gallery-groups", [str], "Their groups, one file per gallery."),
    ("--training-embeddings", str, "Embeddings to fit --whiten on; a network embeds its training split itself."),
    ("--calibration-embeddings", str, "Embeddings to calibrate --no-match on; a network embeds its validation split."),
    ("--calibration-labels", str, "Their labels, encoded like those of the gallery."),
]  # fmt: skip
EVALUATION_FLAGS: list[tuple[str, Any, str]] = [
    ("--k", [int], "The K of Recall@K, Precision@K and mAP@K; the default is eval.ks, 1 2 4 8."),
    ("--metric", str, "One of cosine, inner_product and l2."),
    ("--index", str, "Flat is exact; a FAISS factory string such as 'IVF4096,Flat nprobe=32' is approximate."),
    ("--max-memory", float, "GB that the search may use beyond the embeddings."),
    (
        "--ignore-same-group",
        None,
        "Exclude gallery images with a query's class and group (a csv table's category, "
        "or --data.options.group_column, such as camera).",
    ),
    ("--flip", None, "Average each embedding with that of the mirrored image."),
    ("--crops", int, "1 uses the whole image, 5 averages the center and the four corner crops."),
    ("--whiten", int, "PCA-whiten to this many dimensions, fitted on training images; 0 keeps all."),
    ("--query-expansion", int, "alpha query expansion with this many neighbors."),
    ("--augment-gallery", int, "Database augmentation with this many neighbors."),
    ("--expansion-alpha", float, "alpha of both: the weight of a neighbor is similarity^alpha."),
    ("--rerank", None, "k-reciprocal re-ranking of the first 100 neighbors."),
    ("--no-match", float, "False-accept rate for which to calibrate the similarity below which there is no match."),
]
OUTPUT_FLAGS: list[tuple[str, Any, str]] = [
    ("--json", str, "Write scores, counts, versions and the scores of each query."),
    ("--csv", str, "Write a table of the scores of each query."),
    ("--html", str, "Write a page: worst queries, classes, confusions, suspicious pairs, a map."),
    ("--sheet", str, "Write a contact sheet of queries with their neighbors, framed as right or wrong."),
    ("--curves", str, "Write a figure (.png, .pdf, .svg) of Recall@K and of the loss of a run's training."),
    ("--per-class", None, "Add the scores of each class."),
    ("--bootstrap", int, "Add 95% intervals from this many bootstrap samples, such as 1000."),
    ("--cluster", None, "Add NMI and AMI of a k-means clustering."),
    ("--save-embeddings", str, "Folder to keep the embeddings in; a killed command continues from there."),
]
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
    *("eval.batch_size", "run.device", "run.precision", "run.threads", "run.deterministic"),
]
USED_SETTINGS = {
    "--checkpoint": DATA_SETTINGS,
    "--model": [*DATA_SETTINGS, "run.seed", *(f"model.{name}" for name in MODEL_SETTINGS)],
    "--embeddings": ["eval.ks", "run.device"],
}
OUTPUTS = ["json", "csv", "html", "sheet", "curves", "per_class"]
DEFAULTS = {"metric": "cosine", "index": "Flat", "max_memory": 1.0, "crops": 1, "expansion_alpha": 3.0, "bootstrap": 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _evaluate(words), ends_process=arguments is None)


def _evaluate(words: list[str]) -> None:
    parser = build_parser(DESCRIPTION)
    for flag, value_type, text in (*INPUT_FLAGS, *EVALUATION_FLAGS, *OUTPUT_FLAGS):
        _add_flag(parser, flag, value_type, text)
    config, flags = parse(parser, _with_settings(words))
    _check(flags, words)

    # Imported after the checks, since the libraries take seconds to load.
    from hgsl.engine.evaluation import EvalOptions, evaluate
    from hgsl.engine.evaluation.files import EmbeddingFiles, load_files, search_device
    from hgsl.engine.evaluation.outputs import EvalOutputs
    from hgsl.engine.evaluation.settings import evaluate_settings

    options = EvalOptions(
        ks=flags.k or config.eval.ks,
        max_memory=int(flags.max_memory * 2**30),
        batch_size=config.eval.batch_size,
        store=flags.save_embeddings,
        **{name: flags[name] for name in OPTIONS},
    )
    outputs = EvalOutputs(run=flags.checkpoint, **{name: flags[name] for name in OUTPUTS})
    outputs.check(has_images=not flags.embeddings)
    if flags.embeddings:
        files = EmbeddingFiles(**{name: flags[name] for name in FILES if flags[name]})
        evaluation = evaluate(load_files(files, search_device(config.run.device)), options)
    else:
        evaluation_on_main = evaluate_settings(config, options, flags.checkpoint)
        if evaluation_on_main is None:  # only the main process writes
            return
        evaluation = evaluation_on_main
    try:
        written = outputs.write(evaluation)
    finally:
        print(f"\n{evaluation.text(per_class=flags.per_class)}")
    for path in [*written, *([flags.save_embeddings] if flags.save_embeddings else [])]:
        print(f"written: {path}")


def _add_flag(parser: ArgumentParser, flag: str, value_type: Any, text: str) -> None:
    default = DEFAULTS.get(flag.removeprefix("--").replace("-", "_"))
    if value_type is None:
        parser.add_argument(flag, action="store_true", help=text)
    elif isinstance(value_type, list):
        parser.add_argument(flag, type=value_type[0], nargs="+", help=text)
    else:
        parser.add_argument(flag, type=value_type, default=default, help=text)


def _with_settings(words: list[str]) -> list[str]:
    """The arguments, preceded by the config file of the run, or with ``--model`` replaced by settings."""
    checkpoint, model = _value(words, "--checkpoint"), _value(words, "--model")
    if checkpoint is not None:
        settings = Path(checkpoint) / "config.yaml"
        if not settings.is_file():
            raise FileNotFoundError(f"no config.yaml in {checkpoint}: expected a run folder that training has written")
        return ["--config", str(settings), *words]
    if model is None:
        return words
    model_settings = ["--model.backbone", model, "--model.embedding_size", "null"]
    index = next(i for i, word in enumerate(words) if word == "--model" or word.startswith("--model="))
    return [*words[:index], *model_settings, *words[index + (2 if words[index] == "--model" else 1) :]]


def _check(flags: Namespace, words: list[str]) -> None:
    """Checks, before anything is loaded, that flags do not contradict each other and paths can be written."""
    given = {"--checkpoint": flags.checkpoint, "--model": _value(words, "--model"), "--embeddings": flags.embeddings}
    named = [flag for flag, value in given.items() if value is not None]
    if not named:
        raise InputError(
            "nothing to measure: give --checkpoint RUN (such as runs/quickstart), --model NAME or --embeddings FILE"
        )
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} name different things to measure: give one")
    files = [flag for flag, *_ in INPUT_FLAGS if flag not in given]
    network = ["--flip", "--crops", "--save-embeddings", "--ignore-same-group", "--sheet"]
    used = {word.split("=")[0] for word in words}
    for flag in files if named != ["--embeddings"] else network:
        if flag in used:
            other = "--embeddings" if flag in files else "--checkpoint or --model"
            raise InputError(f"{flag} belongs to {other}, not to {named[0]}: leave it out")
    for word in words:
        setting = word.split("=")[0].removeprefix("--").removesuffix("+")
        if word.startswith("--") and "." in setting and not _has_effect(setting, USED_SETTINGS[named[0]]):
            raise InputError(f"--{setting} has no effect on an evaluation by {named[0]}: leave it out")
    if flags.max_memory <= 0:
        raise InputError(f"--max-memory must be a positive number of GB, found {flags.max_memory}")
    for path in (flags[name] for name in OUTPUTS if name != "per_class"):
        if path:
            check_writable(path)


def _has_effect(setting: str, used: Sequence[str]) -> bool:
    return any(setting == name or setting.startswith(f"{name}.") for name in used)


def _value(words: Sequence[str], flag: str) -> str | None:
    """The value of ``flag``, read before parsing since it determines the defaults."""
    for position, word in enumerate(words):
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
        if word == flag and position + 1 < len(words):
            return words[position + 1]
    return None
