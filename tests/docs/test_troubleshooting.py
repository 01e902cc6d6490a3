"""The page of troubleshooting quotes messages that the package still prints."""

import ast
from collections.abc import Iterator

from tests.helpers import ROOT


def test_every_quoted_message_is_in_the_source() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    messages = [text for text in quoted if text != "message"]
    assert len(messages) > 25
    printed = [text for path in sorted((ROOT / "hgsl").rglob("*.py")) for text in strings(ast.parse(path.read_text()))]
    assert [text for text in messages if not any(text in string for string in printed)] == []


def strings(tree: ast.AST) -> Iterator[str]:
    """Yields the strings of a module without docstrings, f-strings with ``{}`` for their values."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value
