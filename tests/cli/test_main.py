"""The frame around every command: warnings, errors, exit status."""

import subprocess
import sys
import warnings

import pytest

from hgsl.cli import _main
from hgsl.common.errors import InputError

OWN = f"""
import warnings
from hgsl.cli._main import run
def work():
    warnings.warn_explicit("a layer is closed", UserWarning, {_main.__file__!r}, 7)
    warnings.warn_explicit("elsewhere", UserWarning, "/another/package.py", 9)
run(work)
"""


def test_warnings_of_hgsl_are_one_line_and_others_keep_their_location() -> None:
    result = subprocess.run([sys.executable, "-c", OWN], capture_output=True, text=True, timeout=120)
    assert result.stderr.splitlines()[0] == "warning: a layer is closed"
    assert "/another/package.py:9: UserWarning: elsewhere" in result.stderr


def test_the_format_of_warnings_is_restored() -> None:
    before = warnings.formatwarning
    assert _main.run(lambda: None) == 0
    assert warnings.formatwarning is before


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such thing"), 2, "error: no such thing"),
        (FileNotFoundError(2, "No such file or directory", "a.yaml"), 2, "error: No such file or directory: a.yaml"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_mistakes_are_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    assert _main.run(work) == code
    assert capsys.readouterr().err.strip() == message
