"""Imports go one way: cli -> engine, search, export -> losses, models, sparsity, data, evaluation -> common."""

import ast
from pathlib import Path

import pytest

import hgsl

PACKAGE = Path(hgsl.__file__).parent
SIBLINGS = {"losses", "models", "sparsity", "data", "evaluation"}
ALLOWED = {
    "common": set(),
    "version": set(),
    "config": set(),
    **{part: {"common", "version"} for part in SIBLINGS},
    "engine": SIBLINGS | {"common", "config", "version"},
    "search": SIBLINGS | {"common", "version"},
    "export": SIBLINGS | {"common", "version"},
    "cli": SIBLINGS | {"common", "config", "engine", "search", "export", "version"},
    "__init__": SIBLINGS | {"common", "version", "search", "export", "engine", "cli"},
    "__main__": {"cli"},
}


def imported_parts(source: str) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports inside hgsl are absolute"
            module = node.module or ""
            names = [f"hgsl.{alias.name}" for alias in node.names] if module == "hgsl" else [module]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("hgsl.")}
    return parts


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_in_the_allowed_direction(path: Path) -> None:
    part = part_of(path)
    wrong = imported_parts(path.read_text()) - ALLOWED[part] - {part}
    assert not wrong, f"hgsl.{part} must not import {sorted(wrong)}"


def test_every_form_of_import_is_recognized() -> None:
    source = "import hgsl.data\nfrom hgsl.models.x import y\ndef f():\n    from hgsl import losses\n"
    assert imported_parts(source) == {"data", "models", "losses"}
