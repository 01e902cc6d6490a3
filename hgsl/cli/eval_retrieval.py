"""``tools/eval_retrieval.py`` and ``hgsl-eval``: the retrieval scores of a model, or of embeddings in files."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from hgsl.cli._main import run
from hgsl.cli._settings import build_parser, parse
from hgsl.common.errors import InputError
from hgsl.config import Config

DESCRIPTION = """Measure retrieval: of the model of a run (--checkpoint RUN, on its own data set or, with --data.name
and --data.root, on another one), of a pretrained network without training (--model TIMM_NAME with --data...), or of
embeddings in files (--embeddings E.npy --labels L.npy)."""

# A flag, what it takes ([kind]: one or more; None: nothing, a bare flag), its help.
WHAT: list[tuple[str, Any, str]] = [
    ("--checkpoint", str, "The run folder that training wrote."),
    ("--embeddings", str, "Embeddings (N, D) as .npy, .npz or .safetensors, float16 and bfloat16 too."),
    ("--labels", str, "Their labels, (N,) integers."),
    ("--ids", str, "Their ids, (N,) integers: an image is never a neighbor of a query of its own id."),
    ("--groups", str, "Their groups, (N,) integers such as camera numbers, -1 for none: an image of a query's label "
                      "and group is no neighbor of it."),
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
    from hgsl.cli import _eval_images, _eval_outputs, _eval_steps
    from hgsl.common import ranks

    with ExitStack() as stack:
        if flags.embeddings:
            subject = _eval_images.from_files(config, flags)
        else:
            subject = _eval_images.from_network(config, flags, stack)
        subject = _eval_steps.whitened(subject, flags)
        validation = None
        if flags.no_match is not None:
            if subject.validation is None:
                raise InputError("--no-match needs validation images: give --calibration-embeddings")
            validation = subject.validation()
            subject = subject.with_note(_note_on_calibration(config, flags.checkpoint))
        if not ranks.is_main():  # all have embedded their share; one searches and writes
            return
    subject, measured = _eval_steps.score(subject, validation, flags, flags.k or config.eval.ks)
    reports = _eval_outputs.reports_of(subject, measured, flags)
    _eval_outputs.print_tables(subject, measured, reports, flags.per_class)
    _eval_outputs.write_files(subject, measured, reports, flags)


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
    place = next(i for i, word in enumerate(words) if word == "--model" or word.startswith("--model="))
    return [*words[:place], *named, *words[place + (2 if words[place] == "--model" else 1) :]]


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
    if flags.bootstrap < 0 or flags.bootstrap == 1:
        raise InputError(f"--bootstrap needs at least 2 samples, found {flags.bootstrap}")


def _note_on_calibration(config: Config, checkpoint: str | None) -> str | None:
    """The note for a calibration on classes that the run has trained on."""
    if checkpoint is None:
        return None
    run = yaml.safe_load((Path(checkpoint) / "config.yaml").read_text(encoding="utf-8"))["data"]
    if (run.get("val_share") or 0, run.get("val_fold")) == (config.data.val_share, config.data.val_fold):
        return None
    return "no-match is calibrated on classes that the network was trained on: expect more false accepts than stated"


def _value(words: Sequence[str], flag: str) -> str | None:
    """The value of ``flag``, which decides the defaults of all others and so is read before them."""
    for position, word in enumerate(words):
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
        if word == flag and position + 1 < len(words):
            return words[position + 1]
    return None
