"""``hgsl-eval``: the retrieval scores of a model, or of embeddings in files."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hgsl.cli._eval_flags import FILES, OUTPUTS, check_files, check_flags, eval_parser, option_values, value_of
from hgsl.cli._main import run
from hgsl.cli._paths import check_data_root
from hgsl.cli._settings import parse_as, settings_of_run
from hgsl.common.device_names import check_device_name
from hgsl.common.errors import InputError
from hgsl.common.model_source import check_model_source
from hgsl.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _evaluate(words), ends_process=arguments is None)


def _evaluate(words: list[str]) -> None:
    checkpoint, arguments = value_of(words, "--checkpoint"), _with_settings(words)
    settings = Config if checkpoint is None else settings_of_run(Path(checkpoint))
    config, flags = parse_as(settings, eval_parser(settings), arguments, quiet=checkpoint is not None)
    check_flags(flags, words)
    if value_of(words, "--data.image_size") and not value_of(words, "--eval.image_size"):
        config.eval.image_size = None  # the size that is given, not that of the config file
    values = option_values(flags, config)
    check_device_name(config.run.device, "run.device")
    if flags.embeddings:
        check_files(flags)
    else:
        check_data_root(config)

    # Imported after the checks, since the libraries take seconds to load.
    from hgsl.engine.evaluation import EvalOptions, evaluate
    from hgsl.engine.evaluation.files import EmbeddingFiles, load_files, search_device
    from hgsl.engine.evaluation.outputs import EvalOutputs
    from hgsl.engine.evaluation.settings import evaluate_settings
    from hgsl.evaluation.parts.cluster import RayCluster

    ray = RayCluster(flags.address, config.run.device) if flags.engine == "ray" else None
    options = EvalOptions(**values, ray=ray)
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


def _with_settings(words: list[str]) -> list[str]:
    """The arguments, preceded by the config file of the run, or with ``--model`` replaced by settings."""
    for flag in ("--checkpoint", "--model"):
        if sum(word == flag or word.startswith(f"{flag}=") for word in words) > 1:
            raise InputError(f"{flag} is given twice: evaluate one model at a time")
    checkpoint, model = value_of(words, "--checkpoint"), value_of(words, "--model")
    if checkpoint is not None:
        settings = Path(checkpoint) / "config.yaml"
        if not Path(checkpoint).exists():
            raise FileNotFoundError(f"--checkpoint {checkpoint} does not exist in {Path.cwd()}")
        check_model_source(checkpoint)
        if not settings.is_file():
            raise FileNotFoundError(f"no config.yaml in {checkpoint}: expected a run folder that training has written")
        return ["--config", str(settings), *words]
    if model is None:
        return words
    model_settings = ["--model.backbone", model, "--model.embedding_size", "null"]
    index = next(i for i, word in enumerate(words) if word == "--model" or word.startswith("--model="))
    return [*words[:index], *model_settings, *words[index + (2 if words[index] == "--model" else 1) :]]
