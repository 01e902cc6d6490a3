"""The API page shows no role of Sphinx."""

from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.mark.slow
def test_a_reference_is_shown_as_code(tmp_path: Path) -> None:
    config = pytest.importorskip("mkdocs.config", reason="the extra [docs] is not installed")
    build = pytest.importorskip("mkdocs.commands.build")
    pytest.importorskip("mkdocstrings_handlers.python")
    build.build(config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=False))
    page = (tmp_path / "api/index.html").read_text()
    assert "over the views of <code>set_views</code>" in page.replace("\n", " ")
    assert ":func:" not in page
    assert ":class:" not in page
    assert ":meth:" not in page
