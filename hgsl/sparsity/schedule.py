"""When the masks harden: the temperature within a round."""

from hgsl.common.errors import InputError
from hgsl.sparsity.soft_mask import check_temperature


def temperature_at(epoch: int, epochs: int, final: float = 200.0) -> float:
    """Returns beta at ``epoch`` of a round of ``epochs``: ``final ** (epoch / (epochs - 1))``, from 1 to ``final``.

    A round of one epoch runs at ``final``. Each round starts at 1 again.

    >>> [round(temperature_at(epoch, 3), 3) for epoch in range(3)]
    [1.0, 14.142, 200.0]

    Raises:
        InputError: ``epoch`` is outside the round, or ``final`` is not positive.
    """
    check_temperature(final)
    if not 0 <= epoch < epochs:
        raise InputError(f"epoch {epoch} is outside a round of {epochs} epochs: expected 0 to {epochs - 1}")
    return final if epochs == 1 else final ** (epoch / (epochs - 1))
