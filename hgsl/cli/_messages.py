"""Error messages about settings, in terms of the settings rather than of the parser's types."""

import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hgsl.common.suggestions import nearest

DICT_SETTINGS = ("options", "miner_options", "top_k_schedule")  # with arbitrary keys
TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list such as [1, 2]",
    tuple: "two numbers such as [0.2, 1.0]",
    dict: "settings such as {name: value}",
    types.NoneType: "null",
}
STRAY = "unrecognized arguments: "
EXAMPLES = {"--checkpoint": "RUN", "--config": "FILE", "--data.root": "DIR"}
_PARSER = re.compile(r'^Parser key "(?P<key>[^"]+)"(?: element \d+)?:')
_FLAG_TYPE = re.compile(r"Expected an? <class '(?P<type>\w+)'>")
_VALUE = re.compile(r".*(?:Got|Given) value: (?P<value>.*)$")  # the last one, that of the whole setting


def explain(text: str, settings: type) -> str:
    """Returns a message of the parser on one line, with the expected type of the setting and the given value.

    Args:
        text: A message of jsonargparse.
        settings: The settings that were parsed.
    """
    text = flatten(text)
    key, value = _PARSER.search(text), _VALUE.search(text)
    if not key:
        return text
    if not value:
        return f"{key['key']}:{text[key.end() :]}"
    name, hint = key["key"], _type_of(settings, key["key"])
    if hint is None and (flag_type := _FLAG_TYPE.search(text)):  # a flag of the command, which is no setting
        name = f"--{name.replace('_', '-')}"
        hint = next((known for known in TYPES if known.__name__ == flag_type["type"]), None)
    return text if hint is None else f"{name}: expected {_expected(hint)}, found {value['value']!r}"


def unknown_setting(what: str, key: str, known: set[str]) -> str:
    """Returns the message about an unknown flag or key, with the nearest known one."""
    leaves = sorted(name for name in known if "." in name and name.rpartition(".")[2] == key.lstrip("-"))
    if leaves:
        return f"unknown {what} {key!r}: did you mean {' or '.join(map(repr, leaves))}?"
    same_group = {name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]}
    close = nearest(key, same_group) or nearest(key, known)
    return f"unknown {what} {key!r}: " + (f"did you mean {close!r}?" if close else "--help lists all of them")


def stray_argument(words: str, known: Iterable[str]) -> str:
    """Returns the message about words of the command line that belong to no flag."""
    flags = ", ".join(f"{flag} {value}" for flag, value in EXAMPLES.items() if flag in known)
    return f"unexpected argument {words!r}: a value follows its flag ({flags}), in quotes if it contains spaces"


def type_without_null(settings: type, key: str) -> str | None:
    """Returns the expected type of a dotted setting in words; None if it may be null."""
    hint = _type_of(settings, key)
    return None if hint is None or types.NoneType in get_args(hint) else _expected(hint)


def is_free(key: str) -> bool:
    """Whether ``key`` is a dictionary setting with arbitrary keys, or a key inside one."""
    return any(part in DICT_SETTINGS for part in key.split("."))


def flatten(text: str) -> str:
    """Returns a text on one line."""
    return " ".join(text.split())


def _type_of(settings: type, key: str) -> Any:
    """The type hint of a dotted setting, or None."""
    hint: Any = settings
    for name in key.split("."):
        hints: Mapping[str, Any] = get_type_hints(hint) if hasattr(hint, "__dataclass_fields__") else {}
        hint = hints.get(name)
        if hint is None:
            return None
    return hint


def _expected(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(part) for part in get_args(hint))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if hint == list[str]:
        return "a list such as [a, b]"
    return TYPES.get(origin or hint, str(hint))
