"""``tools/eval_retrieval.py`` and ``hgsl-eval``: the retrieval scores of a model, or of embeddings in files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from hgsl.cli._main import run
from hgsl.cli._settings import build_parser, parse
from hgsl.common.errors import InputError

DESCRIPTION = """Measure retrieval: of the model of a run (--checkpoint RUN, on its own data set or, with --data.name
and --data.root, on another one), of a pretrained network without training (--model TIMM_NAME with --data...), or of
embeddings in files (--embeddings E.npy --labels L.npy)."""

# A flag, what it takes ([kind]: one or more; None: nothing, a bare flag), its help.
WHAT: list[tuple[str, Any, str]] = [
    ("--checkpoint", str, "The run folder that training wrote."),
    ("--embeddings", str, "Embeddings (N, D) as .npy, .npz or .safetensors, float16 and bfloat16 too."),
    ("--labels", str, "Their labels, (N,) integers."),
    ("--ids", str, "Their ids, (N,) integers: an image is never a neighbor of a query of its own id."),
    ("--groups", str, "Their groups, (N,) integers such as camera numbers: an image of a query's label and group is "
                      "no neighbor of it."),
    ("--gallery-embeddings", [str], "Galleries of their own, one file each; each is searched by itself."),
    ("--gallery-labels", [str], "Their labels."),
    ("--gallery-ids", [str], "Their ids, where they may hold the queries."),
    ("--gallery-groups", [str], "Their groups."),
    ("--training-embeddings", str, "Embeddings to fit --whiten on; a network embeds its training split itself."),
    ("--calibration-embeddings", str, "Embeddings to calibrate --no-match on; a network embeds its validation split."),
    ("--calibration-labels", str, "Their labels."),
]  # fmt: skip
HOW: list[tuple[str, Any, str]] = [
    ("--k", [int], "The K of Recall@K, Precision@K and mAP@K; by default eval.ks, 1 2 4 8."),
    ("--metric", str, "cosine (default), inner_product or l2."),
    ("--index", str, "Flat (exact, default) or a FAISS factory string such as 'IVF4096,Flat nprobe=32'."),
    ("--max-memory", float, "GB that the search may use beyond the embeddings; 1 by default."),
    (
        "--ignore-same-group",
        None,
        "Leave out gallery images of a query's class and group (a csv table's category, "
        "or --data.options.group_column, such as camera).",
    ),
    ("--flip", None, "Average each image with its mirror image."),
    ("--crops", int, "5 averages the center and the four corners; 1 by default."),
    ("--whiten", int, "PCA-whiten to so many dimensions, fitted on training images; 0 keeps all."),
    ("--query-expansion", int, "alpha query expansion with so many neighbors."),
    ("--augment-gallery", int, "Database augmentation with so many neighbors."),
    ("--expansion-alpha", float, "alpha of both: neighbors are weighed by similarity^alpha; 3 by default."),
    ("--rerank", None, "k-reciprocal re-ranking."),
    ("--no-match", float, "Calibrate the similarity below which the answer is 'no match', for this false-accept rate."),
]
OUT: list[tuple[str, Any, str]] = [
    ("--json", str, "Write the scores, counts, versions and the scores of each query."),
    ("--csv", str, "Write the scores of each query as a table."),
    ("--html", str, "Write a page to look at: worst queries, classes, confusions, suspicious pairs, a map."),
    ("--sheet", str, "Write a picture of queries with their neighbors, right and wrong."),
    ("--curves", str, "Write Recall@K, and the loss of a run's training, as a figure (.png, .pdf, .svg)."),
    ("--per-class", None, "Also the scores of each class."),
    ("--bootstrap", int, "Also 95% intervals from so many bootstrap samples, such as 1000."),
    ("--cluster", None, "Also NMI and AMI of a k-means clustering."),
    ("--save-embeddings", str, "Folder to keep the embeddings in; a killed command goes on from there."),
]
# Flags that are arguments of EmbeddingFiles, EvalOptions and EvalOutputs under the same name.
FILES = [flag.removeprefix("--").replace("-", "_") for flag, *_ in WHAT if flag != "--checkpoint"]
OPTIONS = [
    *("metric", "index", "ignore_same_group", "flip", "crops", "whiten", "query_expansion", "augment_gallery"),
    *("expansion_alpha", "rerank", "no_match", "cluster", "bootstrap"),
]
OUTPUTS = ["json", "csv", "html", "sheet", "curves", "per_class"]
DEFAULTS = {"metric": "cosine", "index": "Flat", "max_memory": 1.0, "crops": 1, "expansion_alpha": 3.0, "bootstrap": 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _evaluate(words), ends_process=arguments is None)


def _evaluate(words: list[str]) -> None:
    parser = build_parser(DESCRIPTION)
    for flag, kind, text in (*WHAT, *HOW, *OUT):
        _add_flag(parser, flag, kind, text)
    config, flags = parse(parser, _with_settings(words))
    _check(flags, words)

    # The libraries take seconds to load: mistakes in the flags have been reported before.
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
        found = evaluate_settings(config, options, flags.checkpoint)
        if found is None:  # of several processes, one writes
            return
        evaluation = found
    try:
        written = outputs.write(evaluation)
    finally:
        print(f"\n{evaluation.text(per_class=flags.per_class)}")
    for path in [*written, *([flags.save_embeddings] if flags.save_embeddings else [])]:
        print(f"written: {path}")


def _add_flag(parser: ArgumentParser, flag: str, kind: Any, text: str) -> None:
    default = DEFAULTS.get(flag.removeprefix("--").replace("-", "_"))
    if kind is None:
        parser.add_argument(flag, action="store_true", help=text)
    elif isinstance(kind, list):
        parser.add_argument(flag, type=kind[0], nargs="+", help=text)
    else:
        parser.add_argument(flag, type=kind, default=default, help=text)


def _with_settings(words: list[str]) -> list[str]:
    """The words with those of a run's own settings before them, or with a network's name as a setting."""
    checkpoint, model = _value(words, "--checkpoint"), _value(words, "--model")
    if checkpoint is not None:
        settings = Path(checkpoint) / "config.yaml"
        if not settings.is_file():
            raise FileNotFoundError(f"no config.yaml in {checkpoint}: expected a run folder that training has written")
        return ["--config", str(settings), *words]
    if model is None:
        return words
    named = ["--model.backbone", model, "--model.embedding_size", "null"]
    index = next(i for i, word in enumerate(words) if word == "--model" or word.startswith("--model="))
    return [*words[:index], *named, *words[index + (2 if words[index] == "--model" else 1) :]]


def _check(flags: Namespace, words: list[str]) -> None:
    """Refuses what contradicts itself, before anything is loaded."""
    given = {"--checkpoint": flags.checkpoint, "--model": _value(words, "--model"), "--embeddings": flags.embeddings}
    named = [flag for flag, value in given.items() if value is not None]
    if not named:
        raise InputError(
            "nothing to measure: give --checkpoint RUN (such as runs/quickstart), --model NAME or --embeddings FILE"
        )
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} name different things to measure: give one")
    files = [flag for flag, *_ in WHAT if flag not in given]
    network = ["--flip", "--crops", "--save-embeddings", "--ignore-same-group", "--sheet"]
    used = {word.split("=")[0] for word in words}
    for flag in files if named != ["--embeddings"] else network:
        if flag in used:
            other = "--embeddings" if flag in files else "--checkpoint or --model"
            raise InputError(f"{flag} belongs to {other}, not to {named[0]}: leave it out")
    if flags.max_memory <= 0:
        raise InputError(f"--max-memory must be a positive number of GB, found {flags.max_memory}")


def _value(words: Sequence[str], flag: str) -> str | None:
    """The value of ``flag``, which decides the defaults of all others and so is read before them."""
    for position, word in enumerate(words):
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
        if word == flag and position + 1 < len(words):
            return words[position + 1]
    return None
