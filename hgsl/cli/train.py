"""``tools/train.py`` and ``hgsl-train``: from a config file to a trained model and its report."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hgsl.cli._main import run
from hgsl.cli._settings import CONFIGS, build_parser, parse, to_yaml
from hgsl.common.errors import InputError

DESCRIPTION = (
    "Train an embedding model and measure retrieval before and after. Without --config, configs/quickstart.yaml runs "
    "on images that the package draws itself."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 after bad input, 128 + signal after a signal (the state is saved)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _train(words))


def _train(words: list[str]) -> int:
    parser = build_parser(DESCRIPTION)
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier run in the run folder.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run in the run folder.")
    if not any(word == "--config" or word.startswith("--config=") for word in words):
        words = ["--config", str(CONFIGS / "quickstart.yaml"), *words]
    config, flags = parse(parser, words)
    if flags.resume and flags.overwrite:
        raise InputError("--resume goes on with the run in the folder, --overwrite replaces it: give one of the two")
    folder = Path(config.run.dir or Path("runs") / Path(str(flags.config[-1])).stem)

    from hgsl.engine.run import train
    from hgsl.engine.stop import Stopped

    try:
        train(config, to_yaml(config), folder, overwrite=flags.overwrite, resume=flags.resume)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    print(f"\nrun folder: {folder}\nthe same numbers again: python tools/eval_retrieval.py --checkpoint {folder}")
    return 0
