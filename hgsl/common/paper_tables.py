"""Tables for papers and web pages, in Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hgsl.common.errors import InputError

SUFFIXES = (".md", ".tex")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}

Rows = Mapping[str, Sequence[str]]
Best = Sequence[str | None]


def check_table_path(flag: str, path: str) -> None:
    """Checks that the suffix names a format.

    Raises:
        InputError: It does not.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(f"{flag} {path}: name a file that ends in .md (Markdown) or .tex (LaTeX)")


def format_for(path: str, rows: Rows, headings: Sequence[str], best: Best) -> str:
    """Returns a table in the format of the file's suffix.

    Args:
        path: The file, ``.md`` or ``.tex``.
        rows: Name of the row -> its cells.
        headings: Of the cells.
        best: For each column the name of the row that is set in bold, or None.
    """
    return (latex_table if Path(path).suffix.lower() == ".tex" else markdown_table)(rows, headings, best)


def markdown_table(rows: Rows, headings: Sequence[str], best: Best) -> str:
    r"""Returns a table of GitHub's Markdown, whose cells are aligned to the right.

    >>> print(markdown_table({"a|b": ["1.0"], "c": ["2.0"]}, ["MAP@R"], ["c"]), end="")
    |  | MAP@R |
    |:--|--:|
    | a\|b | 1.0 |
    | c | **2.0** |
    """

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    lines = [line(["", *headings]), f"|:--|{'--:|' * len(headings)}"]
    for name, cells in rows.items():
        lines.append(
            line([name, *(f"**{cell}**" if name == row else cell for cell, row in zip(cells, best, strict=True))])
        )
    return "\n".join(lines) + "\n"


def latex_table(rows: Rows, headings: Sequence[str], best: Best) -> str:
    """Returns a ``tabular`` with the rules of the package booktabs; ``+-`` becomes a plus-minus sign."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    lines = [rf"\begin{{tabular}}{{l{'r' * len(headings)}}}", r"\toprule"]
    lines += [line(["", *map(escape_latex, headings)]), r"\midrule"]
    for name, cells in rows.items():
        shown = [escape_latex(cell).replace("+-", r"$\pm$") for cell in cells]
        marked = [rf"\textbf{{{cell}}}" if name == row else cell for cell, row in zip(shown, best, strict=True)]
        lines.append(line([escape_latex(name), *marked]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape_latex(text: str) -> str:
    r"""Returns text whose special characters LaTeX prints.

    >>> print(escape_latex("lr_1e-3 & 50%"))
    lr\_1e-3 \& 50\%
    """
    return "".join(_LATEX.get(character, character) for character in text)
