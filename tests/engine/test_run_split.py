"""The split of a run: recorded at its start, and evaluated whatever has become of the data set since."""

import gzip
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgsl.cli import compare, eval_retrieval, train
from hgsl.common.split_record import FILE_NAME, read_split_record, write_split_record
from hgsl.data import list_images, load_manifest
from hgsl.data.run_split import record_of, restore
from tests.helpers import SMALL, fails

pytestmark = pytest.mark.usefixtures("in_tmp_path")
Evaluate = Callable[..., tuple[dict, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos``, six classes of four images, and ``run``, which has trained on three of them."""
    folder = tmp_path_factory.mktemp("trained")
    generator = np.random.default_rng(0)
    for number in range(24):
        add_image(folder / "photos" / f"kind_{number // 4:02}" / f"{number % 4:02}.jpg", generator)
    words = ["--data.root", str(folder / "photos"), "--run.dir", str(folder / "run")]
    assert train.main([*SMALL, *words]) == 0
    return folder


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """The images of the run ``run`` in the test's own folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(trained), str(tmp_path)))
    return tmp_path / "photos"


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Returns the report and the output of an evaluation of ``run``."""

    def evaluate(*words: str) -> tuple[dict, str]:
        capsys.readouterr()
        assert eval_retrieval.main(["--checkpoint", "run", *words, "--json", "r.json"]) == 0
        return json.loads(Path("r.json").read_text()), capsys.readouterr().out

    return evaluate


def classes_of(split: str) -> list[str]:
    record = read_split_record("run")
    assert record is not None
    return sorted({record.class_names[label] for label in record.labels[record.split == split]})


def add_image(path: Path, generator: np.random.Generator | None = None) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    pixels = (generator or np.random.default_rng(0)).integers(0, 255, (40, 40, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def after_training() -> dict:
    return json.loads(Path("run/report.json").read_text())["after"]


def test_the_record_reads_back_to_the_same_split(root: Path) -> None:
    manifest = load_manifest("folder", root)
    record = read_split_record("run")
    assert record is not None
    restored, changes = restore(record, list_images("folder", root))
    assert restored.split_hash == manifest.split_hash
    assert (changes.losses(), changes.additions()) == ([], [])
    with gzip.open(Path("run") / FILE_NAME, "rt") as file:
        lines = [json.loads(line) for line in file]
    assert len(lines) == 25
    content = (root / "kind_00/00.jpg").read_bytes()
    start = (len(content) - 4096) // 2 if len(content) > 4096 else 0
    fingerprint = f"{len(content)}-{zlib.crc32(content[start : start + 4096]):08x}"
    assert lines[1][:2] == ["kind_00/00.jpg", fingerprint]
    content = (Path("run") / FILE_NAME).read_bytes()
    write_split_record("run", record_of(manifest))
    assert (Path("run") / FILE_NAME).read_bytes() == content


@pytest.mark.parametrize("name", ["aaa", "kind_02b", "zzz"])
def test_a_class_that_was_added_is_left_out(root: Path, evaluate: Evaluate, name: str) -> None:
    for number in range(3):
        add_image(root / name / f"{number}.jpg")
    report, printed = evaluate()
    note = f"1 class is new since the training and left out, with 3 images: {name}"
    assert printed.startswith(f"note: {note}\n")
    assert report["notes"][0] == note
    assert {key: report[key] for key in after_training() if key != "notes"} == {
        key: value for key, value in after_training().items() if key != "notes"
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_was_removed_is_named(root: Path, evaluate: Evaluate, split: str) -> None:
    name = classes_of(split)[0]
    shutil.rmtree(root / name)
    report, printed = evaluate()
    assert printed.startswith(f"note: 4 {split} images are gone since the training: {name}/00.jpg, {name}/01.jpg, ")
    assert report["num_queries"] == (8 if split == "test" else 12)
    assert (report["split_hash"] == after_training()["split_hash"]) == (split == "train")


def test_images_that_were_added_removed_and_renamed_are_named(root: Path, evaluate: Evaluate) -> None:
    first, second, third = classes_of("test")
    add_image(root / first / "new.jpg")
    (root / second / "00.jpg").unlink()
    (root / third / "00.jpg").rename(root / third / "other.jpg")
    report, printed = evaluate()
    assert report["notes"] == [
        "2 test images are gone since the training: " + ", ".join(sorted([f"{second}/00.jpg", f"{third}/00.jpg"])),
        "2 images are new since the training and left out: "
        + ", ".join(sorted([f"{first}/new.jpg", f"{third}/other.jpg"])),
    ]
    assert report["num_queries"] == 10
    assert report["split_hash"] != after_training()["split_hash"]
    assert "test        3 classes       10 images" in printed


def test_a_trained_class_under_the_name_of_a_test_class_is_left_out(root: Path, evaluate: Evaluate) -> None:
    trained, tested = classes_of("train")[0], classes_of("test")[0]
    (root / trained).rename(root / "spare")
    (root / tested).rename(root / trained)
    (root / "spare").rename(root / tested)
    report, printed = evaluate()
    changed = [f"{tested}/{number:02}.jpg" for number in range(4)]
    assert f"4 test images are changed since the training: {', '.join(changed)}" in report["notes"]
    assert printed.startswith("note: 4 t")
    assert report["num_queries"] == 8


def test_a_renamed_class_is_gone_and_new(root: Path, evaluate: Evaluate) -> None:
    name = classes_of("test")[0]
    (root / name).rename(root / "aaa")
    report, _ = evaluate()
    assert report["notes"][0].startswith(f"4 test images are gone since the training: {name}/00.jpg")
    assert report["notes"][1] == "1 class is new since the training and left out, with 4 images: aaa"
    assert report["num_queries"] == 8


def test_a_moved_root_has_the_same_scores(root: Path, evaluate: Evaluate) -> None:
    moved = root.rename(root.with_name("moved"))
    add_image(moved / "aaa" / "0.jpg")
    report, printed = evaluate("--data.root", str(moved))
    assert printed.startswith("note: 1 class is new since the training and left out, with 1 image: aaa\n")
    assert {key: report[key] for key in ("map@r", "split_hash")} == {
        key: after_training()[key] for key in ("map@r", "split_hash")
    }


def test_no_image_of_the_run_is_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in classes_of("test"):
        shutil.rmtree(root / name)
    message = fails(eval_retrieval.main, ["--checkpoint", "run"], capsys)
    assert "none of the 12 test images of the run is in" in message
    assert "--data.root" in message


def test_another_data_set_with_trained_classes_is_reported_first(
    root: Path, evaluate: Evaluate, photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = photo_folder(classes=8, images=3, size=64, name="other")
    report, printed = evaluate("--data.root", str(other))
    manifest = load_manifest("folder", other).subset("test")
    shared = sorted({manifest.class_names[label] for label in manifest.labels} & set(classes_of("train")))
    assert shared
    assert report["trained_on"] == {"classes": len(shared), "images": 0}
    assert printed.startswith(
        f"note: {len(shared)} of the 4 searched classes have names of classes that the run was trained on "
        f"({', '.join(shared)}), so the scores are not those of unseen classes\n"
        f"note: {other} is another data set, with 0 of the 12 test images of the run\n"
    )
    Path("again.json").write_text(Path("r.json").read_text())
    capsys.readouterr()
    assert compare.main(["r.json", "again.json"]) == 0
    assert (
        f"note: r was trained on {len(shared)} of the searched classes and 0 of the images" in capsys.readouterr().out
    )


def test_another_data_set_of_other_classes_is_evaluated(
    root: Path, evaluate: Evaluate, photo_folder: Callable[..., Path]
) -> None:
    other = photo_folder(classes=8, images=3, size=64, name="other")
    for folder in list(other.iterdir()):
        folder.rename(folder.with_name(f"x{folder.name}"))
    report, printed = evaluate("--data.name", "folder", "--data.root", str(other))
    assert printed.startswith(f"note: {other} is another data set")
    assert "trained_on" not in report
    assert report["num_queries"] == 12


def test_another_data_set_needs_no_validation_classes_to_be_searched(
    photo_folder: Callable[..., Path], evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder(classes=8)), "--data.val_share", "0.5", "--run.dir", "run"]
    assert train.main(words) == 0
    other = photo_folder(classes=4, images=3, size=64, name="other")
    assert evaluate("--data.root", str(other))[0]["num_queries"] == 6
    words = ["--checkpoint", "run", "--data.root", str(other), "--no-match", "0.5"]
    assert "training classes for validation" in fails(eval_retrieval.main, words, capsys)


def test_another_split_counts_what_was_trained_on(root: Path, evaluate: Evaluate) -> None:
    report, printed = evaluate("--data.options.seed", "1")
    manifest = load_manifest("folder", root, seed=1).subset("test")
    shared = {manifest.class_names[label] for label in manifest.labels} & set(classes_of("train"))
    assert report["trained_on"] == {"classes": len(shared), "images": 4 * len(shared)}
    assert printed.startswith(f"note: {len(shared)} of the 3 searched classes have names")


def test_a_calibration_on_trained_classes_is_noted(photo_folder: Callable[..., Path], evaluate: Evaluate) -> None:
    root = photo_folder(classes=8)
    words = [*SMALL, "--data.root", str(root), "--run.dir", "run"]
    assert train.main([*words, "--data.val_share", "0.5"]) == 0
    add_image(root / "zzz" / "0.jpg")
    report, _ = evaluate("--no-match", "0.5")
    assert not any("trained on" in note for note in report["notes"])
    assert report["no_match"]["calibration"]["num_queries"] == 8  # of the validation classes of the run
    assert report["num_queries"] == after_training()["num_queries"]
    assert train.main([*words, "--overwrite"]) == 0
    report, _ = evaluate("--no-match", "0.5", "--data.val_share", "0.5")
    assert any("calibrated on classes that the network was trained on" in note for note in report["notes"])


def test_a_run_without_a_record_says_so(root: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("run") / FILE_NAME
    content = path.read_bytes()
    path.unlink()
    assert evaluate()[1].startswith(
        "note: run has no split.jsonl.gz: nothing tells whether what is searched was trained"
    )
    path.write_bytes(content[: len(content) // 2])
    assert "split.jsonl.gz is damaged" in fails(eval_retrieval.main, ["--checkpoint", "run"], capsys)


def test_boxes_and_drawn_images_are_restored(tmp_path: Path, photo_folder: Callable[..., Path]) -> None:
    root = photo_folder(classes=4, images=2)
    lines = ["path,label,x_1,y_1,x_2,y_2"]
    for path in sorted(root.rglob("*.jpg")):
        lines += [f"{path.relative_to(root)},{path.parent.name},{x},0,{x + 20},20" for x in (0, 20)]
    (root / "list.csv").write_text("\n".join(lines))
    manifest = load_manifest("csv", root)
    (root / "list.csv").write_text("\n".join([lines[0], *lines[3:], lines[2]]))  # the first is gone
    restored, changes = restore(record_of(manifest), list_images("csv", root))
    assert changes.losses() == ["1 train image is gone since the training: kind_00/00.jpg"]
    assert restored.ids.tolist() == list(range(1, 16))
    assert restored.boxes is not None
    assert restored.boxes[0].tolist() == [20, 0, 40, 20]

    drawn = load_manifest("synthetic", num_classes=4, images_per_class=4)
    fewer, changes = restore(record_of(drawn), list_images("synthetic", num_classes=4, images_per_class=3))
    assert changes.losses() == [
        f"2 train images are gone since the training: {drawn.paths[3]}, {drawn.paths[7]}",
        f"2 test images are gone since the training: {drawn.paths[11]}, {drawn.paths[15]}",
    ]
    assert fewer.render is not None
    assert drawn.render is not None
    assert fewer.render(4).tobytes() == drawn.render(4).tobytes()  # an image keeps its id
