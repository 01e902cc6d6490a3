"""A model of all classes, which nothing measures, and training without broken images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hgsl.cli import compare, eval_retrieval, export, train
from hgsl.common.split_record import read_split_record
from hgsl.config import Config, DataConfig, SparsifyRunConfig, TrainConfig
from hgsl.data import load_manifest
from hgsl.data.protocols import apply_protocol
from hgsl.models import load_embedder
from hgsl.models.storage.description import describe_model
from hgsl.models.storage.model_card import model_card
from tests.helpers import SMALL, fails

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def report(folder: str = "out") -> dict:
    return json.loads(Path(folder, "report.json").read_text())


def test_a_final_model_is_trained_on_all_and_says_so_everywhere(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    root = photo_folder()
    words = [*SMALL, "--data.root", str(root), "--run.dir", "out", "--eval.page", "true", "--eval.before", "true"]
    words += ["--train.epochs", "1"]
    assert train.main([*words, "--data.test_share", "0"]) == 0
    printed = capsys.readouterr().out
    assert "trained on 24 images of 6 classes, all of folder: no scores" in printed
    assert "nothing is left to measure on" in printed
    assert "no report.html and no curves.png" in printed
    assert "the same scores again" not in printed
    result = report()
    assert result["before"] == result["after"] == {}
    counts = {key: result["trained_on_all"][key] for key in ("classes", "images")}
    assert counts == {"classes": 6, "images": 24}
    record = read_split_record("out")
    assert record is not None
    assert set(record.split.tolist()) == {"train"}
    assert load_embedder("out").embedding_size

    for flags in ([], ["--no-match", "0.5"]):
        message = fails(eval_retrieval.main, ["--checkpoint", "out", *flags], capsys)
        assert "trained on all of its images (data.test_share 0), so nothing is left to measure on" in message
    assert eval_retrieval.main(["--checkpoint", "out", "--data.test_share", "0.5", "--json", "r.json"]) == 0
    assert "3 of the 3 searched classes" in capsys.readouterr().out
    assert json.loads(Path("r.json").read_text())["trained_on"] == {"classes": 3, "images": 12}
    assert "was trained on all classes" in fails(compare.main, ["out", "r.json"], capsys)
    assert "leave it out" in fails(
        train.main, [*words, "--data.test_share", "0", "--seeds", "2", "--overwrite"], capsys
    )
    card = model_card("mine", describe_model(load_embedder("out")), 8, result)
    assert "Not measured: the model was trained on all 24 images of 6 classes of folder" in card
    assert train.main([*words, "--data.test_share", "0", "--resume"]) == 0
    assert "out is finished:\n\ntrained on 24 images" in capsys.readouterr().out


@pytest.mark.slow
def test_8_bit_weights_of_a_final_model_have_no_scores(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out", "--train.epochs", "1"]
    assert train.main([*words, "--data.test_share", "0"]) == 0
    assert export.main(["out", "--format", "onnx", "--int8"]) == 0
    assert "no scores of the 8-bit files" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["zero-shot", "closed-set", "query-gallery"])
def test_a_split_of_the_source_is_no_obstacle(protocol: str, photo_folder: Callable[..., Path]) -> None:
    root = photo_folder()
    manifest = load_manifest("folder", root)
    all_train = apply_protocol(manifest, protocol, test_share=0)
    assert set(all_train.split.tolist()) == {"train"}
    assert len(all_train) == len(manifest)
    assert all_train.split_hash != manifest.split_hash
    assert set(load_manifest("folder", root, test_share=0, val_share=0.34).split.tolist()) == {"train", "val"}


def test_what_needs_test_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs test images, but data\.test_share is 0"):
        Config(data=DataConfig(test_share=0), train=TrainConfig(select="best_on_test"))
    with pytest.raises(ValueError, match="a search measures its tickets"):
        SparsifyRunConfig(data=DataConfig(test_share=0), train=TrainConfig(epochs=3))


@pytest.fixture
def damaged(photo_folder: Callable[..., Path]) -> Path:
    """A folder of images, of which two training images and no others are damaged."""
    root = photo_folder(size=200)
    manifest = load_manifest("folder", root).subset("train")
    for path in manifest.paths[1:8:5]:
        (root / path).write_bytes((root / path).read_bytes()[:2000])
    return root


def test_broken_training_images_are_skipped_and_named(damaged: Path, capsys: pytest.CaptureFixture) -> None:
    words = [*SMALL, "--data.root", str(damaged), "--train.epochs", "1", "--run.dir"]
    assert "truncated" in fails(train.main, [*words, "plain"], capsys)
    words = [*words[:-1], "--data.broken", "skip", "--train.keep", "9", "--run.dir", "out"]
    assert train.main(words) == 0
    names = load_manifest("folder", damaged).subset("train").paths[1:8:5]
    note = f"2 training images skipped, as unreadable (data.broken skip): {', '.join(names)}"
    printed = capsys.readouterr().out
    assert note in printed
    assert "\n  unused " in printed  # the row of the skipped images in the summary
    assert note in report()["after"]["notes"]
    plain = load_manifest("folder", damaged)
    assert report()["after"]["split_hash"] == plain.subset("test").split_hash, "the same images are searched"
    record = read_split_record("out")
    assert record is not None
    assert [record.paths[row] for row in np.flatnonzero(record.split == "")] == list(names)

    # Resumed and evaluated: skipped images are neither new nor missed.
    Path("out/report.json").unlink()
    (damaged / names[0]).unlink()
    capsys.readouterr()
    assert train.main([*words, "--resume"]) == 0
    assert eval_retrieval.main(["--checkpoint", "out"]) == 0
    printed = capsys.readouterr().out
    assert "new since the training" not in printed
    assert "gone since" not in printed


def test_a_broken_test_image_is_never_skipped(photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    root = photo_folder(size=200)
    path = root / load_manifest("folder", root).subset("test").paths[3]
    path.write_bytes(path.read_bytes()[:2000])
    words = [*SMALL, "--data.root", str(root), "--run.dir", "out", "--train.epochs", "0", "--data.broken", "skip"]
    message = fails(train.main, words, capsys)
    assert path.name in message
    assert "truncated" in message
