"""Cards of data sets, and the command that reads them."""

import hashlib
import http.server
import json
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hgsl.cli.prepare_dataset import main
from hgsl.common.datasets import datasets_dir, default_root
from hgsl.data import DATASETS, load_manifest
from hgsl.data.files import cards
from hgsl.data.files.cards import fetch, read_card

WITH_CARD = sorted(set(DATASETS) - {"csv", "folder", "imagefolder", "parquet", "synthetic"})


def test_the_default_root_is_beside_the_cards_in_a_checkout_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkout = Path(__file__).parents[2]
    assert default_root("cub") == checkout / "datasets/cub"
    (tmp_path / "cub").mkdir()  # an installed package: the cards are copies
    monkeypatch.setattr("hgsl.common.datasets.datasets_dir", lambda: tmp_path)
    assert default_root("cub") == Path("datasets/cub")


def test_every_fixed_data_set_has_a_card_and_no_other() -> None:
    assert sorted(path.parent.name for path in datasets_dir().glob("*/card.json")) == WITH_CARD
    assert read_card("folder") is None


@pytest.mark.parametrize("name", WITH_CARD)
def test_cards_are_complete_and_agree_with_their_text(name: str) -> None:
    card = read_card(name)
    assert card is not None
    assert list(card) == ["name", "title", "source", "license", "archives", "by_hand", "expected"]
    assert card["name"] == name
    assert all(card[key] for key in card if key != "archives")
    for archive in card["archives"]:
        assert archive["url"].startswith(("http://", "https://"))
        assert archive["url"].endswith(archive["file"])
        assert archive["checksums"]
        for checksum in archive["checksums"]:
            kind, value = checksum.split(":")
            assert len(value) == 2 * hashlib.new(kind).digest_size
    text = (datasets_dir() / name / "README.md").read_text()
    assert card["title"] in text
    assert card["license"] in text
    assert card["by_hand"] in text
    assert "bibtex" in text
    for protocol, splits in card["expected"].items():
        for split, numbers in splits.items():
            assert f"| {protocol} | {split} | {numbers['classes']:,} | {numbers['images']:,}" in text
    for archive in card["archives"]:
        assert archive["url"] in text
        assert all(checksum in text for checksum in archive["checksums"])


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "jpg").mkdir(parents=True)
    for number in range(1, 1361):
        (root / f"jpg/image_{number:04}.jpg").write_bytes(b"x")
    return root


