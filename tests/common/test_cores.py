import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from hgsl.common import cores
from hgsl.common.cores import available_cores, shared_cores, wait_without_spinning
from tests.helpers import environment, run_code


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight cores of an idle machine; returns the file with the quota, which does not exist."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("quota", "expected"),
    [(None, 8), ("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)],
)
def test_a_container_limits_the_cores(eight_cores: Path, quota: str | None, expected: int) -> None:
    if quota:
        eight_cores.write_text(quota + "\n")
    assert available_cores() == expected


@pytest.mark.parametrize(
    ("threads", "load", "warning"),
    [
        (8, 0.2, None),
        (1, 30.0, None),
        (4, 4.0, None),
        (4, 5.5, "other work occupies 5.5 of the machine's 8 cores"),
        (8, 1.5, "other work occupies 1.5 of the machine's 8 cores"),
        (9, 0.0, "9 threads share 8 cores, which slows every step: set run.threads 8"),
    ],
)
def test_shared_cores_are_reported(
    eight_cores: Path, monkeypatch: pytest.MonkeyPatch, threads: int, load: float, warning: str | None
) -> None:
    monkeypatch.setattr(cores, "cores_of_others", lambda seconds: load)
    text = shared_cores(threads)
    assert text is None if warning is None else warning in (text or "")


def test_the_work_of_others_is_what_the_processors_did_beyond_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three cores busy for a second by the counts, of which this process had half a core."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 10 20 5000 70 3 4 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\n")
    later, hertz = "cpu  {} 10 20 9000 90 3 4 {} 0 0\n", os.sysconf("SC_CLK_TCK")
    seconds = [0.0, 1.0]  # of the clock, before and after
    own = [5.0, 5.5]

    def sleep(_: float) -> None:
        stat.write_text(later.format(100 + 2 * hertz, hertz))

    monkeypatch.setattr(cores, "STAT", stat)
    clock = SimpleNamespace(monotonic=lambda: seconds.pop(0), process_time=lambda: own.pop(0), sleep=sleep)
    monkeypatch.setattr(cores, "time", clock)
    assert cores.cores_of_others(1.0) == pytest.approx(2.5)
    monkeypatch.undo()
    monkeypatch.setattr(cores, "STAT", tmp_path / "none")
    assert cores.cores_of_others(1.0) == 0.0


def test_the_environment_of_the_user_decides_how_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cores.WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "200")
    wait_without_spinning()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("KMP_BLOCKTIME")
    wait_without_spinning()
    assert {name: os.environ[name] for name in cores.WAITING} == cores.WAITING
    for name in cores.WAITING:
        monkeypatch.delenv(name)


COMMAND = """
import os, sys
sys.argv = ["hgsl-compare", "--help"]
from hgsl.cli import _main
def work():
    assert "torch" not in sys.modules
    print(os.environ.get("OMP_WAIT_POLICY"))
_main.run(work, ends_process=True)
_main.run(work)
"""


def test_a_command_sets_it_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    assert "OMP_WAIT_POLICY" not in environment()
    assert run_code(COMMAND).split() == ["PASSIVE", "PASSIVE"]
    assert run_code(COMMAND.replace("=True", "=False")).split() == ["None", "None"]
