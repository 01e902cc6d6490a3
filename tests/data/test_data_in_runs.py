"""Data sets as runs read them: names, options, validation rows and folders."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hgsl.cli import eval_retrieval, train
from hgsl.common.errors import InputError
from hgsl.config import DataConfig
from hgsl.engine.parts.build import build_manifest
from tests.helpers import TINY

WORDS = (
    *(*TINY, "--run.dir", "run", "--train.epochs", "1", "--train.batch_size", "4"),
    *("--eval.before", "false", "--eval.page", "false"),
)
pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("foldr", {}, "unknown data set 'foldr': did you mean 'folder'"),
        ("folder", {"sed": 1}, "unknown option of data set folder in data.options 'sed': did you mean 'seed'"),
        ("folder", {"seed": "1"}, "option seed of data set folder in data.options must be int, found '1'"),
        ("folder", {"seed": True}, "option seed of data set folder in data.options must be int, found True"),
        ("csv", {"image_root": 5}, r"image_root of data set csv in data.options must be str | Path | None, found 5"),
        ("csv", {"seed": 1}, "data.options 'seed': use one of: encoding, group_column, image_root, test_list"),
    ],
)
def test_names_and_types_of_options_are_checked_before_a_file_is_read(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build_manifest(DataConfig(name=name, root="nowhere", options=options))


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train", "test")])
def test_a_table_with_validation_rows_can_choose_an_epoch(
    photo_folder: Callable[..., Path], splits: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    root = photo_folder()
    lines = [
        f"{path.relative_to(root)},{path.parent.name},{splits[int(path.parent.name[-2:]) // 2 % len(splits)]}"
        for path in sorted(root.rglob("*.jpg"))
    ]
    Path("list.csv").write_text("\n".join(["path,label,split", *lines]))
    words = [*WORDS, "--data.name", "csv", "--data.root", "list.csv", "--data.options", f"{{image_root: {root}}}"]
    status = train.main([*words, "--train.select", "best"])
    if "val" in splits:
        assert status == 0
        assert "val         2 classes        8 images" in capsys.readouterr().out
        assert eval_retrieval.main(["--checkpoint", "run", "--no-match", "0.3", "--json", "scores.json"]) == 0
        assert "trained on" not in Path("scores.json").read_text()  # its validation classes were kept out of training
    else:
        assert status == 2
        assert "csv (zero-shot) has no 'val' images, only train, test: set data.val_share" in capsys.readouterr().err
        assert not Path("run").exists()


def test_a_run_finds_its_data_from_another_folder(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photo_folder()
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.jpg"))]
    Path("lists").mkdir()
    Path("lists/birds.csv").write_text("\n".join(["path,label", *lines]))
    options = f"{{image_root: {root.name}}}"
    words = ["--data.name", "csv", "--data.root", "lists/birds.csv", "--data.options", options]
    assert train.main([*WORDS, *words]) == 0
    (root.parent / "elsewhere").mkdir()
    monkeypatch.chdir(root.parent / "elsewhere")
    assert eval_retrieval.main(["--checkpoint", "../run"]) == 0
    capsys.readouterr()
    assert train.main([*WORDS, *words]) == 2
    assert f"{Path('lists/birds.csv').absolute()} does not exist" in capsys.readouterr().err
