"""Models on the Hub, against a local server with the Hub's protocol."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.models import save_for_hf

import hgsl
from hgsl.common.errors import InputError
from hgsl.models import Embedder, create_embedder, load_embedder, save_embedder, save_pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPORT = {
    "before": {"recall@1": 0.5, "recall@2": 0.6, "recall@4": 0.7, "recall@8": 0.8, "r_precision": 0.3, "map@r": 0.2},
    "after": {
        **{
            "recall@1": 0.8125,
            "recall@2": 0.9,
            "recall@4": 0.95,
            "recall@8": 1.0,
            "r_precision": 0.6,
            "map@r": 0.53081,
        },
        **{"num_queries": 1288, "num_gallery": 1300, "dataset": "birds", "protocol": "zero-shot"},
        **{"split_hash": "00112233445566aa", "notes": ["cropped to boxes"]},
    },
    "selection": {"epoch_chosen": "last"},
    "seed": 7,
    "device": "cpu",
    "precision": "float32",
    "versions": {"hgsl": "0.1.0", "torch": "2.15.0"},
}


class Hub(BaseHTTPRequestHandler):
    """The requests of a download and an upload of small files; the files are in memory."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._send_file(with_body=False)

    def do_GET(self) -> None:
        self._send_file(with_body=True)

    def do_POST(self) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.tokens.append(self.headers.get("Authorization"))
        parts = self.path.strip("/").split("/")
        if self.path == "/api/repos/create":
            name = json.loads(body)
            self._send_json({"url": f"{hub.address}/{name.get('organization', 'me')}/{name['name']}"})
        elif self.path == "/api/validate-yaml":
            hub.cards.append(json.loads(body)["content"])
            self._send_json({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            self._send_json({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        elif "commit" in parts:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    hub.files["/".join(parts[2:4]), value["path"]] = base64.b64decode(value["content"])
            self._send_json(
                {"commitOid": COMMIT, "commitUrl": f"{hub.address}/me/birds/commit/{COMMIT}", "success": True}
            )
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send_file(self, with_body: bool) -> None:
        hub = self.server
        owner, name, *rest = self.path.strip("/").split("?")[0].split("/")
        hub.asked.append(self.path)
        if rest[:1] == ["resolve"]:
            content = hub.files.get((f"{owner}/{name}", "/".join(rest[2:])))
            known = any(key[0] == f"{owner}/{name}" for key in hub.files)
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})
                return
            tag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, with_body)
        else:
            self._send_json({"id": "me/birds", "sha": COMMIT, "siblings": []})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked, server.tokens, server.cards = {}, [], [], []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run_with(hub: ThreadingHTTPServer, home: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process with that server as its Hub: the client reads the address on import."""
    names = ("HF_HUB_OFFLINE", "HF_TOKEN")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    environment["PYTHONPATH"] = str(Path(hgsl.__file__).parents[1])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=home)


def make_model(image_size: int = 48) -> Embedder:
    torch.manual_seed(0)
    return create_embedder("test_resnet", "gem", embedding_size=24, weights="none", image_size=image_size).eval()


def test_a_saved_folder_gives_the_same_model_back(tmp_path: Path) -> None:
    model = make_model()
    model.data_config["crop_pct"] = 0.8
    save_pretrained(model, tmp_path / "out", report=REPORT)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    loaded = load_embedder(tmp_path / "out")
    images = torch.randn(3, 3, 48, 48)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))
    assert loaded.data_config["image_size"] == 48
    assert loaded.data_config["crop_pct"] == 0.8
    assert loaded.architecture == model.architecture


def test_only_an_earlier_export_is_overwritten(tmp_path: Path) -> None:
    export, other = tmp_path / "ours", tmp_path / "other"
    (export / ".git").mkdir(parents=True)
    for size in (48, 64):
        save_pretrained(make_model(size), export)
    assert load_embedder(export).data_config["image_size"] == 64
    other.mkdir()
    (other / "README.md").write_text("mine")
    (other / "config.json").write_text('{"architecture": "bert"}')
    with pytest.raises(InputError, match=r"other holds other files \(README.md\): name an empty or a new folder"):
        save_pretrained(make_model(), other)
    assert {path.name: path.read_text() for path in other.iterdir()} == {
        "README.md": "mine",
        "config.json": '{"architecture": "bert"}',
    }
    with pytest.raises(InputError, match="is a file"):
        save_pretrained(make_model(), other / "README.md")


def test_the_config_is_one_that_timm_reads(tmp_path: Path) -> None:
    from timm.models._hub import load_model_config_from_path

    save_pretrained(make_model(), tmp_path)
    config, name, arguments = load_model_config_from_path(tmp_path)
    assert name == "test_resnet"
    assert tuple(config["input_size"]) == (3, 48, 48)
    assert tuple(config["mean"]) == tuple(make_model().data_config["mean"])
    assert not arguments


def test_the_card_states_scores_protocol_and_split(tmp_path: Path) -> None:
    save_pretrained(make_model(), tmp_path, report=REPORT, name="me/birds", license="apache-2.0")
    card = (tmp_path / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    (result,) = head["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]}["map@r"] == 53.08
    for part in ("1,288 queries, 1,300 images of birds", "| after training | 81.25 | 90.00 | 95.00 | 100.00 |"):
        assert part in card
    for part in ("`00112233445566aa`", "zero-shot", "Seed 7", "hgsl 0.1.0, torch 2.15.0", "Note: cropped to boxes."):
        assert part in card


def test_a_card_without_a_report_claims_nothing(tmp_path: Path) -> None:
    save_pretrained(make_model(), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Not measured." in card
    assert "license" not in yaml.safe_load(card.split("---\n")[1])


def test_the_code_on_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    save_pretrained(make_model(), tmp_path / "birds", name="birds")
    Image.new("RGB", (60, 50), "green").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "birds" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    variables: dict[str, object] = {}
    exec(code, variables)
    assert variables["vector"].shape == (1, 24)


@pytest.mark.slow
def test_push_and_load_through_a_hub(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    save_embedder(make_model(), tmp_path / "run")
    (tmp_path / "run" / "report.json").write_text(json.dumps(REPORT))
    push = "from hgsl.cli.export import main\nimport sys\n"
    push += "sys.exit(main(['run', '--format', 'hub', '--push', 'me/birds', '--private']))"
    done = run_with(hub, tmp_path, f"import os; os.environ['HF_TOKEN'] = 'hf_secret'\n{push}")
    assert done.returncode == 0, done.stderr
    assert f"uploaded: {hub.address}/me/birds" in done.stdout
    assert "Bearer hf_secret" in hub.tokens
    names = {name for repository, name in hub.files if repository == "me/birds"}
    assert names >= {"config.json", "model.safetensors", "README.md"}
    card = hub.files["me/birds", "README.md"].decode()
    assert set(hub.cards) == {card}  # validated by the Hub
    assert "00112233445566aa" in card

    load = "import hgsl, torch\nmodel = hgsl.load_embedder('me/birds@main')\n"
    load += (
        "torch.manual_seed(1); print(model.data_config['image_size'], model(torch.randn(1, 3, 48, 48))[0, :3].tolist())"
    )
    done = run_with(hub, tmp_path, load)
    assert done.returncode == 0, done.stderr
    model = make_model()
    torch.manual_seed(1)
    with torch.inference_mode():
        expected = model(torch.randn(1, 3, 48, 48))[0, :3]
    size, _, vector = done.stdout.strip().partition(" ")
    assert size == "48"
    torch.testing.assert_close(torch.tensor(json.loads(vector)), expected)
    fetched = {path.rsplit("/", 1)[1] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors"}  # no other file of the repository


@pytest.mark.slow
def test_a_backbone_of_the_hub(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    """Weights and preprocessing come from its files; the saved model needs the Hub no more, nor does the cache."""
    original = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(original, tmp_path / "files", safe_serialization=True)
    config = json.loads((tmp_path / "files" / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = (0.1, 0.2, 0.3)
    hub.files["lab/birds", "config.json"] = json.dumps(config).encode()
    hub.files["lab/birds", "model.safetensors"] = (tmp_path / "files" / "model.safetensors").read_bytes()
    code = "import hgsl\nfrom hgsl.models import save_embedder\n"
    code += "save_embedder(hgsl.create_embedder('hf-hub:lab/birds', 'avg', image_size=64), 'run')"
    done = run_with(hub, tmp_path, code)
    assert done.returncode == 0, done.stderr
    model = load_embedder(tmp_path / "run")
    assert model.architecture["backbone"] == "test_resnet"
    assert tuple(model.data_config["mean"]) == (0.1, 0.2, 0.3)
    state = original.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.backbone.state_dict().items())
    hub.shutdown()
    hub.server_close()
    assert run_with(hub, tmp_path, code).returncode == 0


@pytest.mark.slow
def test_missing_and_unsafe_models(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    hub.files["you/pickles", "config.json"] = b"{}"
    hub.files["you/pickles", "pytorch_model.bin"] = b"\x80\x04cos\nsystem\n."
    code = """
import hgsl
for source in ("hf-hub:you/pickles", "you/none", "none"):
    try:
        hgsl.load_embedder(source)
    except (ValueError, FileNotFoundError) as error:
        print(error)
"""
    pickles, unknown, folder = run_with(hub, tmp_path, code).stdout.splitlines()
    assert pickles.startswith("you/pickles is neither a local folder nor available from the Hub: ")
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    assert unknown.startswith("you/none is neither a local folder nor available from the Hub: ")
    assert folder == "no model at none: expected a run folder, or OWNER/NAME of a model on the Hub"


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    hub.shutdown()
    hub.server_close()
    done = run_with(hub, tmp_path, "import hgsl; hgsl.load_embedder('me/birds')")
    assert "InputError: me/birds is neither a local folder" in done.stderr.splitlines()[-1]
    assert "cannot be reached" in done.stderr.splitlines()[-1]
