"""Parser of conditions, by recursive descent; nothing is evaluated as code.

condition  = conjunction {"or" conjunction}
conjunction = negation {"and" negation}
negation   = "not" negation | "(" condition ")" | comparison
comparison = FIELD ("==" | "!=" | "<" | "<=" | ">" | ">=") VALUE | FIELD ["not"] "in" "[" VALUE {"," VALUE} "]"
"""

from collections.abc import Mapping
from typing import cast

from hgsl.common.errors import InputError
from hgsl.common.suggestions import nearest
from hgsl.search.where.nodes import MAX_NUMBER, Both, Comparison, Condition, FieldType, Not, Operator, Scalar
from hgsl.search.where.tokens import Token, tokens_of

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
MAX_DEPTH = 50  # of nested parentheses and negations
MAX_VALUES = 1000  # of a list


def parse(condition: str, fields: Mapping[str, FieldType]) -> Condition:
    """Parses a condition.

    Args:
        condition: Such as ``label in ["rose", "tulip"] and not year < 2020``.
        fields: Name -> type of the fields of the index.

    Raises:
        InputError: It is malformed, names an unknown field, or compares a text with a number; the message has the
            column.

    >>> parse("year >= 2020", {"year": "number"})
    Comparison(field='year', operator='>=', values=(2020.0,))
    """
    parser = _Parser(tokens_of(condition), fields)
    tree = parser.disjunction(0)
    parser.expect("end", "", "'and', 'or' or the end")
    return tree


class _Parser:
    def __init__(self, tokens: list[Token], fields: Mapping[str, FieldType]) -> None:
        self.tokens, self.fields, self.position = tokens, fields, 0

    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    def accept(self, kind: str, *texts: str) -> Token | None:
        """The next token, if it is one of these; it is consumed."""
        token = self.token
        if token.kind != kind or (texts and token.text not in texts):
            return None
        self.position = min(self.position + 1, len(self.tokens) - 1)
        return token

    def expect(self, kind: str, text: str, expected: str) -> Token:
        """The next token, which must be of this kind and text (any, if empty)."""
        token = self.accept(kind, *([text] if text else []))
        if token is None:
            raise self.error(f"expected {expected}")
        return token

    def error(self, message: str, token: Token | None = None) -> InputError:
        token = token or self.token
        shown = "the end" if token.kind == "end" else repr(token.text[:40])
        return InputError(f"where, column {token.column}: {message}, found {shown}")

    def disjunction(self, depth: int) -> Condition:
        tree = self.conjunction(depth)
        while self.accept("word", "or"):
            tree = Both(tree, self.conjunction(depth), either=True)
        return tree

    def conjunction(self, depth: int) -> Condition:
        tree = self.negation(depth)
        while self.accept("word", "and"):
            tree = Both(tree, self.negation(depth))
        return tree

    def negation(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} nested conditions")
        if self.accept("word", "not"):
            return Not(self.negation(depth + 1))
        if self.accept("mark", "("):
            tree = self.disjunction(depth + 1)
            self.expect("mark", ")", "')'")
            return tree
        return self.comparison()

    def comparison(self) -> Condition:
        name = self.expect("word", "", "a field")
        if name.text not in self.fields:
            raise self.unknown_field(name)
        field_type = self.fields[name.text]
        if operator := self.accept("mark", *COMPARISONS):
            return Comparison(name.text, cast(Operator, operator.text), (self.value(name.text, field_type),))
        negated = self.accept("word", "not") is not None
        self.expect("word", "in", f"{', '.join(COMPARISONS)} or in [...]")
        return Comparison(name.text, "not in" if negated else "in", self.values(name.text, field_type))

    def values(self, field: str, field_type: FieldType) -> tuple[Scalar, ...]:
        first = self.expect("mark", "[", "a list such as ['rose', 'tulip']")
        values = [self.value(field, field_type)]
        while self.accept("mark", ","):
            values.append(self.value(field, field_type))
        self.expect("mark", "]", "',' or ']'")
        if len(values) > MAX_VALUES:
            raise self.error(f"a list has at most {MAX_VALUES:,} values", first)
        return tuple(values)

    def value(self, field: str, field_type: FieldType) -> Scalar:
        if field_type == "text":
            return self.expect("text", "", f"a text in quotes, since {field} is a text").text
        token = self.expect("number", "", f"a number, since {field} is a number")
        number = float(token.text)
        if not abs(number) < MAX_NUMBER:
            raise self.error("the number is too large", token)
        return number

    def unknown_field(self, name: Token) -> InputError:
        close = nearest(name.text, self.fields)
        hint = f"did you mean {close!r}?" if close else f"this index has {', '.join(self.fields)}"
        return InputError(f"where, column {name.column}: unknown field {name.text[:40]!r}: {hint}")
