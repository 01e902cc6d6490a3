"""Duplicates of a folder by file, hash and embedding, and their page in a real browser."""

import base64
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageColor, ImageOps

from hgsl.cli.prepare_dataset import main
from hgsl.data import load_manifest
from hgsl.data.fixes import read_fixes
from hgsl.engine.duplicates import DuplicatePair, Duplicates, find_duplicates, write_duplicates
from hgsl.evaluation.copies import CopyThreshold
from hgsl.evaluation.show.pictures import GRAY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Path:
    """Six flowers of four photos; planted: an equal file, a recompressed copy, and a mirrored one across classes."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(24):
        photo = test_data / f"flowers17/jpg/image_{80 * (number // 4) + number % 4 + 10:04}.jpg"
        path = root / f"kind_{number // 4}/{number % 4}.jpg"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(photo, path)
    shutil.copy(root / "kind_0/0.jpg", root / "kind_0/same.jpg")
    with Image.open(root / "kind_1/0.jpg") as image:
        image.save(root / "kind_1/worse.jpg", quality=40)
    with Image.open(root / "kind_2/0.jpg") as image:
        ImageOps.mirror(image).save(root / "kind_3/mirrored.jpg")
    return root


PLANTED = {
    ("kind_0/0.jpg", "kind_0/same.jpg"): "equal files",
    ("kind_1/0.jpg", "kind_1/worse.jpg"): "perceptual hash",
    ("kind_2/0.jpg", "kind_3/mirrored.jpg"): "embedding",
}


@pytest.mark.slow
def test_planted_duplicates_are_found_shown_and_dropped(folder, tmp_path, browser, watched, capsys):
    manifest = load_manifest("folder", folder)
    duplicates = find_duplicates(manifest, device="cpu", progress=False)
    reasons = {tuple(sorted(manifest.paths[row] for row in pair[:2])): pair.reason for pair in duplicates.pairs}
    assert reasons == PLANTED
    assert duplicates.threshold.recall >= 0.9
    table, page = tmp_path / "clean.csv", tmp_path / "page.html"
    words = ["--duplicates", str(page), "--device", "cpu", "--drop-duplicates", "--manifest", str(table)]
    assert main(["folder", "--root", str(folder), *words]) == 0
    assert "3 groups of duplicates, 6 images" in capsys.readouterr().out
    assert len(load_manifest("csv", table, image_root=str(folder))) == 24
    check_page(page, browser, watched)


def check_page(file, browser, watched):
    """Opens the page, marks the first pair as a duplicate, and reads the table that it downloads."""
    with browser.new_context(accept_downloads=True) as context:
        page = context.new_page()
        trouble = watched(page, "file:", "blob:")
        page.goto(file.as_uri())
        assert page.locator("#group-list h3").count() == 3
        assert "2 classes" in page.locator("#group-list h3").first.inner_text()
        assert page.locator("#group-list .foot", has_text="kept").count() == 3
        page.locator("#group-list button").first.click()
        paths = page.locator("#pair-images .path").all_inner_texts()
        page.keyboard.press("d")
        page.keyboard.press("Escape")
        with page.expect_download() as download:
            page.click("#download")
        [fix] = read_fixes(download.value.path())
        assert (fix.path, fix.mark, fix.other) == (paths[1], "duplicate", paths[0])
        assert set(paths) == {"kind_2/0.jpg", "kind_3/mirrored.jpg"}
        assert trouble == []


def test_equal_files_that_are_no_images_are_shown_as_gray_squares(photo_folder, tmp_path):
    root = photo_folder()
    for number in range(2):
        (root / f"kind_00/broken_{number}.jpg").write_bytes(b"garbage")
    manifest = load_manifest("folder", root)
    one, other = (row for row, path in enumerate(manifest.paths) if "broken" in path)
    duplicates = Duplicates(manifest, [DuplicatePair(one, other, "equal files")], CopyThreshold(1.0, 0.0, 0.0))
    write_duplicates(duplicates, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"<h1>Duplicates in {root}</h1>" in page
    data = page.partition('id="data">')[2].partition("</script>")[0]
    with Image.open(io.BytesIO(base64.b64decode(json.loads(data)["pictures"][1]))) as picture:
        assert ImageColor.getrgb(GRAY) == pytest.approx(picture.convert("RGB").getpixel((9, 9)), abs=3)
