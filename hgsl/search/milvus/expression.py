"""Conditions as Milvus expressions.

Table columns are dynamic fields with a prefix, so that none can be mistaken for another field, in ASCII, as expressions
of a server want. A missing text is stored as the empty string, a missing number as ``MISSING``, which no number of a
table or of a condition equals.
"""

from hgsl.search.stores.protocol import Value
from hgsl.search.where.nodes import FIELDS, MAX_NUMBER, Both, Comparison, Condition, Not, Scalar

PREFIX, ENCODED_PREFIX = "c_", "u_"  # of the field of a table column; of one whose name is not ASCII
MISSING = -MAX_NUMBER
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def field_name(name: str) -> str:
    """The field of a collection for a field of a condition."""
    if name in FIELDS:
        return name
    return PREFIX + name if name.isascii() else ENCODED_PREFIX + name.encode().hex()


def stored_value(value: Value, is_text: bool) -> Scalar:
    """The value of a table column as it is stored."""
    return ("" if is_text else MISSING) if value is None else value


def restored_value(value: Scalar | None) -> Value:
    """The value of a table column as it was before it was stored."""
    return None if value in ("", MISSING) else value


def expression_of(condition: Condition) -> str:
    """Compiles a condition; only its own texts and numbers become literals, so it can express nothing else."""
    match condition:
        case Not(operand):
            return f"(not ({expression_of(operand)}))"
        case Both(left, right, either):
            return f"({expression_of(left)} {'or' if either else 'and'} {expression_of(right)})"
        case Comparison(field, operator, values):
            return _comparison(field, operator, values)
    raise TypeError(f"no condition: {condition!r}")


def _comparison(field: str, operator: str, values: tuple[Scalar, ...]) -> str:
    name = field_name(field)
    if operator in ("in", "not in"):
        text = f"({name} in [{', '.join(map(_literal, values))}])"
        return text if operator == "in" else f"(not {text})"
    if operator == "!=":
        return f"(not ({name} == {_literal(values[0])}))"
    text = f"({name} {operator} {_literal(values[0])})"
    is_optional = field not in FIELDS and operator in ("<", "<=") and not isinstance(values[0], str)
    return f"({text} and {name} > {MISSING!r})" if is_optional else text


def _literal(value: Scalar) -> str:
    return f'"{value.translate(ESCAPES)}"' if isinstance(value, str) else repr(float(value))
