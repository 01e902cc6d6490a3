"""Class-balanced sampler: every class equally often, whatever its size."""

import numpy as np

from hgsl.data.samplers.rows import Rows, draw_in_passes, rows_by_class


def class_balanced(
    labels: Rows, batch_size: int, per_class: int, rng: np.random.Generator, categories: Rows | None
) -> Rows:
    """Returns as many rows as the random sampler, the same number (up to one row) from each class.

    Every row of a class is drawn once, in random order, before any of them is drawn again.

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
    needed = batches * batch_size
    members = [rng.permutation(rows) for rows in rows_by_class(labels)]
    members = [members[c] for c in rng.permutation(len(members))]  # the last ones have one row less if needed % C
    quota = -(-needed // len(members))
    drawn = np.stack([draw_in_passes(rows, quota, rng) for rows in members])  # (C, quota)
    return rng.permutation(drawn.T.ravel()[:needed]).reshape(batches, batch_size)
