"""Embedding with Ray itself, in processes on this machine: the vectors of one process, killed processes, no remains."""

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.evaluation.parts import cluster as ray_cluster
from hgsl.evaluation.parts.part import list_parts
from hgsl.evaluation.parts.ray_session import _connect, descendants, ray_session
from hgsl.search.indexing import cluster
from tests.helpers import environment
from tests.search.test_build_index import vectors_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'hgsl[ray]'"),
]
STARTED, SECONDS = 120, 20  # within which the processes of Ray must run, and must have ended


@pytest.fixture(scope="module")
def session():
    """One session for the tests of this process."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # processes of Ray import this file
        with ExitStack() as stack:
            try:
                ray = stack.enter_context(ray_session("local"))
            except InputError as error:
                pytest.skip(f"{error}: Ray waits for 30 seconds, in which a busy machine does not start it")
            yield ray


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr("hgsl.evaluation.parts.part.MIN_IMAGES", 8)


class Mortal(cluster.ImageFileEmbedder):
    """Its process is killed at an image: once, or each time."""

    def __call__(self, columns):
        killed, always = (Path(self.root).parent / name for name in ("killed", "always"))
        if "kind_03/00.jpg" in columns["path"] and (always.exists() or not killed.exists()):
            killed.touch(exist_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(columns)


def test_the_bits_are_those_of_one_process_whatever_is_killed(build, tmp_path, run, photos, session, monkeypatch):
    (photos / "kind_01/cut.jpg").write_bytes(b"no image")
    expected = build(tmp_path / "one", photos, checkpoint=run, batch_size=4)
    monkeypatch.setattr(cluster, "ImageFileEmbedder", Mortal)
    options = {"checkpoint": run, "batch_size": 4, "engine": "ray", "parts": tmp_path / "parts"}
    (tmp_path / "always").touch()
    with pytest.raises(InputError, match=r"3 processes were killed .* run the command again to continue"):
        build(tmp_path / "index", photos, **options)
    complete = {path: path.stat().st_mtime_ns for path in list_parts(tmp_path / "parts")}
    assert len(complete) < 4
    (tmp_path / "always").unlink()
    (tmp_path / "killed").unlink()  # once more, and then Ray starts the process again
    report = build(tmp_path / "index", photos, **options)
    assert (tmp_path / "killed").exists()
    assert {path: path.stat().st_mtime_ns for path in complete} == complete  # skipped
    assert report.broken == expected.broken
    assert {path: vector.tobytes() for path, vector in vectors_of(tmp_path / "index").items()} == {
        path: vector.tobytes() for path, vector in vectors_of(tmp_path / "one").items()
    }


class Waiting(cluster.ImageFileEmbedder):
    """Writes to a pipe, by which a test learns that the process runs, and never ends by itself."""

    def __call__(self, columns):
        (Path(self.root).parent / "pipe").write_text("begun")
        threading.Event().wait()


SCRIPT = """
import sys
from hgsl.cli import search
from hgsl.search.indexing import cluster
from tests.search.test_ray import Waiting
cluster.ImageFileEmbedder = Waiting
sys.argv[1:] = ["index", "--engine", "ray", "--device", "cpu", *sys.argv[1:]]
search.main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the processes of a parent on Linux alone")
def test_no_process_remains(tmp_path, run, photos, number):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = ["--images", photos, "--checkpoint", run, "--out", tmp_path / "index"]
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    process = subprocess.Popen(
        command,
        env=environment(TMPDIR=str(tmp_path)),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell starts tests without it
    )
    try:
        check_end(process, pipe, number)
    finally:
        process.kill()


def check_end(process, pipe, number):
    waiting = select.poll()
    for descriptor in (os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), os.pidfd_open(process.pid)):
        waiting.register(descriptor, select.POLLIN)
    waiting.poll(1000 * STARTED)  # until a process of Ray has written, or the command has ended
    below = [os.pidfd_open(pid) for pid in descendants(process.pid)]
    process.send_signal(number)
    _, errors = process.communicate(timeout=SECONDS)
    assert len(below) > 2, errors
    for descriptor in below:
        assert select.select([descriptor], [], [], SECONDS)[0], "a process of Ray is still running"
        os.close(descriptor)
    assert process.returncode == {signal.SIGINT: 130}.get(number, -number)
    if number == signal.SIGINT:
        assert errors == "interrupted\n"


def test_an_address_without_a_cluster_is_one_line():
    def init(**options):
        raise ConnectionError(f"Failed to connect to Ray cluster at {options['address']}\nand more")

    with pytest.raises(InputError, match=r"^no Ray cluster at host:9: Failed to connect to Ray cluster at host:9$"):
        _connect(SimpleNamespace(init=init), "host:9", None)


def test_threads_are_those_of_this_process(session):
    assert ray_cluster._resources(session, "cpu", 9).cores == torch.get_num_threads()
    with pytest.raises(InputError, match="Ray assigns the GPUs"):
        ray_cluster._resources(session, "cuda:1", 9)
