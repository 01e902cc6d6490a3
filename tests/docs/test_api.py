"""The API page: every name is importable from the package that the page names, and every public name is on it."""

import importlib
import re
from collections.abc import Iterator

import hgsl
from tests.helpers import ROOT


def entries() -> Iterator[tuple[str, str]]:
    """Yields (package to import from, full name of the object) in the order of the page."""
    package = ""
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if match := re.match(r"From `([\w.]+)`", line):
            package = match[1]
        elif line.startswith("::: "):
            yield package, line.removeprefix("::: ")


def test_names_are_imported_from_the_package_that_the_page_names() -> None:
    for package, name in entries():
        parent, _, last = name.rpartition(".")
        documented = getattr(importlib.import_module(parent), last)
        assert getattr(importlib.import_module(package), last) is documented, (package, name)


def test_every_public_name_is_on_the_page() -> None:
    names = {name.rpartition(".")[2] for _, name in entries()}
    assert set(hgsl.__all__) - {"__version__"} <= names
