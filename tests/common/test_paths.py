from pathlib import Path

import pytest

from hgsl.common.paths import is_inside, relative_to_root


@pytest.mark.parametrize("path", ["a.jpg", "a/b.jpg", "./a.jpg", "a..b/c.jpg", "..a"])
def test_inside(path: str) -> None:
    assert is_inside(path)


@pytest.mark.parametrize("path", ["", "/", "/a.jpg", "..", "../a.jpg", "a/../b.jpg", "a/..", "a\0.jpg"])
def test_not_inside(path: str) -> None:
    assert not is_inside(path)


def test_relative_to_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert relative_to_root(f"{tmp_path}/a/b.jpg ", tmp_path) == "a/b.jpg"
    assert relative_to_root("a\\b.jpg", tmp_path) == "a/b.jpg"
    (tmp_path / "a\\b.jpg").touch()
    assert relative_to_root("a\\b.jpg", tmp_path) == "a\\b.jpg"  # a file of that name comes first
    assert relative_to_root("/elsewhere/b.jpg", tmp_path) == "/elsewhere/b.jpg"
    assert relative_to_root(f"{tmp_path}2/b.jpg", tmp_path) == f"{tmp_path}2/b.jpg"
    monkeypatch.chdir(tmp_path.parent)
    assert relative_to_root(f"{tmp_path}/b.jpg", Path(tmp_path.name)) == "b.jpg"
