"""The container image of the search server, without a container engine: instructions, and a read-only file system."""

import configparser
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hgsl.cli import entry, search
from hgsl.models import create_embedder, save_embedder
from hgsl.search import build_index
from tests.helpers import ROOT, environment

# Folders that exist in an image that FROM names, or that an instruction of the file makes.
KNOWN_INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "ARG", "RUN", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, with continued lines joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (name, " ".join(rest.split())) for name, _, rest in (line.partition(" ") for line in joined.split("\n")) if name
    ]


def stages() -> list[list[tuple[str, str]]]:
    parts: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            parts.append([])
        parts[-1].append((name, rest))
    return parts


def arguments_of(name: str) -> str:
    """The arguments of an instruction that the last stage has once."""
    (rest,) = [rest for instruction, rest in stages()[-1] if instruction == name]
    return rest


def in_build_context(path: str) -> bool:
    """Whether ``.dockerignore`` leaves a file of the clone in: its last pattern that matches the file or a parent."""
    included = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        starts = range(len(parts)) if line.startswith("**/") else [0]
        candidates = ["/".join(parts[start:end]) for start in starts for end in range(start + 1, len(parts) + 1)]
        depth = pattern.count("/")
        if any(fnmatch.fnmatch(part, pattern) and part.count("/") == depth for part in candidates):
            included = line.startswith("!")
    return included


def test_the_file_holds_known_instructions_in_two_stages() -> None:
    assert {name for name, _ in instructions()} == KNOWN_INSTRUCTIONS
    build, final = stages()
    assert build[0][1].endswith(" AS build")
    assert build[0][1].removesuffix(" AS build") == final[0][1], "both stages need the same Python"
    declared = configparser.ConfigParser(interpolation=None)
    declared.read(ROOT / "setup.cfg")
    assert f"Python :: {re.search(r'python:([0-9.]+)', final[0][1])[1]}" in declared["metadata"]["classifiers"]
    assert [rest for name, rest in final if name == "COPY"] == ["--from=build /opt/hgsl /opt/hgsl"]


def test_the_extras_that_it_installs_exist() -> None:
    declared = configparser.ConfigParser(interpolation=None)
    declared.read(ROOT / "setup.cfg")
    assert any('".[${EXTRAS}]"' in rest for name, rest in instructions() if name == "RUN")
    (names,) = [rest.partition("=")[2] for name, rest in instructions() if rest.startswith("EXTRAS=")]
    installed = set(names.split(","))
    assert installed == {"serve", "milvus"}
    assert installed <= set(declared["options.extras_require"])


def test_the_build_context_is_what_the_wheel_is_made_of() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listing:
        pytest.skip("not a git clone: there is no list of its files")
    names = [name for name in listing.split("\0") if name]
    included = {name for name in names if in_build_context(name)}
    for name in names:
        folder = name.split("/")[0]
        if folder in ("hgsl", "configs", "datasets") or name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            assert name in included, name
    assert not {name for name in included if name.split("/")[0] in ("tests", "docs", "benchmarks", "tools")}
    for name in ("datasets/cub/images/1.jpg", "runs/folder/model.safetensors", ".git/config", "hgsl/__pycache__/a.pyc"):
        assert not in_build_context(name), name


def test_it_runs_as_a_user_without_rights() -> None:
    user = arguments_of("USER")
    assert re.fullmatch(r"\d+:\d+", user), "a number, so that an orchestrator can check that it is not root"
    assert user.split(":")[0] != "0"
    assert f"--uid {user.split(':')[0]} " in " ".join(rest for name, rest in stages()[-1] if name == "RUN")
    names = [name for name, _ in stages()[-1]]
    assert "RUN" not in names[names.index("USER") :]


def test_the_command_is_one_of_hgsl(monkeypatch: pytest.MonkeyPatch) -> None:
    words = json.loads(arguments_of("ENTRYPOINT"))
    assert words[:2] == ["hgsl", "search"]
    calls = []
    monkeypatch.setattr(search, "_serve", lambda options: calls.append(options))
    assert entry.main([*words[1:], "--allow-host", "search.example"]) == 0
    (options,) = calls
    assert (options.index, options.host, options.port) == (["/index"], "0.0.0.0", 8000)
    assert arguments_of("EXPOSE") == "8000"


def health_check() -> list[str]:
    return json.loads(arguments_of("HEALTHCHECK").partition("CMD ")[2])


def test_the_health_check_is_python_that_asks_the_exposed_port() -> None:
    name, flag, code = health_check()
    assert (name, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{arguments_of('EXPOSE')}/healthz" in code


@pytest.fixture
def index(tmp_path: Path, photo_folder: object) -> Path:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", embedding_size=16, weights="none", image_size=32)
    save_embedder(model, tmp_path / "run")
    build_index(tmp_path / "index", photo_folder(), checkpoint=tmp_path / "run", device="cpu", progress=False)
    return tmp_path / "index"


# In a mount namespace of its own: every file system that is mounted becomes read-only, then the command runs.
READ_ONLY = """
mount --make-rprivate / || exit 77
cut -d' ' -f5 /proc/self/mountinfo | while read -r folder; do
    case $folder in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro "$folder" || exit 77 ;; esac
done || exit 77
touch "$0/written" 2>/dev/null && exit 77
exec "$@"
"""


@pytest.fixture
def server(index: Path) -> Iterator[str]:
    """The address of a server that has a read-only file system, as with ``docker run --read-only``."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on this machine: apt-get install util-linux")
    variables = dict(part.split("=", 1) for part in arguments_of("ENV").split() if not part.startswith("PATH="))
    words = [sys.executable, "-m", "hgsl", "search", "serve", "--index", str(index), "--port", "0", "--device", "cpu"]
    command = ["unshare", "--mount", "sh", "-c", READ_ONLY, str(index), *words]
    process = subprocess.Popen(
        command, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    address = re.search(r"http://\S+", line)
    if not address:
        error = process.communicate(timeout=60)[1]
        if process.returncode in (1, 77) and "Traceback" not in error and "error:" not in error:
            pytest.skip(f"no mount namespace here: {error.strip()}")
        pytest.fail(error)
    yield address[0]
    process.terminate()
    process.communicate(timeout=60)


@pytest.mark.slow
def test_the_server_needs_no_writable_file_system(server: str, index: Path) -> None:
    *_, code = health_check()
    code = code.replace("http://127.0.0.1:8000", server)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    refused = subprocess.run([sys.executable, "-c", code.replace("healthz", "none")], capture_output=True)
    assert refused.returncode != 0, "a failed answer makes the container unhealthy"
    photo = next(path for path in (index.parent / "photos").rglob("*.jpg"))
    with urllib.request.urlopen(f"{server}/api/search?k=1", data=photo.read_bytes(), timeout=60) as response:
        (hit,) = json.loads(response.read())["hits"]
    assert hit["path"] == photo.relative_to(index.parent / "photos").as_posix()
    assert not (index / "written").exists()
    assert os.access(index, os.W_OK), "only the server's view is read-only"
