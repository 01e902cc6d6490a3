"""Check of arguments that are whole numbers, such as a batch size."""

from numbers import Integral

from hgsl.common.errors import InputError


def check_whole_number(name: str, value: object, minimum: int) -> None:
    """Checks that the argument ``name`` is an integer, of Python or NumPy, of at least ``minimum``.

    Raises:
        InputError: It is not; True, False and floats such as 2.0 do not count as integers.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} must be a whole number of at least {minimum}, found {value!r:.80}")
    if value < minimum:
        raise InputError(f"{name} must be at least {minimum}, found {value}")
