"""Search space: the grammar of ``--search``, and the settings of a trial. Nothing here imports Optuna or torch."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import yaml

from hgsl.common.errors import InputError
from hgsl.config import Config

# Settings that decide which images score, or where a run computes: with another value two trials cannot be compared.
FIXED = (
    *("run.", "eval.", "sparsify.", "train.select", "train.patience"),
    *("data.name", "data.root", "data.protocol", "data.options"),
    *("data.test_share", "data.val_share", "data.val_fold", "data.crop_to_boxes"),
)
FORMS = "NAME=LOW..HIGH, NAME=log:LOW..HIGH, NAME=LOW..HIGH/STEP or NAME=A,B,C"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(?P<log>log:)?(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})(?:/(?P<step>{_NUMBER}))?")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        low: The smallest number.
        high: The largest number.
        log: Whether the logarithm is sampled evenly.
        step: Distance between two numbers; None for every number (of an integer range: 1).
        integer: Whether only integers are in the range.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False

    def examples(self) -> list[Any]:
        """Returns both ends."""
        return [int(self.low), int(self.high)] if self.integer else [self.low, self.high]


@dataclass(frozen=True)
class Choices:
    """Values without an order, by their text: Optuna stores only numbers and text, and a value may be a list."""

    values: Mapping[str, Any]

    def examples(self) -> list[Any]:
        """Returns all values."""
        return list(self.values.values())


Dimension = Range | Choices


def parse_space(arguments: Sequence[str], config: Config) -> dict[str, Dimension]:
    """Returns setting -> what is searched for it, in the order of the arguments.

    >>> parse_space(["loss.alpha=log:0.1..1.6", "loss.top_k=1,5,null"], Config())["loss.alpha"]
    Range(low=0.1, high=1.6, log=True, step=None, integer=False)

    Args:
        arguments: One a setting, in one of the ``FORMS``.
        config: The settings that are not searched, which determine the types of those that are.

    Raises:
        InputError: An argument has another form, names a setting twice, or names one that cannot be searched.
    """
    space: dict[str, Dimension] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        name = name.strip()
        if not equals or not text.strip():
            raise InputError(f"--search {argument!r}: expected {FORMS}, such as loss.alpha=log:0.1..1.6")
        if name in space:
            raise InputError(f"--search names {name} twice: put all of its values into one argument")
        _check_searchable(name)
        space[name] = _dimension(argument, text.strip(), _is_number(config, name))
    return space


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns ``config`` with other values of some settings, checked together.

    Args:
        config: The settings of all trials.
        settings: Dotted name -> value.

    Raises:
        InputError: The settings contradict each other.
    """
    try:
        changed: Config = _replaced(config, settings)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from None
    return changed


def _replaced(part: Any, settings: Mapping[str, Any]) -> Any:
    """A dataclass, or a dictionary such as ``loss.options``, with other values by dotted names below it."""
    if isinstance(part, Mapping):
        return {**part, **settings}
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        field, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(field, {})[rest] = value
        else:
            values[field] = value
    for field, below in inner.items():
        values[field] = _replaced(values.get(field, getattr(part, field)), below)
    return dataclasses.replace(part, **values)


def in_short(settings: Mapping[str, Any]) -> str:
    """Returns settings on one line, numbers with four digits.

    >>> in_short({"loss.alpha": 0.45797, "loss.top_k": None})
    'loss.alpha 0.458  loss.top_k null'
    """
    texts = {name: f"{v:.4g}" if isinstance(v, float) else as_text(v) for name, v in settings.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())


def as_text(value: Any) -> str:
    """Returns a value as it is written in a config file, on one line.

    >>> as_text(None), as_text([0.2, 1.0]), as_text("adamw")
    ('null', '[0.2, 1.0]', 'adamw')
    """
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _check_searchable(name: str) -> None:
    if name.startswith(FIXED):
        raise InputError(
            f"--search {name}: this setting decides what is compared, so it is the same in all trials: "
            "give it as a flag of its own, or in the config file"
        )


def _dimension(argument: str, text: str, integer: bool | None) -> Dimension:
    """Reads the right side of an argument.

    Args:
        argument: The whole argument, for messages.
        text: The right side.
        integer: Whether the setting takes integers; None if it takes no numbers.
    """
    match = _RANGE.fullmatch(text)
    if match:
        return _range(argument, match, integer)
    if text.startswith("log:") or (".." in text and "," not in text):
        raise InputError(f"--search {argument}: expected two numbers with .. between them, such as log:0.1..1.6")
    return _choices(argument, text)


def _range(argument: str, match: re.Match[str], integer: bool | None) -> Range:
    low, high = float(match["low"]), float(match["high"])
    step = None if match["step"] is None else float(match["step"])
    if integer is None:
        raise InputError(f"--search {argument}: this setting is no number: list its values, separated by commas")
    if not math.isfinite(low) or not math.isfinite(high) or low >= high:
        raise InputError(f"--search {argument}: expected a number, then a larger one")
    if match["log"] and low <= 0:
        raise InputError(f"--search {argument}: a logarithmic range begins above 0")
    if match["log"] and step is not None:
        raise InputError(f"--search {argument}: a logarithmic range has no step: leave out log: or the step")
    if step is not None and not 0 < step <= high - low:
        raise InputError(f"--search {argument}: the step must be above 0 and at most the length of the range")
    if integer and not all(value.is_integer() for value in (low, high, step or 1.0)):
        raise InputError(f"--search {argument}: this setting is a whole number: give whole numbers")
    return Range(low, high, bool(match["log"]), step, bool(integer))


def _choices(argument: str, text: str) -> Choices:
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise InputError(f"--search {argument}: expected values separated by commas, such as 1,5,null") from None
    values = [float(v) if isinstance(v, str) and re.fullmatch(_NUMBER, v) else v for v in values]  # 1e-3, for YAML text
    texts = {as_text(value): value for value in values}
    if len(values) < 2 or len(texts) < len(values):
        raise InputError(f"--search {argument}: expected at least two values, all different; {FORMS}")
    return Choices(texts)


def _is_number(config: Config, name: str) -> bool | None:
    """Whether a setting takes integers; False if it takes other numbers too, None if it takes none.

    An entry of a dictionary (``loss.options.margin``) takes any number, as only its reader knows its type.
    """
    hint: Any = type(config)
    for part in name.split("."):
        if not dataclasses.is_dataclass(hint):
            return False
        hints = get_type_hints(hint)
        if part not in hints:
            raise InputError(f"--search {name}: there is no such setting; hgsl-train --help lists all")
        hint = hints[part]
    if dataclasses.is_dataclass(hint):
        first = dataclasses.fields(hint)[0].name
        raise InputError(f"--search {name}: this is a group of settings: search one of them, such as {name}.{first}")
    types = set(get_args(hint)) or {hint}
    return False if float in types else True if int in types else None
