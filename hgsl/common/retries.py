"""Attempts to reach a server or an object store, and the error of the last one in one line."""

import re
import time
from collections.abc import Callable
from typing import TypeVar

from hgsl.common.errors import InputError
from hgsl.common.paths import public_uri

Result = TypeVar("Result")

ATTEMPTS = 4
PAUSE = 0.5  # seconds after the first failed attempt; doubled after each
RETRIED_STATUS = (408, 425, 429)  # of the statuses from 400 to 499, which are otherwise final
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, NotImplementedError)


def attempt(uri: str, action: Callable[[], Result]) -> Result:
    """Returns the result of ``action``, which is called again after an error that may pass.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: Another error, without passwords and tokens in its addresses.
    """
    for number in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as raised:
            error = _underlying(uri, raised)
            status = getattr(error, "status", None)  # of aiohttp
            if isinstance(error, FileNotFoundError) or status == 404:
                raise FileNotFoundError(public_uri(uri)) from None
            if _is_final(error) or number == ATTEMPTS:
                raise InputError(f"cannot read {public_uri(uri)}: {_reason(uri, error)}") from None
            time.sleep(PAUSE * 2 ** (number - 1))
    raise AssertionError("the last attempt returns or raises")


def _underlying(uri: str, error: Exception) -> BaseException:
    """The cause of an error: fsspec reports every failure of a request for the size by HTTP as a missing file."""
    hidden = isinstance(error, FileNotFoundError) and uri.startswith("http")
    return error.__cause__ if hidden and error.__cause__ is not None else error


def _is_final(error: BaseException) -> bool:
    """Whether another attempt would end in the same error."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in RETRIED_STATUS
    return isinstance(error, FINAL) or _is_denied(error)


def _is_denied(error: BaseException) -> bool:
    denied = isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403)
    return denied or "Credentials" in type(error).__name__  # of botocore, where there are none


def _reason(uri: str, error: BaseException) -> str:
    """The message of an error in one line, without passwords and tokens in its addresses, and what to do."""
    message = " ".join(str(getattr(error, "message", "") or error).split())
    status = getattr(error, "status", None)
    message = f"{status} {message}" if isinstance(status, int) else message
    message = re.sub(r"\w+://[^\s'\"]+", lambda match: public_uri(match[0]), message) or type(error).__name__
    if _is_denied(error):
        return f"{message} (access denied: set the credentials of {uri.partition('://')[0]} in the environment)"
    return message if _is_final(error) else f"{message} (after {ATTEMPTS} attempts)"
