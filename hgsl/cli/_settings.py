"""From a config file and dotted overrides to a checked :class:`hgsl.config.Config`."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from hgsl.common.errors import InputError, nearest
from hgsl.config import Config

AnyConfig = TypeVar("AnyConfig", bound=Config)

CONFIGS = Path(__file__).parent.parent / "configs"
FREE = ("options", "miner_options", "top_k_schedule")  # dictionaries


def build_parser(description: str, settings: type[Config] = Config) -> jsonargparse.ArgumentParser:
    """Returns a parser of every setting of a run; the tool adds its own flags to it."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        description=description, exit_on_error=False, formatter_class=jsonargparse.DefaultHelpFormatter
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; flags after it override it.")
    parser.add_class_arguments(settings, as_group=True)
    return parser


def parse(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> tuple[Config, jsonargparse.Namespace]:
    """Reads the arguments into a :class:`Config` and the tool's own flags; see :func:`parse_as`."""
    return parse_as(Config, parser, arguments)


def parse_as(
    settings: type[AnyConfig], parser: jsonargparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[AnyConfig, jsonargparse.Namespace]:
    """Reads the arguments into the settings that the parser was built for, and the tool's own flags.

    Raises:
        InputError: An unknown key (the nearest right one is named), a wrong type, or settings that contradict.
        FileNotFoundError: There is no such config file.
    """
    flags = {option for action in parser._actions for option in action.option_strings}
    _check_flags(arguments, flags)
    for path in _config_files(arguments):
        _check_file(path, settings)
    try:
        values = parser.parse_args(list(arguments))
        built = parser.instantiate(values)
        config = settings(**{field.name: built[field.name] for field in dataclasses.fields(settings)})
    except (ValueError, jsonargparse.ArgumentError) as error:
        raise InputError(_flatten(str(error))) from None
    return config, built


def setting_names(settings: type = Config, prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting and group of settings."""
    for field in dataclasses.fields(settings):
        name = prefix + field.name
        yield name
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from setting_names(field.type, f"{name}.")


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for position, word in enumerate(arguments):
        if word == "--config" and position + 1 < len(arguments):
            yield Path(arguments[position + 1])
        elif word.startswith("--config="):
            yield Path(word.removeprefix("--config="))


def _check_flags(arguments: Sequence[str], known: set[str]) -> None:
    for word in arguments:
        flag = word.split("=", 1)[0].removesuffix("+")
        if flag.startswith("--") and flag != "--" and not _accepted(flag[2:], {name[2:] for name in known}):
            raise InputError(_unknown_setting("flag", flag, known))


def _check_file(path: Path, settings: type[Config]) -> None:
    if not path.is_file():
        shipped = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
        close = nearest(path.stem, shipped)
        hint = f"; did you mean configs/{close}.yaml?" if close else ""
        raise FileNotFoundError(f"no config file {path}{hint}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {_flatten(str(error))}") from None
    if content is not None and not isinstance(content, Mapping):
        raise InputError(f"{path} must hold settings such as 'train: {{epochs: 3}}', found a {type(content).__name__}")
    known = set(setting_names(settings))
    for key in _keys(content or {}):
        if not _accepted(key, known):
            raise InputError(_unknown_setting(f"key in {path}:", key, known))


def _keys(content: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping) and not _is_free(f"{prefix}{key}"):
            yield from _keys(value, f"{prefix}{key}.")


def _accepted(key: str, known: set[str]) -> bool:
    return key in known or _is_free(key)


def _is_free(key: str) -> bool:
    """Whether ``key`` is, or lies in, a setting whose own keys only its reader knows."""
    return any(part in FREE for part in key.split("."))


def _unknown_setting(what: str, key: str, known: set[str]) -> str:
    leaves = sorted(name for name in known if "." in name and name.rpartition(".")[2] == key.lstrip("-"))
    if leaves:
        return f"unknown {what} {key!r}: did you mean {' or '.join(map(repr, leaves))}?"
    same_group = {name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]}
    close = nearest(key, same_group) or nearest(key, known)
    return f"unknown {what} {key!r}: " + (f"did you mean {close!r}?" if close else "--help lists all of them")


def _flatten(text: str) -> str:
    return " ".join(text.split())
