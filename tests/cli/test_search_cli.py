"""The search command: index, query and serve, and the message of every known mistake."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import fsspec
import pytest
import torch
from PIL import Image

from hgsl.cli import search
from hgsl.models import create_embedder, save_embedder
from hgsl.search import SearchIndex
from tests.helpers import fails


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, photo_folder):
    """A working folder with a run and images."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_embedder(create_embedder("test_resnet", weights="none", image_size=32), tmp_path / "run")
    photo_folder()
    return tmp_path


INDEX = ["index", "--checkpoint", "run", "--images", "photos", "--out", "idx", "--device", "cpu", "--workers", "0"]
QUERY = ["query", "--index", "idx", "--device", "cpu"]


def environment():
    """The environment of a process that imports the same packages."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def test_index_then_query(capsys):
    Path("photos/broken.jpg").write_text("x")
    assert search.main(INDEX) == 0
    printed = capsys.readouterr().out
    for part in (
        "25 new",
        "broken and skipped: 1\n  broken.jpg: the file is no image, or of an unsupported format",
        "index idx: 24 images",
        "Flat",
    ):
        assert part in printed
    images = ["photos/kind_00/00.jpg", "photos/kind_04/03.jpg"]
    assert search.main([*QUERY, *images, "-k", "3", "--sheet", "out/sheet.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == images[0]
    assert lines[1].split() == ["1", "1.0000", "kind_00", "kind_00/00.jpg"]
    assert lines[-1] == "written: out/sheet.png"
    assert len(lines) == 2 * 4 + 1
    with Image.open("out/sheet.png") as sheet:
        assert sheet.width > sheet.height
    assert search.main([*QUERY, *images, "-k", "3", "--json", "--label", "kind_04"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [query["image"] for query in answer["queries"]] == images
    assert answer["queries"][1]["hits"][0]["path"] == "kind_04/03.jpg"
    assert {hit["label"] for query in answer["queries"] for hit in query["hits"]} == {"kind_04"}
    assert answer["queries"][0]["match"] is None


def test_labels_are_repeatable_and_json_has_the_image_folder(capsys):
    assert search.main(INDEX) == 0
    capsys.readouterr()
    words = [*QUERY, "photos/kind_00/00.jpg", "--json", "-k", "24", "--label", "kind_04", "--label", "kind_01"]
    assert search.main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    hits = answer["queries"][0]["hits"]
    assert sorted(hit["label"] for hit in hits) == ["kind_01"] * 4 + ["kind_04"] * 4
    assert all(Path(answer["root"], hit["path"]).is_file() for hit in hits)


def test_a_query_may_be_an_address(capsys):
    assert search.main(INDEX) == 0
    fsspec.filesystem("memory").pipe_file("/queries/1.jpg", Path("photos/kind_02/01.jpg").read_bytes())
    capsys.readouterr()
    assert search.main([*QUERY, "memory://queries/1.jpg", "-k", "1", "--sheet", "sheet.png"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "memory://queries/1.jpg",
        "    1  1.0000  kind_02  kind_02/01.jpg",
    ]
    assert "unknown protocol 'ftp'" in fails(search.main, [*QUERY, "ftp://host/1.jpg"], capsys)


def test_a_condition_limits_a_query(capsys):
    Path("labels.csv").write_text("path,label,year\nkind_00/00.jpg,rose,2019\nkind_01/00.jpg,rose,2021\n")
    assert search.main([*INDEX, "--labels", "labels.csv"]) == 0
    capsys.readouterr()
    query = [*QUERY, "photos/kind_00/00.jpg", "--where"]
    assert search.main([*query, 'label in ["rose"] and year >= 2020']) == 0
    [_, hit] = capsys.readouterr().out.splitlines()
    assert hit.split()[2:] == ["rose", "kind_01/00.jpg"]
    assert "where, column 6: unexpected '= 2020': equality is written ==" in fails(
        search.main, [*query, "year = 2020"], capsys
    )


def test_no_match_is_printed(capsys):
    assert search.main([*INDEX, "--no-match", "1"]) == 0
    assert "no-match threshold: 1.0000 (given)" in capsys.readouterr().out
    Image.effect_noise((64, 64), 90).save("stranger.png")
    assert search.main([*QUERY, "stranger.png"]) == 0
    assert "no match: the nearest is 0." in capsys.readouterr().out


def test_an_empty_result_is_printed(capsys, monkeypatch):
    assert search.main([*INDEX, "--no-match", "0.5"]) == 0
    monkeypatch.setattr(SearchIndex, "search", lambda self, images, k, label, where: [[] for _ in images])
    assert search.main([*QUERY, "photos/kind_00/00.jpg", "--sheet", "sheet.png"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "photos/kind_00/00.jpg",
        "  nothing found",
        "written: sheet.png",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serve_as_a_process_ends_in_the_middle_of_an_upload(ending):
    assert search.main(INDEX) == 0
    command = [sys.executable, "-m", "hgsl", "search", "serve", "--index", "idx", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith("24 images: http://127.0.0.1:")
            url = line.split()[2]
            with urllib.request.urlopen(url + "/api/images/3/similar?k=2") as response:
                assert len(json.load(response)["hits"]) == 2
            upload = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
            upload.sendall(b"POST /api/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nabc")
        finally:
            server.send_signal(ending)
        out, err = server.communicate(timeout=20)  # an upload may take 30
        upload.close()
    status = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (-signal.SIGTERM, "")}[ending]
    assert (server.returncode, err, out) == (*status, "")


def test_an_address_in_use_is_named(capsys):
    assert search.main(INDEX) == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        message = fails(
            search.main, ["serve", "--index", "idx", "--port", str(taken.getsockname()[1]), "--device", "cpu"], capsys
        )
    assert "in use" in message
    assert "--port" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["index", "--images", "photos", "--out", "idx"], "--checkpoint RUN"),
        (["index", "--images", "nowhere", "--out", "idx"], "no folder"),
        ([*INDEX, "--checkpoint", "nowhere"], "nowhere"),
        ([*INDEX, "--labels", "missing.csv"], "missing.csv"),
        ([*INDEX, "--faiss", "Nonsense"], "FAISS cannot build the index 'Nonsense'"),
        ([*INDEX, "--batch-size", "0"], "batch_size must be at least 1"),
        ([*INDEX, "--workers", "-1"], "workers must be at least 0"),
        ([*INDEX, "--device", "gpu"], "unknown --device 'gpu'"),
        (["query", "--index", "nowhere", "photos/kind_00/00.jpg"], "no index in nowhere"),
        (["query", "--index", "idx", "nowhere.jpg"], "no such image: nowhere.jpg"),
        (["serve", "--index", "nowhere"], "no index in nowhere"),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    error = fails(search.main, words, capsys)
    assert any(part in error for part in message.split("|"))


def test_wrong_paths_are_found_before_torch_is_imported(tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copytree(tmp_path / "run", tmp_path / "searched" / "model")
    record = {"format": 4, "state": 1, "root": "photos", "index_type": "Flat", "model": {}, "files": {}, "columns": {}}
    record |= {"dimensions": 16, "rows": 0, "bytes": 0, "next_id": 0}
    (tmp_path / "searched" / "index.json").write_text(json.dumps(record))
    script = (
        "import sys; sys.platform = 'linux'; sys.modules['torch'] = sys.modules['timm'] = sys.modules['faiss'] = None\n"
        "from hgsl.cli.search import main\n"
        "for line in sys.stdin: print(main(line.split()))"
    )
    new = "index --out new --images photos --checkpoint"
    lines = {
        "index --out new --images nowhere --checkpoint run": "no folder nowhere",
        f"{new} nowhere": "no model at nowhere: expected a run folder, or OWNER/NAME of a model on the Hub",
        f"{new} empty": "no model.json in empty: expected the folder of a finished run",
        f"{new} run/model.json": "run/model.json is a file: name its folder, run",
        f"{new} searched": "searched is a search index: name the model in it, searched/model",
        f"{new} run --device cuda:x": "unknown --device 'cuda:x'",
        f"{new} run --device mps": "--device 'mps' is not present on this machine",
        "query --index searched photos/kind_00/00.jpg --device gpu": "unknown --device 'gpu'",
        f"{new} run --labels no.csv": "no table no.csv",
        f"{new} run --workers -1": "workers must be at least 0",
        f"{new} run --no-match 2": "from -1 to 1",
        "index --out photos --images photos --checkpoint run": "holds other files",
        "index --out run/model.json/new --images photos --checkpoint run": "Not a directory: run/model.json/new",
        "index --out new --images photos": "new has no model yet",
        "query --index nowhere photos/kind_00/00.jpg": "no index in nowhere",
        "query --index nowhere no.jpg": "no such image: no.jpg",
        "query --index nowhere -k 0 photos/kind_00/00.jpg": "k must be at least 1",
        "serve --index nowhere": "no index in nowhere",
    }
    process = subprocess.run(
        [sys.executable, "-c", script], input="\n".join(lines), capture_output=True, text=True, env=environment()
    )
    assert process.stdout.split() == ["2"] * len(lines), process.stderr
    for error, message in zip(process.stderr.splitlines(), lines.values(), strict=True):
        assert error.startswith("error: ")
        assert message in error


def test_a_wrong_faiss_factory_is_found_before_torch_is_imported(tmp_path):
    script = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
        "from hgsl.cli.search import main\n"
        "for line in sys.stdin: print(main([*'index --out new --images photos --checkpoint run'.split(), '--faiss', "
        "line.strip()]))"
    )
    factories = {
        "nonsense": "FAISS cannot build the index 'nonsense': could not parse index string nonsense",
        "IVF16,Flat nprobes=3": "could not set parameter nprobes",
        "IVF16,Flat nprobe=0": "nprobe must be at least 1",
        "IVF0,Flat": "it has no cells",
    }
    process = subprocess.run(
        [sys.executable, "-c", script], input="\n".join(factories), capture_output=True, text=True, env=environment()
    )
    assert process.stdout.split() == ["2"] * len(factories), process.stderr
    for error, message in zip(process.stderr.splitlines(), factories.values(), strict=True):
        assert error.startswith("error: ")
        assert message in error


def test_options_without_effect_are_refused(capsys):
    assert search.main(INDEX) == 0
    capsys.readouterr()
    assert "expected a name such as sheet.png" in fails(
        search.main, [*QUERY, "photos/kind_00/00.jpg", "--sheet", "sheet.txt"], capsys
    )
    for words, message in (
        (["--port", "99999"], "--port must be a number from 0 to 65535"),
        (["--allow-host", "https://photos.example"], "--allow-host must be a host name"),
    ):
        assert message in fails(search.main, ["serve", "--index", "idx", *words], capsys)
