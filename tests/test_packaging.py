"""The source distribution, the wheel and the metadata as an index shows them; the workflow file that builds them.

A wheel that is installed elsewhere brings its recipes, cards and pages, and needs no clone. The environment of that
test sees the packages of this one, so as not to download gigabytes; that those in ``setup.cfg`` are complete is shown
by an installation into an empty environment, as ``.ci/run`` makes with ``-e``.
"""

import configparser
import email
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import hgsl
from tests.helpers import ROOT, TINY

QUICKSTART = [
    *(*TINY, "--model.freeze", "none", "--loss.top_k", "2", "--train.epochs", "1", "--train.batch_size", "8"),
    *("--data.options.num_classes", "8", "--data.options.images_per_class", "6", "--data.options.image_size", "32"),
]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, the wheel built from the source distribution, from a copy of the files that git tracks."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    cloned = subprocess.run(["git", "stash", "create"], cwd=ROOT, capture_output=True, text=True, check=False)
    if cloned.returncode != 0:
        pytest.skip("not a git clone: there is no list of the files to build from")
    commit = cloned.stdout.strip() or "HEAD"
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_both_packages_pass_the_check_of_an_index(distributions: Path) -> None:
    files = sorted(distributions.iterdir())
    assert [path.name for path in files] == [
        f"hgsl-{hgsl.__version__}-py3-none-any.whl",
        f"hgsl-{hgsl.__version__}.tar.gz",
    ]
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


@pytest.mark.slow
def test_the_metadata_is_complete_and_its_description_renders(distributions: Path) -> None:
    markdown = pytest.importorskip("readme_renderer.markdown", reason="extra [dev] is not installed")
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as wheel:
        metadata = email.message_from_bytes(wheel.read(f"hgsl-{hgsl.__version__}.dist-info/METADATA"))
        assert "hgsl/py.typed" in wheel.namelist()
    assert metadata["Author"] == "The hgsl authors"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = markdown.render(metadata.get_payload(decode=True).decode())
    assert page is not None
    assert "<table>" in page
    assert "HardGlobalSoftminLoss" in page


@pytest.mark.slow
def test_the_source_distribution_holds_recipes_and_no_part_of_the_tests(distributions: Path) -> None:
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "hgsl/configs/folder.yaml",
        "hgsl/configs/modes/lora.yaml",
        "hgsl/py.typed",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
    } <= names
    assert not {name for name in names if name.split("/")[0] in ("tests", "docs", "benchmarks", "runs")}


@pytest.mark.slow
def test_the_wheel_holds_recipes_cards_and_pages_and_nothing_else(distributions: Path) -> None:
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as archive:
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
def test_the_wheel_runs_the_quickstart_outside_the_clone(distributions: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=False)
    python = tmp_path / "venv/bin/python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = Path(site.stdout.strip())
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        next(distributions.glob("*.whl")),
    ]
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


def test_the_project_urls_are_those_of_the_citation_file() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    urls = [line.rpartition(" = ")[2] for line in setup["metadata"]["project_urls"].strip().splitlines()]
    citation = (ROOT / "CITATION.cff").read_text()
    assert urls
    assert all(url in citation for url in urls)


def test_the_packages_of_the_metadata_are_typed() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    assert (ROOT / "hgsl/py.typed").read_text() == ""
    assert "py.typed" in setup["options.package_data"]["hgsl"].split()


def test_the_workflow_runs_what_a_change_must_pass() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert True in workflow, "YAML 1.1 reads the key `on` as true: the workflow has its triggers"
    assert "pull_request" in workflow[True]
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    commands = [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]
    assert commands[0] == 'pip install -e ".[dev]"'
    required = [
        "ruff check",
        "ruff format --check",
        "mypy",
        "mkdocs build --strict",
        "python -m build",
        "twine check",
        "pytest",
    ]
    local = (ROOT / ".ci/run").read_text()
    for command in required:
        assert any(line.startswith(command) for line in commands), command
        assert re.search(rf"^\s*(\S+=\S+ )?{re.escape(command)}", local, re.MULTILINE), command
    for version in job["strategy"]["matrix"]["python"]:
        assert f"Python :: {version}\n" in (ROOT / "setup.cfg").read_text()