def test_verify_compares_counts_and_files(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flowers17", "--root", str(flowers), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "zero-shot     train images        720  ok" in out
    assert "files: 1,360 of 1,360 are in" in out
    (flowers / "jpg/image_0007.jpg").unlink()
    assert main(["flowers17", "--root", str(flowers), "--verify"]) == 1
    out = capsys.readouterr().out
    assert "files: 1,359 of 1,360" in out
    assert "missing: jpg/image_0007.jpg" in out


def test_verify_marks_a_wrong_count(
    flowers: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = read_card("flowers17")
    assert card is not None
    card["expected"]["zero-shot"]["test"]["images"] = 641
    monkeypatch.setattr("hgsl.data.files.cards.read_card", lambda name: card)
    assert main(["flowers17", "--root", str(flowers), "--verify"]) == 1
    assert "test  images        640  WRONG, expected 641" in capsys.readouterr().out


def test_manifest_is_a_table_that_csv_reads(flowers: Path, tmp_path: Path) -> None:
    table = tmp_path / "out.csv"
    assert main(["flowers17", "--root", str(flowers), "--manifest", str(table)]) == 0
    again = load_manifest("csv", table, image_root=flowers)
    assert again.split_hash == load_manifest("flowers17", flowers).split_hash
    assert len(again) == 1360


def test_audit_fails_on_a_broken_file_and_reports_all(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    root, report = photo_folder(classes=4, images=3), tmp_path / "audit.json"
    assert main(["folder", "--root", str(root), "--audit", "--audit-report", str(report)]) == 0
    (root / "kind_02/01.jpg").write_bytes(b"no image")
    assert main(["folder", "--root", str(root), "--audit", "--audit-report", str(report)]) == 1
    findings = json.loads(report.read_text())
    assert findings["images"] == 12
    assert findings["findings"]["unreadable"] == [["kind_02/01.jpg"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cubs"], "unknown data set 'cubs': did you mean 'cub'"),
        (["folder", "--download"], "folder cannot be downloaded: it reads your own files"),
        (["inshop", "--root", "DIR", "--download"], "inshop has no direct link: agree to the terms at https"),
        (["cub", "--root", "DIR"], "images.txt is not in .*; or add --download; or by hand: get CUB_200_2011.tgz"),
        (["folder", "--root", "DIR", "--option", "seed"], "--option 'seed' must be KEY=VALUE"),
        (
            ["folder", "--root", "DIR", "--option", "sead=1"],
            "option of data set folder in --option 'sead': did you mean 'seed'",
        ),
        (
            ["folder", "--root", "DIR", "--option", "seed=x"],
            "option seed of data set folder in --option must be int, found 'x'",
        ),
        (["folder", "--root", "DIR", "--audit-report", "a.json"], "--audit-report is written by --audit"),
        (["folder", "--root", "DIR/none"], "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([text.replace("DIR", str(tmp_path)) for text in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address that serves it."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def card_for(url: str, archive: Path) -> dict[str, Any]:
    card = read_card("flowers17")
    assert card is not None
    entry = card["archives"][0]
    entry |= {"url": f"{url}/{archive.name}", "file": archive.name, "bytes": archive.stat().st_size}
    entry["checksums"] = [f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"]
    return card


def test_download_verify_and_again(
    web: tuple[Path, str],
    flowers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, url = web
    with tarfile.open(folder / "17flowers.tgz", "w:gz") as tar:
        tar.add(flowers / "jpg", "jpg")
    monkeypatch.setattr("hgsl.data.files.cards.read_card", lambda name: card_for(url, folder / "17flowers.tgz"))
    root = tmp_path / "new/flowers17"
    assert main(["flowers17", "--root", str(root), "--download", "--verify"]) == 0
    assert "files: 1,360 of 1,360" in capsys.readouterr().out
    (folder / "17flowers.tgz").rename(folder / "gone")
    monkeypatch.setattr("hgsl.data.files.cards.read_card", lambda name: card_for(url, folder / "gone"))
    assert main(["flowers17", "--root", str(root), "--download", "--verify"]) == 0
    assert "jpg exists" in capsys.readouterr().out


def test_a_hostile_archive_leaves_the_root_unchanged(web: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = web
    (folder / "photo").write_bytes(b"x")
    with tarfile.open(folder / "evil.tgz", "w:gz") as tar:
        tar.add(folder / "photo", "jpg/image_0001.jpg")
        tar.add(folder / "photo", "../evil")
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(cards.InputError, match=r"names the path '../evil', which leads outside"):
        fetch(card_for(url, folder / "evil.tgz"), root)
    assert [path.name for path in root.iterdir()] == ["evil.tgz"]
    assert not (tmp_path / "evil").exists()


def test_without_a_network_the_message_has_the_steps_by_hand(tmp_path: Path) -> None:
    card = read_card("cub")
    assert card is not None
    card["archives"][0] |= {"url": "http://127.0.0.1:9/CUB_200_2011.tgz", "bytes": 10}
    with pytest.raises(cards.InputError) as caught:
        fetch(card, tmp_path, pause=0)
    message = str(caught.value)
    assert message.startswith("cannot download http://127.0.0.1:9/CUB_200_2011.tgz: ")
    assert message.endswith(f"; by hand: {card['by_hand']} (put it in {tmp_path})")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_as_a_process(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder(classes=4, images=2)
    Image.new("RGB", (9, 9)).save(root / "stray.png")
    tool = Path(__file__).parents[2] / "tools/prepare_dataset.py"
    done = subprocess.run(
        [sys.executable, str(tool), "folder", "--root", str(root), "--option", "seed=3", "--audit"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tool.parents[1]), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "train       2 classes        4 images" in done.stdout
    assert "1 skipped, not in a class folder: stray.png" in done.stdout
    assert done.stderr == ""  # no progress bar where there is no terminal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flwers17"], "unknown data set 'flwers17': did you mean 'flowers17'?"),
        (["folder", "--root", "nowhere"], "/nowhere does not exist: --root names the data set"),
        (["synthetic", "--protocol", "zeroshot"], "unknown protocol 'zeroshot': did you mean 'zero-shot'?"),
        (["synthetic", "--manifest", "/proc/list.csv"], ": /proc/list.csv"),
    ],
)
def test_a_mistake_in_a_name_or_path_is_reported_before_torch_is_imported(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    code = "import sys; from hgsl.cli.prepare_dataset import main; status = main(sys.argv[1:])"
    code += "; print('torch' in sys.modules); sys.exit(status)"
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == "False\n"


def test_a_missing_root_is_asked_for(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["csv"]) == 2
    assert capsys.readouterr().err.endswith("give the path of a .csv file: name your images with --root\n")


def test_an_audit_needs_no_split(photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = photo_folder(classes=1, images=6)
    assert main(["folder", "--root", str(root)]) == 2
    assert "a class-disjoint split needs 4" in capsys.readouterr().err
    assert main(["folder", "--root", str(root), "--audit", "--verify"]) == 0
    out = capsys.readouterr().out
    assert "images      1 class          6 images" in out
    assert "note: images without a split: folder: 1 class with two images or more" in out
    assert "6 images opened: no problem" in out
    assert main(["folder", "--root", str(root), "--audit", "--option", "seed=-1"]) == 2
    assert "seed cannot be negative" in capsys.readouterr().err
