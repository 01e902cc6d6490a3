"""Suggestions for mistyped names: the known names that a user may have meant."""

import re
from collections.abc import Iterable

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # of CamelCase, snake_case and dotted.names


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns the entry of ``known`` most similar to ``word``, or None if none is similar.

    >>> nearest("tempratur", ["temperature", "scale"])
    'temperature'
    >>> nearest("nope", ["sop", "csv", "folder"])
    """
    return next(iter(similar(word, known, count=1)), None)


def similar(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Returns the ``count`` entries of ``known`` most similar to ``word``, most similar first; often none.

    Similar names differ in a quarter of their letters or fewer (an insertion, a deletion, another letter, and two
    letters in another order each count as one), or one consists of words of the other: ``TripletMiner`` and
    ``TripletMarginMiner``. Case is ignored, and so is a group that both names share, as in ``train.epochs``.
    """
    distances: dict[str, int] = {}
    for name in map(str, known):
        given, candidate = _without_shared_group(str(word), name)
        limit = -(-max(len(given), len(candidate)) // 4)
        if abs(len(given) - len(candidate)) <= limit:
            distance = edit_distance(given.lower(), candidate.lower())
            if distance <= limit and distance < min(len(given), len(candidate)):
                distances[name] = distance
        if name not in distances and _has_words_of(given, candidate):
            distances[name] = limit + abs(len(given) - len(candidate))
    return sorted(distances, key=distances.__getitem__)[:count]


def edit_distance(first: str, second: str) -> int:
    """Returns the least number of edits between two texts: insert, delete, replace, or swap two adjacent letters.

    >>> edit_distance("floder", "folder")
    1
    """
    before_last: list[int] = []
    last = list(range(len(second) + 1))
    for row, letter in enumerate(first, 1):
        current = [row]
        for column, other in enumerate(second, 1):
            edits = min(last[column] + 1, current[-1] + 1, last[column - 1] + (letter != other))
            if row > 1 and column > 1 and letter == second[column - 2] and first[row - 2] == other:
                edits = min(edits, before_last[column - 2] + 1)
            current.append(edits)
        before_last, last = last, current
    return last[-1]


def _without_shared_group(word: str, name: str) -> tuple[str, str]:
    """Both names without leading dashes and without the dotted group that they share."""
    word_group, _, word_leaf = word.lstrip("-").rpartition(".")
    group, _, leaf = name.lstrip("-").rpartition(".")
    return (word_leaf, leaf) if group and group == word_group else (word.lstrip("-"), name.lstrip("-"))


def _has_words_of(word: str, name: str) -> bool:
    """Whether one name consists of words of the other, at least half of its letters, or is the start of it."""
    shorter, longer = sorted((word, name), key=len)
    if len(shorter) < 3:
        return False
    words, others = ([part.lower() for part in _WORD.findall(text)] for text in (shorter, longer))
    if longer.lower().startswith(shorter.lower()):
        return True
    return bool(words) and set(words) <= set(others) and 2 * len(shorter) >= len(longer)
