"""Command-line settings: a config file and dotted overrides, read into a checked :class:`hgsl.config.Config`."""

import copy
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import jsonargparse

from hgsl.cli._config_files import CONFIGS, check_file, config_files, for_another_data_set, is_search, resolve
from hgsl.cli._help import HelpFormatter, hide
from hgsl.cli._messages import STRAY, explain, is_free, stray_argument, unknown_setting
from hgsl.cli._names import check_names
from hgsl.common.errors import InputError
from hgsl.config import Config, SparsifyRunConfig

__all__ = ["CONFIGS", "AnyConfig", "build_parser", "parse", "parse_as", "setting_names", "settings_of_run"]

AnyConfig = TypeVar("AnyConfig", bound=Config)


class SettingsHelpFormatter(HelpFormatter, jsonargparse.DefaultHelpFormatter):
    """The help format of every command, for a parser of settings."""


def build_parser(description: str, settings: type[Config] = Config) -> jsonargparse.ArgumentParser:
    """Returns a parser of every setting of a run; the command adds its own flags to it."""
    if settings not in _PARSERS:
        _PARSERS[settings] = _parser_of(settings)
    parser = copy.deepcopy(_PARSERS[settings])
    parser.description, parser.prog = description, Path(sys.argv[0]).name
    return parser


_PARSERS: dict[type[Config], jsonargparse.ArgumentParser] = {}  # a copy takes a tenth of the time


def _parser_of(settings: type[Config]) -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(exit_on_error=False, formatter_class=SettingsHelpFormatter, print_config=None)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of settings, or the name of a packaged recipe; flags and later files override it.",
    )
    parser.add_class_arguments(settings, as_group=True)
    hide(parser, [f"--{field.name}" for field in dataclasses.fields(settings)])
    # That of jsonargparse leaves out what the help only lists, and prints settings that contradict each other.
    parser.add_argument(
        "--print_config", action="store_true", help="Print all settings as YAML, without running anything."
    )
    return parser


def parse(
    parser: jsonargparse.ArgumentParser, arguments: Sequence[str], *, quiet: bool = False
) -> tuple[Config, jsonargparse.Namespace]:
    """Reads the arguments into a :class:`Config` and the command's own flags; see :func:`parse_as`."""
    return parse_as(Config, parser, arguments, quiet=quiet)


def parse_as(
    settings: type[AnyConfig], parser: jsonargparse.ArgumentParser, arguments: Sequence[str], *, quiet: bool = False
) -> tuple[AnyConfig, jsonargparse.Namespace]:
    """Reads the arguments into the settings that the parser was built for, and the command's own flags.

    With ``--print_config`` it prints the settings and exits.

    Args:
        settings: Those that the parser was built for.
        parser: A parser from :func:`build_parser`.
        arguments: Arguments of the command line.
        quiet: Whether to print no note about settings of a data set that another one replaces.

    Raises:
        InputError: An unknown key or name (the nearest known one is given), a wrong type, or contradicting settings.
        FileNotFoundError: There is no such config file.
    """
    groups = {f"--{field.name}" for field in dataclasses.fields(settings)}  # they would read a file unchecked
    known = {option for action in parser._actions for option in action.option_strings} - groups
    _check_flags(arguments, known)
    words = resolve(arguments)
    for path in config_files(words):
        check_file(path, settings, set(setting_names(settings)))
    try:
        values = parser.parse_args(for_another_data_set(words, quiet=quiet))
        built = parser.instantiate(values)
        config = settings(**{field.name: built[field.name] for field in dataclasses.fields(settings)})
    except (ValueError, jsonargparse.ArgumentError) as error:
        if str(error).startswith(STRAY):
            raise InputError(stray_argument(str(error).removeprefix(STRAY), known)) from None
        raise InputError(explain(str(error), settings)) from None
    check_names(config)
    if built.print_config:
        print(config.to_yaml(), end="")
        parser.exit()
    return config, built


def settings_of_run(folder: Path) -> type[Config]:
    """Returns the type of the settings in ``config.yaml`` of a run: of a training, or of a ticket search."""
    return SparsifyRunConfig if is_search(folder / "config.yaml") else Config


def setting_names(settings: type = Config, prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting and group of settings."""
    for field in dataclasses.fields(settings):
        name = prefix + field.name
        yield name
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from setting_names(field.type, f"{name}.")


def _check_flags(arguments: Sequence[str], known: set[str]) -> None:
    for word in arguments:
        flag = word.split("=", 1)[0].removesuffix("+")
        if flag.startswith("--") and flag not in ("--", *known) and not is_free(flag[2:]):
            raise InputError(unknown_setting("flag", flag, known))
