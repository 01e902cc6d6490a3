"""Every command block of README and docs runs: in order, page by page, in a folder like a clone, on small images.

A block of ``bash`` is run line by line, with miniature settings added to what trains;
a block of ``python`` is executed; a block of ``yaml`` is read as settings. What cannot run is listed with the reason.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from PIL import Image

from hgsl import build_dataset
from hgsl.cli import entry
from hgsl.cli._settings import build_parser, parse
from hgsl.data import DATASETS
from hgsl.losses import LOSSES
from tests.helpers import ROOT, TINY, run_code

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages that take more than a few seconds.
LONG = {
    "README.md",
    "backbones.md",
    "coming_from.md",
    "distillation.md",
    "tutorial.md",
    "search.md",
    "export.md",
    "sparsification.md",
    "evaluation.md",
    "tuning.md",
    "training.md",
    "parts.md",
}

# Prefix of a line that cannot run here -> the reason.
LEFT_OUT = {
    'pip install -e ".[': "changes the installation; tests/test_packaging.py installs the wheel",
    "pytest": "this is it",
    "hgsl search serve": "runs until it is stopped; tests/search drives it in a browser",
    "hgsl prepare cub --download": "downloads",
    "hgsl train --config configs/cub_": "needs photos; tests/cli/test_recipes.py trains each recipe",
    "hgsl sparsify --config configs/cifar10_cs.yaml": "needs CIFAR-10; tests/engine/test_ticket_search.py",
    "hgsl eval --model tf_efficientnet_lite0": "needs the flowers; tests/cli/test_eval_command.py",
    "python benchmarks/gpu.py": "needs a GPU; tests/test_benchmarks.py runs it in miniature",
    "python benchmarks/tickets.py": "needs CIFAR-10 and a GPU; tests/test_benchmarks.py runs it in miniature",
    "torchrun --nnodes 2": "needs two machines; tests/engine/test_processes_and_losses.py runs torchrun on one",
}
# Words of a page that a reader replaces, or that the tests cannot do -> what is run in their place.
STAND_INS = {"pip install -e . && ": "", "PATH/TO/PHOTOS": "my/photos"}
# Settings that make a command small, added to every line: fewer, synthetic images in place of flowers.
SMALL = " ".join([*TINY, "--data.cache", "none", "--train.epochs", "1", "--train.batch_size", "8", ""])
MINIATURE = {
    "train": SMALL + "--model.freeze none",
    "tune": SMALL + "--model.freeze none",
    "sparsify": SMALL + "--train.epochs 2 --sparsify.curve_every 1",
}
DRAWN = "--data.name synthetic --data.options.num_classes 8 --data.options.images_per_class 6"
# A process that has loaded this library may crash when it trains afterwards.
APART = "openvino"
COMMAND = "import sys; from hgsl.cli import entry; sys.exit(entry.main(sys.argv[1:]))"  # hgsl, as code
# Pages that continue from the results of another.
EARLIER = {
    "search.md": ["hgsl train --config configs/folder.yaml --data.root my/photos --run.dir runs/mine"],
    "export.md": ["hgsl train"],
    "evaluation.md": [
        "hgsl train --config configs/folder.yaml --data.root my/photos --run.dir runs/mine",
        "hgsl eval --checkpoint runs/mine --json scores.json",
        "hgsl eval --checkpoint runs/mine --flip --json softer.json",
    ],
}


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line it starts on."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(found[1], found[2], text[: found.start()].count("\n") + 1)


def lines(block: Block) -> Iterator[str]:
    """The commands of a block, with continued lines joined and comments left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def left_out(line: str) -> bool:
    return any(line.startswith(prefix) for prefix in LEFT_OUT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_is_of_a_known_kind(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = list(blocks(page))
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(found), "a fence is not closed"
    assert {block.language for block in found} <= {"bash", "python", "text", "yaml", "json"}


def test_nothing_is_left_out_that_is_not_there() -> None:
    commands = [line for page in PAGES for block in blocks(page) if block.language == "bash" for line in lines(block)]
    for prefix in LEFT_OUT:
        assert any(line.startswith(prefix) for line in commands), prefix


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a clone, with the reader's own photos in ``my/photos`` and some more beside them."""
    for name in ("configs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    drawn = build_dataset("synthetic", split="all", num_classes=12, images_per_class=12, image_size=48)
    for row in range(len(drawn)):
        image, label, number = drawn[row]
        path = tmp_path / "my/photos" / drawn.class_names[label] / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    for name in ("my/query.jpg", "photo.jpg", "another.jpg"):
        Image.open(path).rotate(3).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_parts() -> Iterator[None]:
    """Removes the parts that a page has registered."""
    tables: list[dict[str, Any]] = [DATASETS, LOSSES]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page.name in LONG else [], id=page.name) for page in PAGES]
)
def test_every_block_runs(page: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in EARLIER.get(page.name, ()):
        run(line, monkeypatch)
    namespace: dict[str, object] = {"__name__": page.name}  # a block continues those before it
    monkeypatch.setitem(sys.modules, page.name, ModuleType(page.name))  # in which timm registers a model
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.language == "python" and APART in block.text:
            run_apart(block.text)
        elif block.language == "python":
            exec(compile(block.text, where, "exec"), namespace)
        elif block.language == "yaml":
            (clone / "block.yaml").write_text(block.text)
            parse(build_parser(""), ["--config", "block.yaml"])
        elif block.language == "bash":
            for line in lines(block):
                if APART in line:
                    run_apart(COMMAND, *shlex.split(line)[1:])
                elif not left_out(line):
                    assert run(line, monkeypatch) == 0, f"{where}: {line}"


def run_apart(code: str, *words: str) -> None:
    """Runs Python code, which must succeed, in a process of its own, if the extra is installed."""
    if find_spec(APART) is not None:
        run_code(code, *words)


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs one command in this process, as ``hgsl`` does; returns its exit code."""
    for written, done in STAND_INS.items():
        line = line.replace(written, done)
    words = shlex.split(line)
    assert words[:1] == ["hgsl"], f"not a command of hgsl: {line}"
    name = words[1]
    if not {"--resume", "--extend"} & set(words):
        words += MINIATURE.get(name, "").split()
        if name in MINIATURE and ("flowers17" in line or "--config" not in line):
            words += DRAWN.split()
        if name in MINIATURE and "--loss.name" not in words and "loss.top_k=" not in line:
            words += ["--loss.top_k", "2"]
    monkeypatch.setattr(sys, "argv", words)
    try:
        return entry.main(words[1:])
    except SystemExit as ended:  # by argparse
        return int(ended.code or 0)
