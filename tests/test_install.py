"""A wheel built from the clone, installed elsewhere: it brings its recipes, cards and pages, and needs no clone.

The environment of the last test sees the packages of this one, so as not to download gigabytes; that those in
``setup.cfg`` are complete is shown by an installation into an empty environment, as ``.ci/run`` makes with ``-e``.
"""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import hgsl
from tests.helpers import ROOT, TINY

QUICKSTART = [
    *(*TINY, "--model.freeze", "none", "--loss.top_k", "2", "--train.epochs", "1", "--train.batch_size", "8"),
    *("--data.options.num_classes", "8", "--data.options.images_per_class", "6", "--data.options.image_size", "32"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git tracks, so that no other file of the clone is included."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not names:
        pytest.skip("not a git clone: there is no list of the files to build from")
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (source / name).symlink_to(os.readlink(ROOT / name))
            else:
                (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(command, check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_recipes_cards_and_pages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder, pattern in (("configs", "**/*.yaml"), ("datasets", "*/card.json")):
        for path in (ROOT / folder).glob(pattern):
            assert f"hgsl/{path.relative_to(ROOT).as_posix()}" in names
    package = subprocess.run(
        ["git", "ls-files", "hgsl"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    missing = {name for name in package if (ROOT / name).is_file() and not (ROOT / name).is_symlink()} - names
    assert not missing
    assert not {name for name in names if name.split("/")[0] not in ("hgsl", f"hgsl-{hgsl.__version__}.dist-info")}
    assert not [name for name in names if Path(name).suffix in (".jpg", ".png", ".pyc", ".safetensors")]


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=False)
    python = tmp_path / "venv/bin/python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = Path(site.stdout.strip())
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    outside = tmp_path / "outside"
    outside.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}

    def run(name: str, *words: str) -> str:
        command = [str(tmp_path / "venv/bin" / name), *words]
        done = subprocess.run(command, cwd=outside, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "hgsl 0." in run("hgsl", "--version")
    code = "import hgsl, pathlib; print(pathlib.Path(hgsl.__file__).is_relative_to(pathlib.Path.cwd().parent / 'venv'))"
    assert run("python", "-c", code).strip() == "True"
    assert "after training" in run("hgsl-train", *QUICKSTART)
    report = json.loads((outside / "runs/quickstart/report.json").read_text())
    assert report["after"]["protocol"] == "zero-shot"
    assert "Recall@1" in run("hgsl-eval", "--checkpoint", "runs/quickstart")
