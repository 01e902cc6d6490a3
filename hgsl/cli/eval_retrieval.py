"""``tools/eval_retrieval.py`` and ``hgsl-eval``: the retrieval scores of a trained model."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hgsl.cli._main import run
from hgsl.cli._settings import build_parser, parse
from hgsl.common.errors import InputError

DESCRIPTION = (
    "Measure retrieval with the model of a run, on its own data set or on another one (--data.name, --data.root)."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _evaluate(words))


def _evaluate(words: list[str]) -> None:
    parser = build_parser(DESCRIPTION)
    parser.add_argument("--checkpoint", metavar="RUN", help="The run folder that training wrote.")
    parser.add_argument("--json", metavar="FILE", help="Also write the scores to this file.")
    checkpoint = _value(words, "--checkpoint")
    if checkpoint is None:
        raise InputError("--checkpoint RUN is missing: name the folder of a finished run, such as runs/quickstart")
    settings = Path(checkpoint) / "config.yaml"
    if not settings.is_file():
        raise FileNotFoundError(f"no config.yaml in {checkpoint}: expected a run folder that training has written")
    config, flags = parse(parser, ["--config", str(settings), *words])

    from hgsl.common.files import write_json
    from hgsl.data import summary
    from hgsl.engine.build import build_eval_set, build_manifest, build_place, to_place
    from hgsl.engine.evaluate import evaluate
    from hgsl.engine.run_folder import versions
    from hgsl.evaluation import format_table
    from hgsl.models import load_embedder

    place = build_place(config)
    manifest = build_manifest(config.data)
    print(summary(manifest), flush=True)
    model, image_size = load_embedder(checkpoint)
    dataset = build_eval_set(config.data, manifest, model, image_size)
    scores = evaluate(to_place(model, place), dataset, config.eval, place)
    print(f"\n{scores['num_queries']} queries, {scores['num_gallery']} images, in percent")
    print(format_table({Path(checkpoint).name: scores}))
    if flags.json:
        write_json(flags.json, {**scores, "checkpoint": checkpoint, "versions": versions()})
        print(f"\nwritten: {flags.json}")


def _value(words: Sequence[str], flag: str) -> str | None:
    """The value of ``flag``, which decides the defaults of all others and so is read before them."""
    for position, word in enumerate(words):
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
        if word == flag and position + 1 < len(words):
            return words[position + 1]
    return None
