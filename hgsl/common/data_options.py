"""Check of the options of a data set against the parameters of its adapter."""

from collections.abc import Mapping
from typing import Any

from hgsl.common.errors import InputError, unknown


def check_data_options(name: str, options: Mapping[str, Any], types: Mapping[str, Any], source: str = "") -> None:
    """Checks names and types of the options of a data set.

    Args:
        name: The data set, for the message.
        options: Arguments of its adapter.
        types: Type of each parameter that the adapter has beside the folder.
        source: Where the options were given, for the message, such as "data.options".

    Raises:
        InputError: There is no such option, or its value is of another type.
    """
    where = f" in {source}" if source else ""
    for option, value in options.items():
        if option not in types:
            raise unknown(f"option of data set {name}{where}", option, types)
        hint = types[option]
        if not isinstance(value, hint) or (isinstance(value, bool) and hint is int):
            expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("pathlib.", "")
            raise InputError(f"option {option} of data set {name}{where} must be {expected}, found {value!r}")
