"""Config files on the command line: packaged recipes, unknown keys, and settings of a replaced data set."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from hgsl.cli._messages import flatten, is_free, type_without_null, unknown_setting
from hgsl.common.errors import InputError
from hgsl.common.suggestions import nearest

CONFIGS = Path(__file__).parent.parent / "configs"
DATA_SET_SETTINGS = ("options", "root")  # which apply only to the data set in data.name


def resolve(words: Sequence[str]) -> list[str]:
    """Returns the arguments with the path of a packaged recipe in place of its name, and the config files first.

    A flag replaces a setting of a file also where it precedes ``--config``. ``folder``, ``folder.yaml`` and
    ``configs/folder.yaml`` name a packaged recipe where no such file exists, and ``modes/lora`` one in a folder.

    Raises:
        FileNotFoundError: There is neither a file nor a recipe.
    """
    files: list[str] = []
    others: list[str] = []
    remaining = iter(words)
    for word in remaining:
        flag, equals, name = word.partition("=")
        if flag != "--config":
            others.append(word)
        elif equals or (name := next(remaining, "")):
            files += ["--config", str(_existing(name))]
        else:
            others.append(word)  # without a value, which the parser refuses
    return [*files, *others]


def config_files(words: Sequence[str]) -> list[Path]:
    """Returns the config files in the arguments from :func:`resolve`, in their order."""
    return [Path(words[i + 1]) for i, word in enumerate(words[:-1]) if word == "--config"]


def name_of_run(files: Sequence[str | Path]) -> str:
    """Returns the name of the run folder of these config files: their names, side by side.

    >>> name_of_run(["configs/folder.yaml", "configs/modes/lora.yaml"])
    'folder-lora'
    """
    return "-".join(Path(file).stem for file in files)


def check_file(path: Path, settings: type, known: set[str]) -> None:
    """Checks that a config file is a YAML mapping with ``known`` keys only, each of them once and with a value.

    Args:
        path: The file.
        settings: The settings that are read.
        known: The dotted names of these settings and of their groups.

    Raises:
        InputError: The message names the key, and the nearest known one.
    """
    content = _content(path)
    if not content:
        raise InputError(f"{path} holds no settings: give some such as 'train: {{epochs: 3}}', or leave out the file")
    groups = {name.rpartition(".")[0] for name in known} - {""}
    given: set[str] = set()
    for key, value in _items(content):
        if key in given and key not in groups:
            raise InputError(f"{path}: {key} is given twice, by its dotted name and within its group: keep one")
        given.add(key)
        if key not in known and not is_free(key):
            raise InputError(unknown_setting(f"key in {path}:", key, known))
        if key in groups:
            if not isinstance(value, Mapping):
                found = "nothing" if value is None else repr(value)
                raise InputError(f"{path}: {key} holds settings such as {_example(key, known)}, found {found}")
        elif value is None and (expected := type_without_null(settings, key)):
            raise InputError(f"{path}: {key} is empty: expected {expected}, or leave the key out")


def is_search(path: Path) -> bool:
    """Whether a config file holds the settings of a ticket search, as its run folder does."""
    section = _content(path).get("sparsify")
    return isinstance(section, Mapping) and "rounds" in section


def for_another_data_set(words: Sequence[str], *, quiet: bool = False) -> list[str]:
    """Drops settings in a file that belong to the data set which ``--data.name`` replaces, and prints a note.

    Args:
        words: The arguments, from :func:`resolve`.
        quiet: Whether to print no note.
    """
    files = config_files(words)
    given = [
        word.partition("=")[2] or following
        for word, following in zip_longest(words, words[1:], fillvalue="")
        if word.partition("=")[0] == "--data.name"
    ]
    data: dict[str, Any] = {}
    for path in files:
        data |= _content(path).get("data") or {}
    if not files or not given or given[-1] == data.get("name", "synthetic"):
        return list(words)
    dropped = [key for key in DATA_SET_SETTINGS if data.get(key) and not _is_given(words, f"--data.{key}")]
    if dropped and not quiet and os.environ.get("RANK", "0") == "0":
        print(
            f"note: --data.name {given[-1]} replaces {data.get('name', 'synthetic')} of {files[-1]}, whose "
            f"{' and '.join(f'data.{key}' for key in dropped)} no longer apply"
        )
    end = 2 * len(files)  # the config files come first
    empty = {"options": "--data.options={}", "root": "--data.root=null"}
    return [*words[:end], *(empty[key] for key in dropped), *words[end:]]


def _is_given(words: Sequence[str], flag: str) -> bool:
    return any(word.partition("=")[0] == flag for word in words)


def _existing(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    packaged = {recipe.relative_to(CONFIGS).with_suffix("").as_posix(): recipe for recipe in CONFIGS.rglob("*.yaml")}
    recipe_name = name.removesuffix(".yaml").removeprefix("configs/")
    if recipe_name in packaged:
        return packaged[recipe_name]
    if path.is_dir():
        raise InputError(f"--config {name} is a folder: name a YAML file, such as {path / 'config.yaml'}")
    close = nearest(recipe_name, packaged) or nearest(path.stem, packaged)
    hint = f"did you mean --config {close}?" if close else f"packaged recipes: {', '.join(sorted(packaged))}"
    raise FileNotFoundError(f"no config file {name} in {Path.cwd()}: {hint}")


def _content(path: Path) -> dict[str, Any]:
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        _check_repeated_keys(path, root)
        content = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {flatten(str(error))}") from None
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path} must hold settings such as 'train: {{epochs: 3}}', found a {type(content).__name__}")
    return content or {}


def _check_repeated_keys(path: Path, root: yaml.Node | None) -> None:
    """Refuses a key that a mapping has twice, of which PyYAML would silently keep the last value alone."""
    nodes, visited = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in visited or not isinstance(node, yaml.CollectionNode):
            continue
        visited.add(id(node))  # an alias names a node again
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise InputError(f"{path}: {name!r} is given twice, in line {lines[name]} and in line {line}: keep one")
            lines[name] = line
            nodes.append(value)


def _items(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping) and not is_free(f"{prefix}{key}"):
            yield from _items(value, f"{prefix}{key}.")


def _example(group: str, known: set[str]) -> str:
    first = min(name for name in known if name.startswith(f"{group}."))
    return f"{{{first.rpartition('.')[2]}: ...}}"
