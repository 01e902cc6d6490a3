"""The frame around every command: warnings, errors, exit status."""

import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from hgsl.cli import _main
from hgsl.common.errors import InputError

OWN = f"""
import warnings
from hgsl.cli._main import run
def work():
    warnings.warn_explicit("a layer is closed", UserWarning, {_main.__file__!r}, 7)
    warnings.warn_explicit("elsewhere", UserWarning, "/another/package.py", 9)
    warnings.warn_explicit("`torch.jit.script_method` is deprecated. Use more.", FutureWarning, "/torch/_script.py", 3)
run(work)
"""


def test_warnings_of_hgsl_are_one_line_others_keep_their_location_and_one_of_torch_is_hidden() -> None:
    result = subprocess.run([sys.executable, "-c", OWN], capture_output=True, text=True, timeout=120)
    assert result.stderr.splitlines()[0] == "warning: a layer is closed"
    assert "/another/package.py:9: UserWarning: elsewhere" in result.stderr
    assert "script_method" not in result.stderr


def test_the_format_of_warnings_is_restored() -> None:
    before = warnings.formatwarning
    assert _main.run(lambda: None) == 0
    assert warnings.formatwarning is before


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such thing"), 2, "error: no such thing"),
        (FileNotFoundError("no image a\nb\x1b[2J.jpg"), 2, r"error: no image a\nb\x1b[2J.jpg"),
        (
            InputError("Caught InputError in worker 0.\nTraceback\nhgsl.InputError: no image a\nb"),
            2,
            r"error: no image a\nb",
        ),
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


SWALLOWS = """
import sys, time
from hgsl.cli._main import run
def work():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except:  # as a library may do around an import
        print("swallowed", flush=True)
    time.sleep(60)
run(work, ends_process=True)
"""


def test_an_interrupt_that_a_library_swallows_ends_the_process_all_the_same() -> None:
    command = [sys.executable, "-c", SWALLOWS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (output, errors, process.returncode) == ("swallowed\n", "interrupted\n", 130)


WRITES = {
    "prints little": "print('a line')",
    "prints much": "[print('a line') for _ in range(9999)]",
    "prints long help": "argparse.ArgumentParser(description='a line ' * 9999).parse_args(['--help'])",
    "prints short help": "argparse.ArgumentParser().parse_args(['--help'])",
}
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is one of Linux")


@needs_full
@pytest.mark.parametrize("ends_process", [True, False])
@pytest.mark.parametrize("work", WRITES.values(), ids=WRITES)
def test_output_that_cannot_be_written_is_one_line_and_a_status(work: str, ends_process: bool) -> None:
    code = (
        f"import argparse, sys\nfrom hgsl.cli._main import run\ndef work():\n    {work}\n"
        f"sys.exit(run(work, ends_process={ends_process}))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device: standard output\n")


@needs_full
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["compare", "--help"],
        ["search", "query", "--help"],
        ["export", "--help"],
        ["prepare", "--help"],
        pytest.param(["--version"], marks=pytest.mark.slow),
        pytest.param(["train", "--help"], marks=pytest.mark.slow),
        pytest.param(["train", "--print_config"], marks=pytest.mark.slow),
        pytest.param(["train", "--help-all"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_no_command_succeeds_without_its_output(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hgsl", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device: standard output\n")


@needs_full
def test_the_status_tells_of_an_error_that_cannot_be_printed() -> None:
    code = (
        "from hgsl.cli._main import run\nfrom hgsl.common.errors import InputError\n"
        "def work():\n    raise InputError('no such thing')\nrun(work, ends_process=True)"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_closed_pipe_is_no_error() -> None:
    code = "from hgsl.cli._main import run\nraise SystemExit(run(lambda: print('a line ' * 99999)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.close()
    assert (process.communicate()[1], process.wait()) == ("", 0)
