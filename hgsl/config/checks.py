"""Checks of settings, by themselves and against each other."""

from collections.abc import Iterator, Mapping
from math import isinf, isnan
from typing import Any


def refuse(condition: bool, message: str) -> None:
    """Raises ValueError with ``message`` if ``condition`` holds; the command line shows it as one line."""
    if condition:
        raise ValueError(message)


def check_finite(section: str, settings: object) -> None:
    """Refuses NaN and infinity in any setting of a section, NaN also in the arguments that it holds for other code.

    Comparisons with NaN are false, so that checks of a range may pass it.
    """
    for name, value in vars(settings).items():
        is_free = isinstance(value, Mapping)  # such as loss.options, where infinity may mean no limit
        wrong = any(isnan(number) or (isinf(number) and not is_free) for number in _floats(value))
        refuse(wrong, f"{section}.{name} must be finite, found {value}")


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _floats(item)
