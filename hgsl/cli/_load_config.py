"""Settings for Python: config files and single values, checked as on the command line."""

import os
from collections.abc import Mapping
from typing import Any

from hgsl.cli._paths import check_paths
from hgsl.cli._settings import build_parser, parse
from hgsl.cli._unused import check_used
from hgsl.common.errors import InputError
from hgsl.config import Config


def load_config(*files: str | os.PathLike[str], settings: Mapping[str, Any] | None = None) -> Config:
    """Reads the settings of a training, as ``hgsl train --config FILE --NAME VALUE`` does.

    >>> load_config("folder", settings={"data.root": "my/photos", "train.epochs": 3})  # doctest: +SKIP

    Args:
        files: YAML files, or names of packaged recipes; later ones override earlier ones.
        settings: Dotted name -> value; they override the files.

    Raises:
        InputError: A setting is unknown, of another type, without effect, or contradicts another one.
        FileNotFoundError: There is no such config file, or a path in the settings does not exist.
    """
    from hgsl.engine.tune.space import as_text

    for file in files:
        if not isinstance(file, str | os.PathLike):
            raise InputError(
                f"load_config: {file!r:.80} is no config file: give paths or names, and values as settings={{...}}"
            )
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(
            f"settings is {settings!r:.80}: expected dotted names with values, such as {{'train.epochs': 3}}"
        )
    words = [word for file in files for word in ("--config", os.fspath(file))]
    for name, value in (settings or {}).items():
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else as_text(value)
        words.append(f"--{name}={text}")
    config, _ = parse(build_parser(""), words, quiet=True)
    check_used(config, words)
    check_paths(config)
    return config
