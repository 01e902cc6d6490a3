"""The notebooks of the docs: stored without outputs, and executed from the first cell to the last."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.helpers import ROOT, environment

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
RESULTS = {"your_photos.ipynb": ("run/report.json", "sheet.png", "index")}  # which commands in it write


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["evaluate_embeddings", "loss_in_your_code", "your_photos"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_its_links_exist(notebook: Path) -> None:
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        for target in re.findall(r"\]\(([^)]+)\)", "".join(cell["source"])):
            assert (notebook.parent / target).is_file(), target


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[dev]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[dev]'")
    import nbformat

    for name, value in environment(IPYTHONDIR=str(tmp_path / "ipython")).items():
        monkeypatch.setitem(os.environ, name, value)
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(
        content, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in content.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "error: " not in printed
    assert "Traceback" not in printed
    tables = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert any("<table" in table and "MAP@R" in table for table in tables) or notebook.name in RESULTS
    for name in RESULTS.get(notebook.name, ()):
        assert (tmp_path / name).exists(), name
