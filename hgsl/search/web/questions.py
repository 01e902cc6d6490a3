"""What is asked of an index, and how several questions are answered at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hgsl.search.index import Hit, SearchIndex


@dataclass(frozen=True)
class Question:
    """One search.

    Attributes:
        what: A photo as the model wants it, (3, S, S), or the id of one in the index, which is then left out.
        k: How many are wanted.
        label: Only photos of this label.
    """

    what: Tensor | int
    k: int
    label: str | None = None


def answer(index: SearchIndex, questions: Sequence[Question]) -> list[list[Hit]]:
    """Answers all questions with one forward pass, and one search for each label they are limited to."""
    tensors = [question.what for question in questions if isinstance(question.what, Tensor)]
    embedded = iter(index.encoder.vectors(tensors) if tensors else ())
    vectors = [
        next(embedded) if isinstance(question.what, Tensor) else index.vector(question.what) for question in questions
    ]
    found: list[list[Hit]] = [[] for _ in questions]
    for label in {question.label for question in questions}:
        places = [place for place, question in enumerate(questions) if question.label == label]
        depth = max(questions[place].k for place in places) + 1  # one more for a photo that finds itself
        hits = index.nearest(np.stack([vectors[place] for place in places]), depth, label=label)
        for place, line in zip(places, hits, strict=True):
            question = questions[place]
            itself = question.what if isinstance(question.what, int) else None
            found[place] = [hit for hit in line if hit.id != itself][: question.k]
    return found
