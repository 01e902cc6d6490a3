"""The error for invalid input, and its message about an unknown name."""

from collections.abc import Iterable

from hgsl.common.suggestions import nearest


class InputError(ValueError):
    """Invalid input: the message is one line with the value, its source, what was expected and how to fix it.

    Commands print it without a traceback and exit with status 2. It is a ``ValueError``, so that code which imports
    hgsl needs no special case.
    """


def unknown(what: str, word: object, known: Iterable[str]) -> InputError:
    """Returns the error for a name that is not one of ``known``.

    >>> print(unknown("pooling", "maxagv", ["avg", "max", "maxavg"]))
    unknown pooling 'maxagv': did you mean 'maxavg'? (known: avg, max, maxavg)
    """
    names = sorted(str(name) for name in known)
    close = nearest(str(word), names)
    hint = f"did you mean {close!r}? (known: {', '.join(names)})" if close else f"use one of: {', '.join(names)}"
    return InputError(f"unknown {what} {str(word)!r}: {hint}")


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the name of its class where it has none.

    >>> first_line(EOFError())
    'EOFError'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
