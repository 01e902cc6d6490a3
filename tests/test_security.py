"""Untrusted files: nothing in them is executed, and every reader refuses a malformed one in one line."""

import ast
import io
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import hgsl
from hgsl.cli import compare, eval_retrieval, train
from hgsl.common.errors import InputError
from hgsl.common.files import read_json
from hgsl.data import load_manifest
from hgsl.engine.folder.checkpoint import load_state
from hgsl.evaluation import load_array
from hgsl.models import create_embedder, load_embedder, save_embedder, save_pretrained
from hgsl.models.weights import read_tensors
from hgsl.sparsity import load as load_sparse

CLONE = Path(hgsl.__file__).parents[1]
SOURCES = sorted(path for folder in ("hgsl", "tools", "benchmarks") for path in (CLONE / folder).rglob("*.py"))

# Calls that could run code, with the reason why they cannot.
REVIEWED = {
    ("hgsl/models/weights.py", "pickle"): "names the error class of torch.load",
    ("hgsl/models/weights.py", "torch.load"): "with weights_only=True",
    ("hgsl/export/formats.py", "torch.export.load"): "reads back the file that it has just written",
}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {
    *("eval", "exec", "os.system", "os.popen", "torch.load", "torch.jit.load", "torch.export.load", "torch.hub.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle"),
}


def dangers(source: str) -> Iterator[tuple[str, int]]:
    """Yields each construct that could run code from a file, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((name, node.lineno) for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in CALLS:
                yield name, node.lineno
            if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
                yield "np.load without allow_pickle=False", node.lineno
            if name == "torch.load" and keywords.get("weights_only") != "True":
                yield "torch.load without weights_only=True", node.lineno
            if name.endswith((".extractall", ".extract")) and "filter" not in keywords:
                yield "an archive unpacked unchecked", node.lineno
            yield from ((f"{word}=True", node.lineno) for word in ("shell", "trust_remote_code") if keywords.get(word))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CLONE).as_posix())
def test_no_source_can_run_code_from_a_file(path: Path) -> None:
    source = path.relative_to(CLONE).as_posix()
    calls = [(name, line) for name, line in dangers(path.read_text("utf-8")) if (source, name) not in REVIEWED]
    assert not calls, f"{source}: {calls}"


def test_every_dangerous_call_is_detected() -> None:
    source = """
import pickle
from joblib import load
torch.load(path)
torch.load(path, weights_only=False)
np.load(path)
np.load(path, allow_pickle=True)
yaml.load(text)
tar.extractall(folder)
subprocess.run(line, shell=True)
def f():
    return eval(text)
"""
    assert {line for _, line in dangers(source)} == {2, 3, 4, 5, 6, 7, 8, 9, 10, 12}
    assert not list(dangers("np.load(p, allow_pickle=False)\nmodel.eval()\nyaml.safe_load(t)\n"))


class Payload:
    """An object whose unpickling creates a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (self.marker,)


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Payload(marker))


def pickled_by_torch(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "state_dict": Payload(marker)}, buffer)
    return buffer.getvalue()


