"""Images at addresses: the same as local ones, retried, cached, audited, recorded, and no secret in a message."""

import io
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hgsl.common import remote, retries
from hgsl.common.errors import InputError
from hgsl.common.images import read_image
from hgsl.common.transforms import eval_transform
from hgsl.data import RetrievalDataset, build_dataset, load_manifest, verify_files
from hgsl.data.audit import audit
from hgsl.data.run_split import record_of, restore

CONFIG = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0, "image_size": 16}
NAMES = [f"{name}/{number} a.jpg" for name in ("ash", "elm", "fir", "oak") for number in (1, 2)]


def jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


CONTENT = {name: jpeg(number) for number, name in enumerate(NAMES)}


def write_table(folder: Path, paths: list[str]) -> Path:
    lines = [f'"{path}",{name.split("/")[0]}' for path, name in zip(paths, NAMES, strict=True)]
    (folder / "list.csv").write_text("path,label\n" + "\n".join(lines))
    return folder / "list.csv"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(content)
    return write_table(tmp_path, NAMES)


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for name, content in CONTENT.items():
        system.pipe_file(f"/photos/{name}", content)
    yield "memory://photos"
    system.rm("/photos", recursive=True)


@dataclass
class Server:
    """A server on loopback: path -> the statuses of the first answers to GET, and what was asked."""

    address: str = ""
    failures: dict[str, list[int]] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    authorization: set[str] = field(default_factory=set)
    content: dict[str, bytes] = field(default_factory=lambda: dict(CONTENT))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason="extra [remote] is not installed")
    monkeypatch.setattr(retries, "PAUSE", 0.0)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer("HEAD")

        def do_GET(self) -> None:
            self._answer("GET")

        def _answer(self, method: str) -> None:
            path = self.path.partition("?")[0].removeprefix("/").replace("%20", " ")
            state.requests[f"{method} {path}"] += 1
            state.authorization.add(self.headers.get("Authorization", ""))
            content = state.content.get(path)
            pending = state.failures.get(path, [])
            status = pending.pop(0) if pending and method == "GET" else 404 if content is None else 200
            body = content if status == 200 and content is not None else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hash(body):x}"')
            self.end_headers()
            if method == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http_server.server_port}"
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    http_server.shutdown()
    http_server.server_close()
    thread.join()


def tensors(dataset: RetrievalDataset) -> torch.Tensor:
    return torch.stack([image for image, _, _ in dataset])  # type: ignore[attr-defined]


def load(table: Path, image_root: str, cache: Path | None = None) -> RetrievalDataset:
    transform = eval_transform(CONFIG, 16)
    return build_dataset("csv", table, "all", transform=transform, cache_dir=cache, image_root=image_root)


def test_an_address_as_root_gives_the_images_and_the_split_of_local_files(
    local: Path, memory: str, server: Server
) -> None:
    expected = load(local, str(local.parent / "images"))
    for root in (memory, server.address):
        dataset = load(local, root)
        verify_files(dataset.manifest)
        assert dataset.manifest.split_hash == expected.manifest.split_hash
        assert torch.equal(tensors(dataset), tensors(expected))


def test_a_table_may_mix_addresses_and_local_paths(local: Path, memory: str) -> None:
    expected = tensors(load(local, str(local.parent / "images")))
    file_address = "file://" + str(local.parent / "images" / NAMES[1]).replace(" ", "%20")
    mixed = write_table(local.parent, [f"{memory}/{NAMES[0]}", file_address, *NAMES[2:]])
    dataset = load(mixed, str(local.parent / "images"))
    verify_files(dataset.manifest)
    assert dataset.manifest.paths[:2] == (f"{memory}/{NAMES[0]}", file_address)
    assert torch.equal(tensors(dataset), expected)


def test_failures_that_may_pass_are_retried_and_others_are_not(server: Server) -> None:
    path = f"{server.address}/{NAMES[0]}"
    server.failures = {NAMES[0]: [503, 429, 500]}
    assert read_image(path).size == (40, 32)
    assert server.requests == {f"GET {NAMES[0]}": 4}
    for status, attempts, message in (
        (503, 4, r"503 .*\(after 4 attempts\)"),
        (403, 1, r"403 .*access denied: set the credentials of http"),
        (400, 1, "400 Bad Request$"),
        (404, 1, "does not exist"),
    ):
        server.requests.clear()
        server.failures = {NAMES[0]: [status] * 9}
        with pytest.raises(InputError, match=f"{NAMES[0]}.*{message}"):
            read_image(path)
        assert server.requests == {f"GET {NAMES[0]}": attempts}


