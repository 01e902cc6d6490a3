"""New data sets and samplers: one entry in a dict, then a training that names it in its settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hgsl.cli import eval_retrieval, train
from hgsl.data import DATASETS, SAMPLERS
from hgsl.data.manifest import Manifest, make_manifest
from hgsl.engine.loop.loader import RunBatches
from tests.helpers import TINY

WORDS = (
    *(*TINY, "--run.dir", "run", "--train.epochs", "1", "--train.batch_size", "4"),
    *("--eval.before", "false", "--eval.page", "false"),
)
pytestmark = pytest.mark.usefixtures("in_tmp_path")


def stripes(root: Path, images: int = 4) -> Manifest:
    """A data set of one file's worth of code: stripes of four widths, drawn when they are read."""
    labels = np.repeat(np.arange(4), images)
    paths = [f"{row}.png" for row in range(len(labels))]

    def draw(row: int) -> Image.Image:
        pattern = (np.arange(32) // (row // images + 1) % 2 * 255).astype(np.uint8)
        return Image.fromarray(np.tile(pattern, (32, 1))).convert("RGB")

    return make_manifest("stripes", root, paths, labels, list("abcd"), render=draw)


def test_a_data_set_is_one_entry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(DATASETS, "stripes", stripes)
    assert train.main([*WORDS, "--data.name", "stripes", "--data.options", "{images: 5}"]) == 0
    out = capsys.readouterr().out
    assert "stripes, zero-shot protocol" in out
    assert "2 classes       10 images" in out
    assert train.main([*WORDS, "--overwrite", "--data.name", "stripe"]) == 2
    assert "unknown data.name 'stripe': did you mean 'stripes'?" in capsys.readouterr().err
    assert train.main([*WORDS, "--overwrite", "--data.name", "stripes", "--data.options", "{image: 5}"]) == 2
    assert "option of data set stripes in data.options 'image': did you mean 'images'?" in capsys.readouterr().err


def test_a_sampler_is_one_entry(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def in_order(labels: np.ndarray, batch_size: int, per_class: int, rng: np.random.Generator) -> np.ndarray:
        calls.append((len(labels), batch_size, per_class))
        return np.arange(len(labels) // batch_size * batch_size).reshape(-1, batch_size)

    monkeypatch.setitem(SAMPLERS, "in_order", in_order)
    words = [*WORDS, "--data.name", "folder", "--data.root", str(photo_folder()), "--data.options", "{}"]
    words += ["--data.per_class", "3"]
    assert train.main([*words, "--data.sampler", "in_order"]) == 0
    assert set(calls) == {(12, 4, 3)}
    assert list(RunBatches(np.arange(5), 2, 1, 0, "in_order")) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]

    def unread(*_: Any, **__: Any) -> Manifest:
        raise AssertionError("data was read before the sampler's name was checked")

    monkeypatch.setitem(DATASETS, "folder", unread)
    assert train.main([*words, "--overwrite", "--data.sampler", "in_ordr"]) == 2
    assert "unknown data.sampler 'in_ordr': did you mean 'in_order'?" in capsys.readouterr().err


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
