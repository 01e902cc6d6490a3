"""Random sampler: all rows in random order, without an incomplete last batch."""

import numpy as np

from hgsl.data.samplers.rows import Rows


def random(labels: Rows, batch_size: int, per_class: int, rng: np.random.Generator, categories: Rows | None) -> Rows:
    """Every row at most once, in random order; an incomplete last batch is left out.

    Args:
        labels: (N,) class of each row.
        batch_size: Rows per batch.
        per_class: Ignored.
        rng: Source of the shuffle.
        categories: Ignored.

    Returns:
        (N // batch_size, batch_size) rows.
    """
    batches = len(labels) // batch_size
    return rng.permutation(len(labels))[: batches * batch_size].reshape(batches, batch_size)