def test_a_server_that_fails_is_not_taken_for_missing_files(local: Path, server: Server) -> None:
    manifest = load_manifest("csv", local, image_root=server.address)
    server.failures = {NAMES[3]: [503] * 99}
    del server.content[NAMES[3]]
    with pytest.raises(InputError, match=f"cannot read {server.address}/.*503"):
        verify_files(manifest)
    server.failures = {}
    with pytest.raises(FileNotFoundError, match=f"1 of 8 images are missing at {server.address}: {NAMES[3]}"):
        verify_files(manifest)


def test_passwords_and_tokens_are_used_and_never_printed(local: Path, server: Server, tmp_path: Path) -> None:
    base = server.address.replace("//", "//me:passw0rd@")
    paths = [f"{base}/{name}?size=2&X-Amz-Signature=t0ken" for name in NAMES]
    manifest = load_manifest("csv", write_table(local.parent, paths))
    assert manifest.paths[0] == f"{server.address}/{NAMES[0]}?size=2"
    dataset = RetrievalDataset(manifest, cache_dir=tmp_path / "cache")
    assert dataset[0][0].size == (40, 32)
    assert server.authorization == {"Basic bWU6cGFzc3cwcmQ="}
    server.failures = {NAMES[1]: [503] * 99}
    server.content[NAMES[2]] = b"<html>"
    messages = [repr(dataset), repr(manifest), str(record_of(manifest)), audit(manifest).table()]
    for row in (1, 2):
        with pytest.raises(InputError, match=f"cannot read.*{NAMES[row]}") as error:
            dataset[row]
        messages.append(str(error.value))
    for option in ({"image_root": base}, {}):
        with pytest.raises(InputError, match="address") as error:
            load_manifest("csv", local if option else base, **option)
        messages.append(str(error.value))
    assert not any(secret in message for message in messages for secret in ("passw0rd", "t0ken"))


def test_cached_images_are_fetched_once_and_changed_ones_again(local: Path, server: Server, tmp_path: Path) -> None:
    first = tensors(load(local, server.address, tmp_path / "cache"))
    server.requests.clear()
    assert torch.equal(tensors(load(local, server.address, tmp_path / "cache")), first)
    assert set(server.requests) == {f"HEAD {name}" for name in NAMES}
    server.content[NAMES[0]] = CONTENT[NAMES[1]]
    again = tensors(load(local, server.address, tmp_path / "cache"))
    assert torch.equal(again[0], first[1])
    assert [request for request in server.requests if request.startswith("GET")] == [f"GET {NAMES[0]}"]


def test_loader_processes_read_after_a_fork(local: Path, server: Server) -> None:
    dataset = load(local, server.address)
    expected = tensors(dataset)  # starts the threads of fsspec in this process
    loader = DataLoader(dataset, batch_size=4, num_workers=2)
    assert torch.equal(torch.cat([images for images, _, _ in loader]), expected)


def test_the_audit_reads_addresses(local: Path, memory: str) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/photos/{NAMES[0]}", CONTENT[NAMES[0]][:-60])
    system.pipe_file(f"/photos/{NAMES[2]}", CONTENT[NAMES[7]])
    system.rm_file(f"/photos/{NAMES[3]}")
    findings = audit(load_manifest("csv", local, image_root=memory)).findings
    assert {name: paths for name, paths in findings.items() if paths} == {
        "missing": [[NAMES[3]]],
        "damaged": [[NAMES[0]]],
        "same_across": [[NAMES[2], NAMES[7]]],
    }


def test_the_record_of_a_run_notices_changed_and_missing_files(local: Path, memory: str) -> None:
    manifest = load_manifest("csv", local, image_root=memory)
    record, system = record_of(manifest), fsspec.filesystem("memory")
    assert restore(record, manifest)[1].losses() == []
    system.pipe_file(f"/photos/{NAMES[0]}", CONTENT[NAMES[1]] + b" ")
    system.rm_file(f"/photos/{NAMES[3]}")
    (sentence,) = restore(record, manifest)[1].losses()
    assert sentence == f"2 train images are changed since the training: {NAMES[0]}, {NAMES[3]}"


