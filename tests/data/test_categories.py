"""Categories of classes, and the sampler that batches the classes of one category."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hgsl.cli import train
from hgsl.common.errors import InputError
from hgsl.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from hgsl.data import RetrievalDataset, load_manifest
from hgsl.data.categories import class_categories
from hgsl.engine.retrieval import Retrieval
from hgsl.engine.runtime import build_runtime
from tests.helpers import TINY, fails

pytestmark = pytest.mark.usefixtures("in_tmp_path")
KINDS = {
    "kind_00": "round",
    "kind_01": "round",
    "kind_02": "long",
    "kind_03": "",
    "kind_04": "long",
    "kind_05": "round",
}


def write_table(root: Path, categories: Callable[[Path], str]) -> Path:
    lines = [
        f"{path.relative_to(root.parent)},{path.parent.name},train,{categories(path)}" for path in root.rglob("*.jpg")
    ]
    lines += [line.replace(",train,", ",test,").replace("/0", "/x0") for line in lines]
    for path in sorted(root.rglob("*.jpg")):
        path.with_name(f"x{path.name}").write_bytes(path.read_bytes())
    table = root.parent / "table.csv"
    table.write_text("\n".join(["path,label,split,category", *sorted(lines)]))
    return table


def training_split(table: Path) -> RetrievalDataset:
    return RetrievalDataset(load_manifest("csv", table, "closed-set").subset("train"))


def test_a_class_has_the_category_of_its_images(photo_folder: Callable[..., Path]) -> None:
    table = write_table(photo_folder(), lambda path: "" if path.stem == "01" else KINDS[path.parent.name])
    assert class_categories(training_split(table)).tolist() == [1, 1, 0, -1, 0, 1]  # long, round by name


def test_a_class_of_two_categories_is_refused(photo_folder: Callable[..., Path]) -> None:
    table = write_table(photo_folder(), lambda path: "left" if path.stem == "01" else "right")
    with pytest.raises(InputError, match="class 'kind_00' has images of the categories 'right' and 'left'"):
        class_categories(training_split(table))


def test_training_batches_are_of_one_category_on_every_rank(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(photo_folder(), lambda path: KINDS[path.parent.name])
    data = DataConfig(
        name="csv", root=str(table), protocol="closed-set", sampler="category", per_class=2, image_size=32, workers=0
    )
    model = ModelConfig(backbone="test_resnet", weights="none")
    config = Config(RunConfig(device="cpu", threads=1), data, model, train=TrainConfig(epochs=2, batch_size=4))
    training = Retrieval(config, build_runtime(config))
    batches = [labels.tolist() for _, labels, _ in training.batches(0, 0, 2)]
    assert (
        len(batches) == 2 * training.steps_per_epoch == 12
    )  # 2 of long, 4 of round, which the class without a category joins
    for labels in batches:
        assert len(set(labels)) == 2
        assert {*labels} <= {2, 4} or {*labels} <= {0, 1, 3, 5}
    resumed = [labels.tolist() for _, labels, _ in training.batches(0, 7, 2)]
    assert resumed == batches[7:]
    shares = []
    for rank in range(2):
        monkeypatch.setattr(
            "hgsl.engine.loop.loader.ranks", SimpleNamespace(rank=lambda r=rank: r, world_size=lambda: 2)
        )
        shares.append(np.array([labels.tolist() for _, labels, _ in training.batches(0, 0, 2)]))
    assert np.array_equal(np.stack(shares, axis=2).reshape(len(batches), -1), batches)


def test_a_run_trains_and_images_without_categories_are_refused(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = photo_folder()
    table = write_table(root, lambda path: KINDS[path.parent.name])
    words = [*TINY, "--run.dir", "out", "--train.epochs", "1", "--train.batch_size", "4", "--data.per_class", "2"]
    words += ["--eval.before", "false", "--eval.page", "false", "--data.sampler", "category"]
    csv = ["--data.name", "csv", "--data.root", str(table), "--data.protocol", "closed-set"]
    assert train.main([*words, *csv]) == 0
    folder = ["--data.name", "folder", "--data.root", str(root), "--run.dir", "other"]
    assert "the sampler category needs the category of each class" in fails(train.main, [*words, *folder], capsys)