def array_of_objects(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def archive_of_objects(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, embeddings=np.array([Payload(marker)], dtype=object))
    return buffer.getvalue()


def tensors(header: object, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    """A safetensors file with any header, and any length claimed for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FALSE_HEADERS = {
    "a header longer than the file": tensors({"w": entry([4], [0, 16])}, length=1 << 40),
    "an empty header": tensors(b"", length=0),
    "a header that is not JSON": tensors(b"{" * 64),
    "a header nested without limit": tensors(b'{"w":' + b"[" * 100_000),
    "offsets beyond the file": tensors({"w": entry([1 << 20], [0, 1 << 22])}),
    "a shape larger than its bytes": tensors({"w": entry([1 << 40], [0, 16])}),
    "a shape that overflows": tensors({"w": entry([1 << 33, 1 << 33], [0, 16])}),
    "a negative shape": tensors({"w": entry([-4], [0, 16])}),
    "offsets in reverse": tensors({"w": entry([4], [16, 0])}),
    "overlapping tensors": tensors({"v": entry([4], [0, 16]), "w": entry([4], [0, 16])}),
    "bytes of no tensor": tensors({"w": entry([2], [0, 8])}),
    "an unknown number format": tensors({"w": entry([4], [0, 16], "PICKLE")}),
    "an empty file": b"",
}
PICKLES = {
    "a pickle": pickled,
    "a pickle of torch": pickled_by_torch,
    "an array of objects": array_of_objects,
    "an archive of objects": archive_of_objects,
}


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """The folder that a pickle creates when it is read; the test fails if it exists at the end."""
    path = tmp_path / "the pickle was executed"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model = create_embedder("test_resnet", "avg", embedding_size=8, weights="none", image_size=32)
    save_embedder(model, folder / "run")
    save_pretrained(model, folder / "hub")
    return folder


def hostile(content: bytes, saved: Path, tmp_path: Path) -> list[Callable[[], object]]:
    """Every reader of binary files, each on a copy of ``content`` under each name that it accepts."""

    def put(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    for kind, description in (("run", "model.json"), ("hub", "config.json")):
        put(f"{kind}/model.safetensors")
        (tmp_path / kind / description).write_bytes((saved / kind / description).read_bytes())
    readers = {
        load_embedder: [tmp_path / "run", tmp_path / "hub"],
        read_tensors: [put(f"weights{end}") for end in (".safetensors", ".pth", ".pt", ".bin")],
        lambda path: load_array(path, "embeddings"): [put(f"array{end}") for end in (".safetensors", ".npy", ".npz")],
        load_state: [put("state.safetensors")],
        lambda path: load_sparse(torch.nn.Linear(2, 2), path): [put("sparse.safetensors")],
    }
    return [partial(reader, path) for reader, paths in readers.items() for path in paths]


@pytest.mark.parametrize("kind", PICKLES)
def test_no_reader_executes_a_pickle(kind: str, saved: Path, tmp_path: Path, marker: Path) -> None:
    for reader in hostile(PICKLES[kind](marker), saved, tmp_path):
        with pytest.raises(InputError):
            reader()


@pytest.mark.parametrize("kind", FALSE_HEADERS)
def test_a_false_header_is_refused(kind: str, saved: Path, tmp_path: Path) -> None:
    for reader in hostile(FALSE_HEADERS[kind], saved, tmp_path):
        with pytest.raises(InputError):
            reader()


def test_the_payload_works(marker: Path) -> None:
    """The pickles above do execute their payload when they are loaded."""
    pickle.loads(pickled(marker))
    assert marker.is_dir()
    marker.rmdir()


def test_the_evaluation_command_refuses_them_in_one_line(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(4, dtype=np.int64))
    files = {
        "e.npy": array_of_objects,
        "e.npz": archive_of_objects,
        "e.safetensors": pickled_by_torch,
        "f.npy": pickled,
    }
    for name, make in files.items():
        (tmp_path / name).write_bytes(make(marker))
        arguments = ["--embeddings", str(tmp_path / name), "--labels", str(tmp_path / "labels.npy")]
        assert eval_retrieval.main(arguments) == 2
        error = capsys.readouterr().err
        assert str(tmp_path / name) in error
        assert error.count("\n") == 1


DESCRIPTIONS = [
    ("architecture", "backbone", "os.system"),
    ("architecture", "backbone", ["resnet50"]),
    ("architecture", "backbone", "hf-hub:stranger/model"),
    ("architecture", "model_args", {"checkpoint_path": "/etc/passwd"}),
    ("architecture", "model_args", {"norm_layer": {"import": "os"}}),
    ("architecture", "pooling", "__class__"),
    ("architecture", "embedding_size", 10**12),
    ("architecture", "embedding_size", -1),
    ("architecture", "embedding_size", True),
    ("architecture", "output_stride", "16"),
    ("data_config", "mean", [0.5]),
    ("data_config", "mean", "0.5"),
    ("data_config", "std", [1.0, 0.0, 1.0]),
    ("data_config", "std", [float("nan"), 1.0, 1.0]),
    ("data_config", "crop_pct", 0),
    ("data_config", "crop_pct", float("inf")),
    ("data_config", "interpolation", {"a": 1}),
    ("data_config", "image_size", 10**9),
    ("data_config", "image_size", "160"),
    (None, "architecture", None),
    (None, "data_config", []),
]


@pytest.mark.parametrize(("part", "key", "value"), DESCRIPTIONS)
@pytest.mark.parametrize("kind", ["run", "hub"])
def test_a_model_description_is_checked_value_by_value(
    kind: str, part: str | None, key: str, value: object, saved: Path, tmp_path: Path
) -> None:
    name = {"run": "model.json", "hub": "config.json"}[kind]
    content = json.loads((saved / kind / name).read_text())
    if kind == "hub":  # the same values under timm's names
        part, key, value = {
            "backbone": (None, "architecture", value),
            "model_args": (None, "model_args", value),
            "image_size": ("pretrained_cfg", "input_size", [3, value, value]),
            "architecture": (None, "hgsl", value),
            "data_config": (None, "pretrained_cfg", value),
        }.get(key, ("hgsl" if part == "architecture" else "pretrained_cfg", key, value))
    (content if part is None else content[part])[key] = value
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((saved / kind / "model.safetensors").read_bytes())
    with pytest.raises(InputError):
        load_embedder(tmp_path)


def test_unknown_keys_reach_no_constructor(saved: Path, tmp_path: Path) -> None:
    content = json.loads((saved / "run/model.json").read_text())
    content["architecture"] |= {"weights": "/etc/passwd", "pretrained": True}
    content["data_config"] |= {"url": "http://example.invalid"}
    (tmp_path / "model.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((saved / "run/model.safetensors").read_bytes())
    model = load_embedder(tmp_path)
    assert "weights" not in model.architecture
    assert "url" not in model.data_config


DAMAGED_JSON = [b"", b"{", b"[]", b"3", b"[" * 200_000, b"\xff\xfe{}", b'{"a": ' * 100_000, b"\x80\x04N."]


@pytest.mark.parametrize("content", DAMAGED_JSON, ids=lambda content: repr(content[:8]))
def test_untrusted_json(content: bytes, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").touch()
    for name in ("report.json", "model.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        read_json(tmp_path / "report.json")
    with pytest.raises(InputError):
        load_embedder(tmp_path)
    assert compare.main([str(tmp_path / "report.json"), str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


TABLES = {
    "a path that climbs out": b"path,label\n../../etc/passwd,1\n",
    "an absolute path": b"path,label\n/etc/passwd,1\n",
    "an unclosed quote": b'path,label\n"a.jpg,1\n' + b"x" * 200_000,
    "bytes that are not text": b"path,label\n\xff\xfe\x00,1\n",
    "a null byte": b"path,label\na\0.jpg,1\n",
    "a number of 5,000 digits": b"path,label\na.jpg," + b"9" * 5000 + b"\n",
    "a pickle": b"\x80\x04cos\nsystem\n.",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", TABLES)
def test_an_untrusted_table(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "photos.csv"
    table.write_bytes(TABLES[kind])
    with pytest.raises(InputError):
        load_manifest("csv", table)


def test_settings_are_read_as_plain_yaml(tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evil.yaml").write_text(f"run: !!python/object/apply:os.mkdir ['{marker}']\n")
    assert train.main(["--config", str(tmp_path / "evil.yaml")]) == 2
    assert "is not valid YAML" in capsys.readouterr().err