def test_addresses_that_cannot_be_read_are_refused_by_line(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(address: str) -> str:
        with pytest.raises(InputError, match=r"list.csv, line 3") as error:
            load_manifest("csv", write_table(local.parent, [NAMES[0], address, *NAMES[2:]]))
        return str(error.value)

    assert "unknown protocol 'ftp'" in refusal("ftp://host/a.jpg")
    assert "unknown protocol 'simplecache'" in refusal("simplecache://a.jpg")
    assert "s3:// names no file" in refusal("s3://")
    monkeypatch.setattr(remote, "find_spec", lambda _: None)
    assert "gs:// needs gcsfs, to read gs://bucket/a.jpg: pip install gcsfs" in refusal("gs://bucket/a.jpg")


def test_a_listing_has_paths_sizes_and_versions(memory: str) -> None:
    listed = remote.list_uri(memory)
    assert [(file.path, file.size) for file in listed] == sorted((name, len(CONTENT[name])) for name in NAMES)
    fsspec.filesystem("memory").pipe_file(f"/photos/{NAMES[0]}", CONTENT[NAMES[0]])
    changed = [new.path for old, new in zip(listed, remote.list_uri(memory), strict=True) if old != new]
    assert changed == [NAMES[0]]
    with pytest.raises(FileNotFoundError, match="memory://nothing"):
        remote.list_uri("memory://nothing")


def test_a_listing_by_http_has_every_folder_and_the_version_of_each_file(server: Server) -> None:
    folders = sorted({name.rpartition("/")[0] for name in NAMES})
    page = "".join(f'<a href="{quote(folder)}/">' for folder in folders) + '<a href="?C=N;O=D"><a href="gone/">'
    server.content["top/"] = server.content["top"] = page.encode()
    for folder in folders:
        names = [name.rpartition("/")[2] for name in NAMES if name.startswith(folder + "/")]
        links = "".join(f'<a href="{quote(name)}">' for name in names).encode()
        server.content |= {
            f"top/{folder}/": links,
            **{f"top/{folder}/{name}": CONTENT[f"{folder}/{name}"] for name in names},
        }
    root = f"{server.address}/top"
    files = remote.list_uri(root)
    assert [(file.path, file.size) for file in files] == sorted((name, len(CONTENT[name])) for name in NAMES)
    server.content[f"top/{NAMES[0]}"] = CONTENT[NAMES[1]]
    changed = [file.path for file, before in zip(remote.list_uri(root), files, strict=True) if file != before]
    assert changed == [NAMES[0]]
    server.failures[f"top/{folders[0]}/"] = [503]
    assert len(remote.list_uri(root)) == len(NAMES), "a failure that passes"
    server.failures[f"top/{folders[0]}/"] = [503] * 9
    with pytest.raises(InputError, match=f"cannot read {re.escape(root)}/.*503"):
        remote.list_uri(root)
    with pytest.raises(InputError, match=r"cannot read http://127\.0\.0\.1:9/top.*after 4 attempts"):
        remote.list_uri("http://127.0.0.1:9/top")
    with pytest.raises(FileNotFoundError, match="there are no files at"):
        remote.list_uri(f"{server.address}/nowhere")


@pytest.mark.slow
def test_a_bucket_of_s3(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    store = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    variables = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
    for name, value in zip(variables, ("k", "s3cret", "us-east-1", f"http://{host}:{port}"), strict=True):
        monkeypatch.setenv(name, value)
    try:
        system = fsspec.filesystem("s3")
        system.mkdir("photos")
        for name, content in CONTENT.items():
            system.pipe_file(f"photos/{name}", content)
        dataset = load(local, "s3://photos")
        verify_files(dataset.manifest)
        assert torch.equal(tensors(dataset), tensors(load(local, str(local.parent / "images"))))
        assert [file.path for file in remote.list_uri("s3://photos")] == sorted(NAMES)
        record = record_of(dataset.manifest)
        system.rm_file(f"photos/{NAMES[0]}")
        assert restore(record, dataset.manifest)[1].losses()
        with pytest.raises(InputError, match=f"image s3://photos/{NAMES[0]} does not exist"):
            dataset[0]
        with pytest.raises(InputError, match=r"s3://absent/a.jpg does not exist"):
            read_image("s3://absent/a.jpg")
    finally:
        store.stop()
        fsspec.filesystem("s3").clear_instance_cache()
