"""Schedule of K over the epochs: all classes first, then fewer."""

from collections.abc import Mapping

from hgsl.common.errors import InputError
from hgsl.losses.checks import check_integer


def scheduled_top_k(schedule: Mapping[int, int | None], epoch: int) -> int | None:
    """Returns the K of ``epoch``; None is every class.

    Args:
        schedule: first epoch -> K from then on, with an entry for epoch 0.
        epoch: counted from 0.

    Raises:
        InputError: The schedule has no entry for epoch 0, a negative epoch, or a K that is not a positive integer.

    >>> [scheduled_top_k({0: None, 2: 100, 4: 10}, epoch) for epoch in range(6)]
    [None, None, 100, 100, 10, 10]
    """
    if 0 not in schedule or min(schedule) < 0:
        raise InputError(
            f"top_k schedule {dict(schedule)} must map epochs, from 0 on, to K, such as {{0: null, 10: 100}}"
        )
    for start, k in schedule.items():
        check_integer(f"K of epoch {start} in the top_k schedule", k, 1, "null for every class")
    return schedule[max(start for start in schedule if start <= epoch)]
