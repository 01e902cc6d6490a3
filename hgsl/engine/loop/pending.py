"""Steps whose numbers are still on the device, until the host reads them together."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hgsl.common.device import widest_float
from hgsl.engine.distributed import mean_and_largest
from hgsl.engine.loop.step import NUMBERS


@dataclass(frozen=True)
class PendingStep:
    """A step that the host has not read.

    Attributes:
        step: Its number, from 1.
        numbers: ``(3,)``, see ``NUMBERS``, on the device.
        ids: Ids of its images.
        rates: Learning rates of the step by the name of the log.
    """

    step: int
    numbers: Tensor
    ids: Tensor
    rates: dict[str, float]


@dataclass(frozen=True)
class ReadStep:
    """The numbers of a step on the host; the loss is the mean over all processes."""

    step: int
    loss: float
    grad_norm: float
    alpha: float
    ids: Tensor
    rates: dict[str, float]

    def record(self, speed: dict[str, float]) -> dict[str, float]:
        """The numbers for the log; ``speed`` are those of the meter."""
        record = {"loss": self.loss, **speed, **self.rates}
        if not math.isnan(self.alpha):
            record["alpha"] = self.alpha
        if math.isfinite(self.grad_norm):  # a float16 scaler may try too large a scale, and skips the step
            record["grad_norm"] = self.grad_norm
        return record


def read_steps(pending: list[PendingStep], stop: int, device: torch.device) -> tuple[list[ReadStep], int]:
    """Reads the numbers of all steps in one transfer, and agrees on a signal to stop among the processes.

    Args:
        pending: The steps, the same on every process.
        stop: Number of the signal that this process received, or 0.
        device: The device of the numbers.

    Returns:
        The steps, and the largest signal number of any process.
    """
    dtype = widest_float(device)
    numbers = torch.stack([step.numbers for step in pending]) if pending else torch.zeros(0, len(NUMBERS), dtype=dtype)
    losses, stop = mean_and_largest(numbers[:, 0].to(device), stop)
    columns = torch.cat([losses[:, None].to(numbers.device), numbers[:, 1:]], dim=1).tolist()
    steps = [
        ReadStep(step.step, loss, norm, alpha, step.ids, step.rates)
        for step, (loss, norm, alpha) in zip(pending, columns, strict=True)
    ]
    return steps, stop
