"""Help of every command: one format, options in groups, the most used ones first."""

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH, LEAST_WIDTH = 110, 98  # where the output is no terminal, and on a narrow one
INDENT = 34  # column of the help texts, at most
MOST_USED = "Most used"
BOOLEAN = "{true,false}"


class HelpFormatter(argparse.HelpFormatter):
    """Names the default of an option at the end of its sentence, and keeps the paragraphs of a description."""

    def __init__(self, prog: str, **options: Any) -> None:
        width = max(shutil.get_terminal_size((WIDTH + 2, 24)).columns - 2, LEAST_WIDTH)
        super().__init__(prog, **{"max_help_position": INDENT, "width": width, **options})

    def _get_help_string(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._HelpAction):
            return "Show this help message and exit."
        text = action.help or ""
        facts = []
        if _choices_do_not_fit(action) and action.metavar != BOOLEAN:
            facts.append(f"one of {str(action.metavar)[1:-1].replace(',', ', ')}")
        if action.option_strings and action.nargs != 0 and action.default not in (None, argparse.SUPPRESS, "", [], {}):
            facts.append("default: %(default)s")
        return f"{text.removesuffix('.')} ({'; '.join(facts)})." if facts else text

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Any:
        if _choices_do_not_fit(action):
            return lambda size: (("BOOL" if action.metavar == BOOLEAN else "NAME"),) * size
        return super()._metavar_formatter(action, default_metavar)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        name = action.dest.rpartition(".")[2].upper()
        return name if len(action.option_strings[0]) + len(name) < INDENT - 4 else "VALUE"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        return "\n".join(
            textwrap.fill(paragraph, width, initial_indent=indent, subsequent_indent=indent) for paragraph in paragraphs
        )


def _choices_do_not_fit(action: argparse.Action) -> bool:
    metavar = str(action.metavar)
    return metavar.startswith("{") and len(action.option_strings[0]) + len(metavar) > INDENT - 5


class ShowAll(argparse.Action):
    """Prints the help with every setting, those included that ``--help`` only lists."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for action, text in self.const:
            action.help = text
        parser.epilog = None
        parser.print_help()
        parser.exit()


def promote(parser: argparse.ArgumentParser, flags: Sequence[str], *groups: Any) -> None:
    """Puts these flags into a group of the most used ones, which comes first; ``groups`` come next."""
    actions = [parser._option_string_actions[flag] for flag in flags]
    for group in parser._action_groups:
        group._group_actions = [action for action in group._group_actions if action not in actions]
    most_used = parser.add_argument_group(MOST_USED)
    most_used._group_actions = actions
    parser._optionals.title, parser._positionals.title = "Options", "Arguments"
    first = [most_used, *groups]
    parser._action_groups = [*first, *(group for group in parser._action_groups if group not in first)]


def hide(parser: argparse.ArgumentParser, flags: Sequence[str]) -> list[tuple[argparse.Action, str | None]]:
    """Leaves these flags out of the help, and returns each with its text."""
    hidden = [(action, action.help) for action in parser._actions if set(action.option_strings) & set(flags)]
    for action, _ in hidden:
        action.help = argparse.SUPPRESS
    return hidden


def list_in_epilog(parser: argparse.ArgumentParser, settings: Sequence[str]) -> None:
    """Replaces the help of these settings by a list of their names, which ``--help-all`` explains."""
    hidden = hide(parser, [f"--{name}" for name in settings])
    parser.add_argument(
        "--help-all", action=ShowAll, nargs=0, const=hidden, default=argparse.SUPPRESS, dest=argparse.SUPPRESS,
        help="Show this message with an explanation of every setting, and exit.",
    )  # fmt: skip
    groups: dict[str, list[str]] = {}
    for name in settings:
        groups.setdefault(name.partition(".")[0], []).append(name)
    listed = [", ".join(f"--{name}" for name in names) for names in groups.values()]
    parser.epilog = "\n\n".join(["More settings, which --help-all explains:", *listed])
