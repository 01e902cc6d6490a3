"""Every exit of a command ends all its processes: they share the pipe that these tests read to its end."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hgsl.engine.folder import run_folder
from tests.helpers import ROOT, SMALL, command, environment

WORDS = [*SMALL, "--loss.centers", "random", "--loss.both_sides", "0", "--data.workers", "2", "--run.dir", "out"]
FAILING = """
import sys
from hgsl.common import ranks
from hgsl.engine.loop import loop
step = loop.train_step
def fail(state, *arguments):
    if state.step == 2 and ranks.rank() == ranks.world_size() - 1:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return step(state, *arguments)
loop.train_step = fail
from hgsl.cli.train import main
sys.exit(main())
"""


def start(*words: str, script: str | None = None, processes: int = 1, **options: object) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    line = command(script or ROOT / "tools" / "train.py", *words, processes=processes)
    return subprocess.Popen(line, env=environment(), text=True, **pipes)


@pytest.fixture(autouse=True)
def _failing_script(in_tmp_path: Path) -> None:
    (in_tmp_path / "failing.py").write_text(FAILING)


@pytest.mark.slow
def test_an_unreadable_training_image(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder(size=200)
    for path in root.glob("*/02.jpg"):
        path.write_bytes(path.read_bytes()[:2000])
    process = start(*WORDS, "--data.root", str(root))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith("error: cannot read image")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_an_unexpected_error(photo_folder: Callable[..., Path]) -> None:
    process = start(*WORDS, "--data.root", str(photo_folder()), script="failing.py")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
    with run_folder.locked(Path("out")):
        pass


@pytest.mark.slow
def test_an_error_on_one_of_two_processes(photo_folder: Callable[..., Path]) -> None:
    process = start(*WORDS, "--data.root", str(photo_folder()), script="failing.py", processes=2)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "[rank1]: RuntimeError: CUDA out of memory" in errors
    assert "[rank0]:" not in errors, "the other one prints at most a line"
    assert "Warning" not in errors


@pytest.mark.slow
def test_a_killed_process_ends_its_workers_and_unlocks_its_folder(photo_folder: Callable[..., Path]) -> None:
    process = start(*WORDS, "--data.root", str(photo_folder()), "--train.epochs", "500", stderr=subprocess.DEVNULL)
    assert process.stdout
    while not process.stdout.readline().startswith("epoch 1/"):
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with run_folder.locked(Path("out")):
        pass


@pytest.mark.slow
def test_a_closed_pipe_stops_neither_the_run_nor_its_files(photo_folder: Callable[..., Path]) -> None:
    process = start(*WORDS, "--data.root", str(photo_folder()), "--train.epochs", "1")
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 0
    assert errors == ""
    assert Path("out/report.json").is_file()


def test_a_terminal_that_cannot_encode_characters_shows_their_codes() -> None:
    code = "from hgsl.cli._main import run; run(lambda: print('caf\\u00e9'))"
    ascii_only = environment(PYTHONIOENCODING="ascii")
    result = subprocess.run([sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "caf\\xe9\n", "")
