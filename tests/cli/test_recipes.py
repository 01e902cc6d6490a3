"""Every packaged recipe builds and trains, with a tiny backbone and small images under the official names."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from hgsl.cli import train
from hgsl.cli._settings import CONFIGS
from hgsl.engine.folder.logging import read_metrics
from tests.helpers import TINY

CLASSES, IMAGES = 8, 4
WORDS = [
    *(*TINY, "--data.cache", "none", "--data.options", "{}", "--train.epochs", "2", "--train.batch_size", "16"),
    *("--eval.before", "false", "--eval.page", "false"),
]


def paint(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (40, 44, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def rows() -> list[tuple[int, int]]:
    """(class, number of the image), both from 1, in the order of the official lists."""
    return [(label, number) for label in range(1, CLASSES + 1) for number in range(1, IMAGES + 1)]


def make_cub(root: Path) -> None:
    paths = [f"{label:03}.Bird_{label}/Bird_{number:04}.jpg" for label, number in rows()]
    for path in paths:
        paint(root / "images" / path)
    numbered = {
        "images": paths,
        "image_class_labels": [label for label, _ in rows()],
        "train_test_split": [number % 2 for _, number in rows()],
        "bounding_boxes": ["1.0 1.0 20.0 20.0"] * len(paths),
        "classes": [f"{label:03}.Bird_{label}" for label in range(1, CLASSES + 1)],
    }
    for name, values in numbered.items():
        (root / f"{name}.txt").write_text("".join(f"{i} {value}\n" for i, value in enumerate(values, start=1)))


def make_cars(root: Path) -> None:
    dtype = [(name, object) for name in ("relative_im_path", *"abcd", "class", "test")]
    dtype = [
        (dict(zip("abcd", ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), strict=True)).get(n, n), t) for n, t in dtype
    ]
    found = np.empty((1, CLASSES * IMAGES), dtype=dtype)
    for i, (label, number) in enumerate(rows()):
        path = f"car_ims/{i + 1:06}.jpg"
        paint(root / path)
        found[0, i] = (path, 1, 1, 20, 20, label, number % 2)
    names = np.array([[f"Car {label}" for label in range(1, CLASSES + 1)]], dtype=object)
    savemat(root / "cars_annos.mat", {"annotations": found, "class_names": names})


def make_aircraft(root: Path) -> None:
    names = [f"Plane-{label}" for label in range(1, CLASSES + 1)]
    lines = {"train": [], "val": [], "test": []}
    for i, (label, number) in enumerate(rows()):
        paint(root / "data" / "images" / f"{i:07}.jpg")
        lines[("test", "train", "val", "test")[number % 4]].append(f"{i:07} {names[label - 1]}\n")
    lines["trainval"] = lines["train"] + lines["val"]
    (root / "data" / "variants.txt").write_text("".join(f"{name}\n" for name in names))
    for split, content in lines.items():
        (root / "data" / f"images_variant_{split}.txt").write_text("".join(content))


def make_flowers(root: Path) -> None:
    for i in range(len(rows())):
        paint(root / "jpg" / f"image_{i + 1:05}.jpg")
    ids = np.arange(1, len(rows()) + 1)
    savemat(root / "imagelabels.mat", {"labels": np.array([[label for label, _ in rows()]])})
    parts = {"trnid": ids[ids % 4 == 1], "valid": ids[ids % 4 == 2], "tstid": ids[(ids % 4 == 3) | (ids % 4 == 0)]}
    savemat(root / "setid.mat", {name: part[None] for name, part in parts.items()})


def make_flowers17(root: Path) -> None:
    for i in range(1, 17 * 80 + 1):
        path = root / "jpg" / f"image_{i:04}.jpg"
        if i == 1:
            paint(path)
        else:
            path.hardlink_to(root / "jpg" / "image_0001.jpg")


def make_folder(root: Path) -> None:
    for label, number in rows():
        paint(root / f"kind_{label}" / f"{number}.jpg")


MAKERS: dict[str, Callable[[Path], None]] = {
    "aircraft": make_aircraft,
    "cars": make_cars,
    "cub": make_cub,
    "flowers": make_flowers,
    "flowers17": make_flowers17,
    "folder": make_folder,
    "quickstart": lambda root: None,
}
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("_cs"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = recipe.stem.split("_")[0]
    (tmp_path / name).mkdir()
    MAKERS[name](tmp_path / name)
    backbone = "test_vit" if "vit" in recipe.stem else "test_resnet"
    words = ["--config", str(recipe), *WORDS, "--model.backbone", backbone, "--run.dir", "out"]
    if name != "quickstart":
        words += ["--data.root", name]
    else:
        words += ["--data.options", "{num_classes: 8, images_per_class: 4, image_size: 32}"]
    if name == "flowers17":  # all 1,360 images belong to it: a larger batch makes few steps of them
        words += ["--train.batch_size", "360", "--train.epochs", "1", "--data.test_share", "0.5"]
    assert train.main(words) == 0
    losses = [record["loss"] for record in read_metrics(Path("out/metrics.jsonl"))]
    assert len(losses) == 2
    assert all(np.isfinite(losses))


def test_every_head_states_source_command_cost_and_score() -> None:
    for path in RECIPES:
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        for part in ("# Source:", "# Command:", "# Cost:", "# Score:"):
            assert any(line.startswith(part) for line in head), f"{path.name} lacks {part}"
        assert any(f"configs/{path.name}" in line for line in head) or path.stem == "quickstart"
