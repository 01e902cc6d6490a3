"""Conditions: the grammar, its errors with their columns, and their masks."""

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.search.where.mask import mask_of
from hgsl.search.where.nodes import Both, Comparison, Not
from hgsl.search.where.parser import MAX_DEPTH, parse

FIELDS = {"label": "text", "year": "number", "größe": "number"}
COLUMNS = {
    "label": np.array(["rose", "tulip", "", "a \"b\" 'c' \\"], dtype=object),
    "year": np.array([2019, 2020, np.nan, -1.5]),
    "größe": np.array([1.0, 2.0, 3.0, 4.0]),
}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("label == 'rose'", [1, 0, 0, 0]),
        ('label != "rose"', [0, 1, 1, 1]),
        ("label == ''", [0, 0, 1, 0]),
        ("label >= 'rose'", [1, 1, 0, 0]),
        (r"""label == "a \"b\" 'c' \\" """, [0, 0, 0, 1]),
        ("label in ['rose', \"tulip\"]", [1, 1, 0, 0]),
        ("label not in ['rose', 'tulip']", [0, 0, 1, 1]),
        ("year >= 2020", [0, 1, 0, 0]),
        ("year < 2020.5", [1, 1, 0, 1]),
        ("not year < 2020.5", [0, 0, 1, 0]),
        ("year != 2020", [1, 0, 1, 1]),
        ("year in [2019, -1.5]", [1, 0, 0, 1]),
        ("year not in [2019]", [0, 1, 1, 1]),
        ("year == +2.02e3", [0, 1, 0, 0]),
        ("year > 2000 and label == 'rose' or größe == 4", [1, 0, 0, 1]),
        ("year > 2000 and (label == 'rose' or größe == 4)", [1, 0, 0, 0]),
        ("not (label == 'rose' or not year > 0)", [0, 1, 0, 0]),
        ("not not größe <= 2 and größe > 1", [0, 1, 0, 0]),
    ],
)
def test_a_condition_selects_images(condition, expected):
    assert mask_of(parse(condition, FIELDS), COLUMNS).astype(int).tolist() == expected


def test_and_binds_closer_than_or():
    tree = parse("year == 1 or year == 2 and not year == 3", FIELDS)
    one, two, three = (Comparison("year", "==", (value,)) for value in (1, 2, 3))
    assert tree == Both(one, Both(two, Not(three)), either=True)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "column 1: expected a field, found the end"),
        ("yaer >= 2020", "column 1: unknown field 'yaer': did you mean 'year'?"),
        ("label == 'rose' and colour == 'x'", "column 21: unknown field 'colour': this index has label, year, größe"),
        ("label = 'rose'", "column 7: unexpected \"= 'rose'\": equality is written =="),
        ("label == rose", "column 10: expected a text in quotes, since label is a text, found 'rose'"),
        ("year == 'x'", "column 9: expected a number, since year is a number, found 'x'"),
        ("label == 5", "column 10: expected a text in quotes"),
        ("label == 'rose", "column 10: the quote is not closed"),
        ("year >= ", "column 9: expected a number, since year is a number, found the end"),
        ("year >= 2020 label", "column 14: expected 'and', 'or' or the end, found 'label'"),
        ("(year >= 2020", "column 14: expected '\\)', found the end"),
        ("label in []", "column 11: expected a text in quotes"),
        ("label in 'rose'", "column 10: expected a list such as"),
        ("label in ['rose' 'tulip']", "column 18: expected ',' or '\\]'"),
        ("year >= 1e999", "column 9: the number is too large"),
        ("year >= -1e300", "column 9: the number is too large"),
        ("label == 'a\udcff'", "column 12: the condition is not UTF-8"),
        ("year >= 12x", "column 9: unexpected '12x'"),
        ("2020 <= year", "column 1: expected a field"),
        ("__import__('os').system('x')", 'column 17: unexpected "\\.system'),
        ("year >= 1; drop", "column 10: unexpected '; drop'"),
        ("(" * (MAX_DEPTH + 2) + "year > 1", f"more than {MAX_DEPTH} nested"),
        ("not " * (MAX_DEPTH + 2) + "year > 1", f"more than {MAX_DEPTH} nested"),
        ("x" * 2001, "2,001 characters, at most 2,000 are allowed"),
    ],
)
def test_a_mistake_is_named_with_its_column(condition, message):
    with pytest.raises(InputError, match="where.*" + message):
        parse(condition, FIELDS)
