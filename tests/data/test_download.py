"""Downloads from a local server that cuts connections, ignores ranges and sends wrong files."""

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from hgsl.common.errors import InputError
from hgsl.data.files.download import download

CONTENT = bytes(range(256)) * 8000  # 2 MB
SUM = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@dataclass
class Server:
    """Behavior of the server, and the ranges that were requested."""

    url: str = ""
    cut_after: int | None = None  # bytes of each answer before the connection is cut
    ranges: bool = True
    length: bool = True
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if state.status:
                self.send_error(state.status)
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0  # type: ignore[index]
            if start >= len(CONTENT):
                self.send_error(416)
                return
            body = CONTENT[start:]
            self.send_response(206 if wanted and state.ranges else 200)
            if state.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut_after])

        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/photos.tgz"
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_whole_file(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "photos.tgz"
    download(server.url, target, len(CONTENT), ["sha256:0", SUM])
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["photos.tgz"]
    download(server.url, target, len(CONTENT), [SUM])
    assert server.asked == [None]  # a right file is not fetched again


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cut_after = 900_000
    download(server.url, tmp_path / "a.tgz", len(CONTENT), [SUM], pause=0)
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=900000-", "bytes=1800000-"]


def test_a_later_call_resumes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tgz.part").write_bytes(CONTENT[:12345])
    download(server.url, tmp_path / "a.tgz", None, [SUM])
    assert server.asked == ["bytes=12345-"]
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_only_the_rest_of_a_file_needs_space(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="has 2,048,000 bytes to download, and only 1,000 are free"):
        download(server.url, tmp_path / "a.tgz", len(CONTENT), [SUM])
    (tmp_path / "a.tgz.part").write_bytes(CONTENT[:-900])
    download(server.url, tmp_path / "a.tgz", len(CONTENT), [SUM])
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tgz.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "a.tgz", None, [SUM])
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_a_part_that_is_too_long_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tgz.part").write_bytes(CONTENT + b"rubbish")
    download(server.url, tmp_path / "a.tgz", len(CONTENT), [SUM], pause=0)
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "a.tgz.part").write_bytes(b"something else")
    download(server.url, tmp_path / "a.tgz", None, [SUM])
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_without_a_length_the_size_decides(server: Server, tmp_path: Path) -> None:
    server.length = False
    server.cut_after = 1_100_000
    download(server.url, tmp_path / "a.tgz", len(CONTENT), [SUM], pause=0)
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_a_wrong_checksum_removes_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"photos.tgz from http.* has checksum md5:.*, expected md5:0: it was removed"):
        download(server.url, tmp_path / "photos.tgz", None, ["md5:0"])
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_stops_before_the_first_byte(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 2,048,000 bytes, expected 5"):
        download(server.url, tmp_path / "a.tgz", 5, [SUM])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a.tgz has 1 bytes, expected 2,048,000: remove it and run"):
        download(server.url, tmp_path / "a.tgz", len(CONTENT), [SUM])
    assert (tmp_path / "a.tgz").read_bytes() == b"x"  # someone put it there


def test_a_server_without_progress_is_given_up(server: Server, tmp_path: Path) -> None:
    server.cut_after = 0
    with pytest.raises(InputError, match=r"cannot download http.*: the connection was cut") as caught:
        download(server.url, tmp_path / "a.tgz", len(CONTENT), [SUM], pause=0)
    assert len(server.asked) == 4
    assert "\n" not in str(caught.value)
    (tmp_path / "a.tgz.part").write_bytes(CONTENT[:10])
    with pytest.raises(InputError, match="10 bytes are kept, run the command again to resume"):
        download(server.url, tmp_path / "a.tgz", len(CONTENT), [SUM], pause=0)


def test_a_missing_file_is_requested_once(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(InputError, match=r"cannot download .*: Not Found"):
        download(server.url, tmp_path / "a.tgz", pause=0)
    assert len(server.asked) == 1


def test_no_server_and_no_http(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Connection refused"):
        download("http://127.0.0.1:9/a.tgz", tmp_path / "a.tgz", pause=0)
    with pytest.raises(InputError, match="only http and https"):
        download("file:///etc/passwd", tmp_path / "a.tgz")
    with pytest.raises(InputError, match=r"bytes to download, and only .* are free"):
        download("http://127.0.0.1:9/a.tgz", tmp_path / "a.tgz", size=10**18)
