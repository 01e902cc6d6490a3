"""Bars in terminals and notebooks, lines in logs, and nothing in quiet mode."""

import io
import sys
from types import SimpleNamespace

import pytest

from hgsl.common import progress, ranks


def run_bar(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **options: object) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress.progress_bar(range(3), desc="epoch 1/2", mininterval=0, file=stream, **options):
        pass
    return stream.getvalue()


def test_a_log_gets_plain_lines_and_only_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_bar(monkeypatch, io.StringIO(), log_lines=True) == "", "three items take less than a minute"
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    lines = run_bar(monkeypatch, io.StringIO(), log_lines=True).splitlines()
    assert [line.split(" [")[0] for line in lines if "3/3" in line] == ["epoch 1/2: 3/3"]
    assert not any("\r" in line or "\x1b" in line or "|" in line for line in lines)
    assert run_bar(monkeypatch, io.StringIO()) == "", "other bars leave a log alone"


def test_a_terminal_and_a_notebook_get_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert "100%|" in run_bar(monkeypatch, Terminal(), log_lines=True)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())))
    monkeypatch.setattr(progress, "find_spec", lambda name: None)  # no widgets: a bar of text
    assert "100%|" in run_bar(monkeypatch, io.StringIO())


def test_quiet_mode_prints_results_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.quiet_mode():
        ranks.print_main("epoch 1")
        ranks.print_main("MAP@R 50", result=True)
        with progress.quiet_mode(False):
            ranks.print_main("still quiet")
        monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
        assert run_bar(monkeypatch, io.StringIO(), log_lines=True) == ""
    ranks.print_main("epoch 2")
    assert capsys.readouterr().out == "MAP@R 50\nepoch 2\n"
