"""The error a user's mistake raises, and the sentence that names the nearest right word."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message is one line that says what was found, where, what was expected and the way out.

    Command-line tools print it without a traceback and leave with exit code 2. It is a ``ValueError``, so that code
    which imports hgsl needs no special case.
    """


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns the entry of ``known`` most like ``word``, or None if none is alike.

    >>> nearest("tempratur", ["temperature", "scale"])
    'temperature'
    """
    names = {str(name).lower(): str(name) for name in known}
    matches = difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=0.5)
    return names[matches[0]] if matches else None


def unknown(what: str, word: object, known: Iterable[str]) -> InputError:
    """Builds the error for a name that is not one of ``known``.

    >>> print(unknown("pooling", "maxagv", ["avg", "max", "maxavg"]))
    unknown pooling 'maxagv': did you mean 'maxavg'? (known: avg, max, maxavg)
    """
    names = sorted(str(name) for name in known)
    close = nearest(str(word), names)
    hint = f"did you mean {close!r}? (known: {', '.join(names)})" if close else f"use one of: {', '.join(names)}"
    return InputError(f"unknown {what} {str(word)!r}: {hint}")


def first_line(error: Exception) -> str:
    """The first line of a message from elsewhere, or the error's kind where it has none.

    >>> first_line(EOFError())
    'EOFError'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
