"""Help of every command: what it shows, in which order, and its style."""

import contextlib
import re

import pytest

from hgsl.cli import compare, entry, eval_retrieval, export, prepare_dataset, search, sparsify, train, tune

COMMANDS = {
    "hgsl": (entry.main, ["--help"]),
    "train": (train.main, ["--help"]),
    "train all": (train.main, ["--help-all"]),
    "tune": (tune.main, ["--help"]),
    "sparsify": (sparsify.main, ["--help"]),
    "sparsify all": (sparsify.main, ["--help-all"]),
    "eval": (eval_retrieval.main, ["--help"]),
    "compare": (compare.main, ["--help"]),
    "export": (export.main, ["--help"]),
    "prepare": (prepare_dataset.main, ["--help"]),
    "search": (search.main, ["--help"]),
    "search index": (search.main, ["index", "--help"]),
    "search query": (search.main, ["query", "--help"]),
    "search serve": (search.main, ["serve", "--help"]),
}


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    main, words = COMMANDS[command]
    with contextlib.suppress(SystemExit):
        main(words)
    return capsys.readouterr().out


def options_of(text: str) -> dict[str, str]:
    """Flag or argument -> its help text on one line."""
    entries = re.findall(r"^  ((?:-|[a-zA-Z]).*?)(?:\n(?= {3,})| {2,})(.*(?:\n {20,}.*)*)", text, re.MULTILINE)
    return {flag.strip(): " ".join(sentence.split()) for flag, sentence in entries if "|" not in flag}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_is_a_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of(help_of(command, capsys))
    assert any(flag.startswith("-h, --help") for flag in options)
    wrong = {flag: text for flag, text in options.items() if not re.match(r"[A-Z].*\.$", text)}
    assert wrong == {}


@pytest.mark.parametrize(("command", "limit"), [("eval", 140), ("train", 66), ("sparsify", 67)])
def test_the_ten_most_used_options_come_first(command: str, limit: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys)
    assert text.count("\n") < limit
    first, _, others = text.partition("Most used:\n")[2].partition("\n\n")
    assert len(options_of(first)) == 10
    assert "--json" in first if command == "eval" else "--train.epochs" in first
    assert not set(options_of(first)) & set(options_of(others))


def test_the_help_of_an_evaluation_leaves_out_what_it_does_not_use(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("eval", capsys)
    assert not re.search(r"--(loss|optim|train|sparsify)\.", text)
    assert "--data.recipe" not in text
    assert "--run.dir" not in text
    assert "--data.image_size" in text


def test_every_setting_is_listed_by_the_help_and_explained_by_help_all(capsys: pytest.CaptureFixture[str]) -> None:
    names = set(re.findall(r"--[a-z]+\.\w+", help_of("train", capsys)))
    explained = {
        name for flag in options_of(help_of("train all", capsys)) for name in re.findall(r"^--[a-z]+\.\w+", flag)
    }
    assert names == explained
    assert {"--loss.top_k", "--sparsify.mask_lr", "--optim.clip"} < names
