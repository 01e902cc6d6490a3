"""Tokens of a condition, with their positions."""

import re
from typing import NamedTuple

from hgsl.common.errors import InputError

MAX_LENGTH = 2000  # characters of a condition

_PATTERN = re.compile(
    r"""\s*(?:
    (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    |(?P<word>[^\W\d]\w*)
    |(?P<mark>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)
    |(?P<end>$))""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Token(NamedTuple):
    """A piece of a condition.

    Attributes:
        kind: ``text``, ``number``, ``word``, ``mark`` or ``end``.
        text: Its characters; of a text, those between the quotes.
        column: Its position, from 1.
    """

    kind: str
    text: str
    column: int


def tokens_of(condition: str) -> list[Token]:
    """Splits a condition into tokens; the last one is ``end``.

    Raises:
        InputError: It is too long or not UTF-8, or a character or an unclosed quote begins no token.
    """
    if len(condition) > MAX_LENGTH:
        raise InputError(f"where: the condition has {len(condition):,} characters, at most {MAX_LENGTH:,} are allowed")
    if (error := re.search("[\ud800-\udfff]", condition)) is not None:  # a command line has them for other bytes
        raise InputError(f"where, column {error.start() + 1}: the condition is not UTF-8")
    tokens: list[Token] = []
    position = 0
    while not tokens or tokens[-1].kind != "end":
        match = _PATTERN.match(condition, position)
        if match is None:
            raise _no_token(condition, position)
        kind = str(match.lastgroup)
        text = match[kind]
        if kind == "text":
            text = _ESCAPE.sub(r"\1", text[1:-1])
        tokens.append(Token(kind, text, match.start(kind) + 1))
        position = match.end()
    return tokens


def _no_token(condition: str, position: int) -> InputError:
    start = position + len(condition[position:]) - len(condition[position:].lstrip())
    character = condition[start]
    if character in "\"'":
        return InputError(f"where, column {start + 1}: the quote is not closed")
    hint = ": equality is written ==" if character == "=" else ": texts are quoted, such as 'rose'"
    return InputError(f"where, column {start + 1}: unexpected {condition[start : start + 10]!r}{hint}")
