"""Sources of models: paths, and ids on the Hub."""

import subprocess
import sys
from pathlib import Path

import pytest

from hgsl.common.errors import InputError
from hgsl.common.model_source import check_model_source, check_repository, hub_id_of


def test_paths_are_never_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert hub_id_of("runs/mistyped") is None  # beside other runs, so a mistake and no model of a user "runs"
    assert hub_id_of(Path("me/birds")) is None
    assert hub_id_of("me/birds@v1") == hub_id_of("hf-hub:me/birds@v1") == "me/birds@v1"
    assert hub_id_of("hf-hub:runs/birds") == "runs/birds"
    assert hub_id_of("/tmp/run") is hub_id_of("../run/x") is hub_id_of("a/b/c") is None
    with pytest.raises(InputError, match="expected hf-hub:OWNER/NAME"):
        hub_id_of("hf-hub:birds")


def test_a_folder_without_a_model_is_reported_by_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model at .*absent: expected a run folder"):
        check_model_source(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no model\.json in .*: expected the folder of a finished run"):
        check_model_source(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        check_model_source(tmp_path)
    (tmp_path / "model.safetensors").touch()
    check_model_source(tmp_path)
    check_model_source("me/birds")  # the Hub is asked later
    for name in ("birds", "me/birds@v1", "../birds"):
        with pytest.raises(InputError, match="expected OWNER/NAME"):
            check_repository(name)


def test_a_file_and_an_index_are_told_from_the_folder_that_is_meant(tmp_path: Path) -> None:
    index = tmp_path / "index"
    (index / "model").mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        (index / "model" / name).touch()
    with pytest.raises(InputError, match=f"model.safetensors is a file: name its folder, {index / 'model'}$"):
        check_model_source(index / "model" / "model.safetensors")
    with pytest.raises(InputError, match=f"index is a search index: name the model in it, {index / 'model'}$"):
        check_model_source(index)
    check_model_source(index / "model")


def test_the_export_command_reports_a_mistyped_run_before_pytorch_is_imported(tmp_path: Path) -> None:
    code = "import sys\nfrom hgsl.cli.export import main\nassert main(['absent']) == 2\n"
    code += "assert not {'torch', 'timm'} & set(sys.modules), 'imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: no model at absent")
    assert done.stderr.count("\n") == 1
