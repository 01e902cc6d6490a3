"""Audit: every planted problem is found, and nothing else."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.common.images import read_image
from hgsl.data import audit as audit_module
from hgsl.data import duplicates, load_manifest
from hgsl.data.audit import FINDINGS, audit, inspect_file
from hgsl.data.build_manifest import make_manifest
from hgsl.data.duplicates import near_duplicates, perceptual_hash


def smooth_image(seed: int, size: int = 96) -> Image.Image:
    """A smooth random image, as a photo has most of its contrast in low frequencies."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((size + 16, size), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(8):
        smooth_image(i).save(tmp_path / f"{i}.jpg", quality=92)
    return tmp_path


def audit_of(root: Path, *paths: str, split: str = "") -> audit_module.Audit:
    names = [f"{i}.jpg" for i in range(8)] + list(paths)
    half = ["train"] * 4 + ["test"] * 4
    manifest = make_manifest("toy", root, names, [0] * len(names), ["a"], split=half + [split] * len(paths))
    return audit(manifest)


def findings(result: audit_module.Audit) -> dict[str, list[list[str]]]:
    return {kind: paths for kind, paths in result.findings.items() if paths}


def test_a_clean_data_set_passes(folder: Path) -> None:
    result = audit_of(folder)
    assert result.ok
    assert findings(result) == {}
    assert "8 images opened: no problem" in result.table()


def test_broken_files(folder: Path) -> None:
    whole = (folder / "0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_bytes(b"<html>404</html>")
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    result = audit_of(folder, "cut.jpg", "text.jpg", "empty.jpg", "gone.jpg", "folder.jpg")
    assert not result.ok
    assert findings(result) == {
        "missing": [["gone.jpg"]],
        "empty": [["empty.jpg"]],
        "unreadable": [["text.jpg"], ["folder.jpg"]],
        "damaged": [["cut.jpg"]],
    }
    assert "truncated or damaged (!)" in result.table()


def test_unusual_files_are_reported_and_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth_image(20).convert("L").save(folder / "gray.jpg")
    smooth_image(21).convert("L").convert("RGB").save(folder / "gray_too.png")
    smooth_image(22).convert("CMYK").save(folder / "cmyk.jpg")
    smooth_image(23, 400).save(folder / "big.jpg")
    monkeypatch.setattr(audit_module, "HUGE", 150_000)
    result = audit_of(folder, "gray.jpg", "gray_too.png", "cmyk.jpg", "big.jpg")
    assert result.ok
    assert findings(result) == {"gray": [["gray.jpg"], ["gray_too.png"]], "cmyk": [["cmyk.jpg"]], "huge": [["big.jpg"]]}


def test_an_image_over_pillows_limit_is_unreadable_as_in_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert inspect_file(folder / "0.jpg").findings == ("huge", "unreadable")
    with pytest.raises(InputError, match=r"cannot read image .*0.jpg: it has more than 200 pixels: save it smaller"):
        read_image(folder / "0.jpg")


@pytest.mark.parametrize(("split", "where"), [("train", "within"), ("test", "across")])
def test_duplicates(folder: Path, split: str, where: str) -> None:
    """Copies of training images: byte for byte, recompressed, resized and brightened."""
    (folder / "copy.jpg").write_bytes((folder / "1.jpg").read_bytes())
    with Image.open(folder / "2.jpg") as image:
        image.save(folder / "worse.jpg", quality=40)
    with Image.open(folder / "3.jpg") as image:
        image.resize((60, 50)).point(lambda value: min(255, value + 10)).save(folder / "small.png")
    result = audit_of(folder, "copy.jpg", "worse.jpg", "small.png", split=split)
    assert findings(result) == {
        f"same_{where}": [["1.jpg", "copy.jpg"]],
        f"near_{where}": [["2.jpg", "worse.jpg"], ["3.jpg", "small.png"]],
    }
    assert result.ok == (where == "within")


def test_flat_images_are_named_and_no_duplicates_of_each_other(folder: Path) -> None:
    Image.new("RGB", (50, 50), (250, 250, 240)).save(folder / "white.png")
    Image.new("RGB", (50, 50), (10, 0, 0)).save(folder / "black.png")
    result = audit_of(folder, "white.png", "black.png")
    assert findings(result) == {"flat": [["white.png"], ["black.png"]]}
    assert not result.ok
    assert "nearly a single color (!)" in result.table()


def test_the_perceptual_hash_is_of_the_lowest_frequencies() -> None:
    gray = np.asarray(smooth_image(0).convert("L").resize((32, 32)), float)
    first = perceptual_hash(gray)
    assert first is not None
    assert perceptual_hash(gray * 0.7 + 20) == first  # contrast and brightness do not matter
    noise = gray + np.random.default_rng(0).normal(0, 3, gray.shape)
    assert (first ^ (perceptual_hash(noise) or 0)).bit_count() <= duplicates.MAX_DISTANCE
    other = perceptual_hash(np.asarray(smooth_image(1).convert("L").resize((32, 32)), float))
    assert (first ^ (other or 0)).bit_count() > 15


@pytest.mark.parametrize("high", [2**63, 2**16])
def test_every_near_pair_is_found_as_by_comparing_all(high: int) -> None:
    """Pairs of 0 to 6 differing bits among hashes that are spread evenly, and among hashes that share most bits."""
    generator = np.random.default_rng(0)
    hashes: list[int | None] = generator.integers(0, high, 1200, np.uint64).tolist()
    for i in range(300):
        flips = generator.choice(64, i % 7, replace=False)
        hashes[1199 - i] = (hashes[i] or 0) ^ sum(1 << int(bit) for bit in flips)
    hashes[600] = None
    expected = [
        (a, b)
        for a in range(1200)
        for b in range(a + 1, 1200)
        if a != 600 != b and ((hashes[a] or 0) ^ (hashes[b] or 0)).bit_count() <= duplicates.MAX_DISTANCE
    ]
    assert near_duplicates(hashes, []) == expected
    assert len(expected) > 200
    assert near_duplicates(hashes, [(0, b) for _, b in expected]) == []


def test_a_pair_differs_in_bits_of_any_position() -> None:
    """The bits that differ lie in four of the six parts of a hash, in every combination of parts."""
    for parts in combinations(range(6), 4):
        flipped = sum(1 << min(63, 11 * part + 3) for part in parts)
        assert near_duplicates([0x0123456789ABCDEF, 0x0123456789ABCDEF ^ flipped], []) == [(0, 1)]
    assert near_duplicates([0, 0b11111], []) == []
    assert near_duplicates([], []) == []


def test_drawn_images_are_refused() -> None:
    with pytest.raises(InputError, match="synthetic draws its images"):
        audit(load_manifest("synthetic", num_classes=4, images_per_class=2))


def test_images_that_cannot_be_used_are_named(folder: Path) -> None:
    Image.new("L", (6_000, 1), 128).save(folder / "strip.png")
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(folder / "nan.tif")
    Image.fromarray(np.zeros((40, 40), np.float32)).save(folder / "black.tif")
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    Image.fromarray(ramp).save(folder / "ramp.tif")
    result = audit_of(folder, "strip.png", "nan.tif", "black.tif", "ramp.tif")
    assert findings(result) == {
        "shape": [["strip.png"]],
        "values": [["nan.tif"]],
        "flat": [["black.tif"]],
        "gray": [["black.tif"], ["ramp.tif"]],
    }
    assert not result.ok
    assert all(name in FINDINGS for name in result.findings)


def test_flowers17_has_its_known_duplicates(test_data: Path) -> None:
    manifest = load_manifest("flowers17", test_data / "flowers17")
    result = audit(manifest.take(np.arange(80)))  # the daffodils
    assert result.ok
    assert ["jpg/image_0002.jpg", "jpg/image_0042.jpg"] in result.findings["near_within"]
    assert len(result.findings["near_within"]) == 5
