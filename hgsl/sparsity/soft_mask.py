"""Masks as parametrizations of a weight: a score per entry or channel, and a sigmoid that a temperature sharpens.

With s the scores, s0 their initial value and beta the temperature::

    soft mask    m = sigmoid(beta * s) / sigmoid(s0)     (one everywhere at the start, where s = s0 and beta = 1)
    ticket mask  m = 1[s > 0] / sigmoid(s0)              (the limit of the soft mask as beta goes to infinity)

Source: Savarese et al., "Winning the Lottery with Continuous Sparsification", NeurIPS 2020, arXiv:1912.04427.
"""

import math
from collections import defaultdict
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError


class SoftMask(nn.Module):
    """Multiplies a weight by its mask; holds the scores, the temperature and the ticket mode.

    ``temperature`` and ``initial_value`` are buffers: they move with the weight, are part of the state dict, and a new
    temperature needs no recompilation. ``ticket`` is a mode like ``training``, and not part of the state dict.

    Args:
        shape: Shape of the scores: that of the weight, or ``(C,)`` for a mask on whole channels.
        initial_value: s0; below zero the search ends sparser, above zero denser.
        weight_count: Number of weights that each score masks, ``(C,)`` int64; None is one weight per score.
        device: Device of the weight.
        dtype: Dtype of the weight.

    Raises:
        InputError: ``initial_value`` is not between -10 and 10.
    """

    temperature: Tensor
    initial_value: Tensor
    weight_count: Tensor | None
    penalty_weight: Tensor | None  # of each score in the penalty, or of all; None is weight_count

    def __init__(
        self,
        shape: torch.Size | tuple[int, ...],
        initial_value: float = 0.0,
        weight_count: Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        # 1 / sigmoid(s0) is a factor of the mask: 22,027 at -10.
        if not _is_number(initial_value) or not -10.0 <= initial_value <= 10.0:
            raise InputError(
                f"mask_initial_value is {initial_value!r:.80}: expected -10 to 10, such as -0.1, 0.0 or 3.0"
            )
        self.scores = nn.Parameter(torch.full(tuple(shape), float(initial_value), device=device, dtype=dtype))
        self.register_buffer("temperature", torch.tensor(1.0, device=device, dtype=dtype))
        self.register_buffer("initial_value", torch.tensor(float(initial_value), device=device, dtype=dtype))
        self.register_buffer("weight_count", weight_count, persistent=False)
        self.register_buffer("penalty_weight", None, persistent=False)
        self.ticket = False
        self.joint: Tensor | None = None  # the mask, where ``joint_masks`` has computed those of all layers

    def mask(self, temperature: float | None = None, ticket: bool | None = None) -> Tensor:
        """Returns the mask, of the shape of the scores; the arguments override the temperature and mode.

        Raises:
            InputError: ``temperature`` is not positive.
        """
        if self.joint is not None and temperature is None and ticket is None:
            return self.joint
        return self.gate(temperature, ticket) / torch.sigmoid(self.initial_value)

    def forward(self, weight: Tensor, temperature: float | None = None, ticket: bool | None = None) -> Tensor:
        """Returns ``weight`` times the mask; ``temperature`` and ``ticket`` override those of the mask."""
        return weight * self.mask(temperature, ticket)

    def penalty(self) -> Tensor:
        """Returns the sum of the mask over all masked weights, a scalar; ``penalty_weight`` replaces their number."""
        per_score = self.price
        dtype = torch.promote_types(self.scores.dtype, torch.float32)  # float16 overflows above 65,504 weights
        gate = self.gate().to(dtype)
        total = (gate if per_score is None else gate * per_score).sum()
        return total / torch.sigmoid(self.initial_value.to(dtype))  # one division for all entries

    @property
    def price(self) -> Tensor | None:
        """The price of each score in the penalty, or of all; None is 1."""
        return self.weight_count if self.penalty_weight is None else self.penalty_weight

    def gate(self, temperature: float | None = None, ticket: bool | None = None) -> Tensor:
        """Returns how far each score is open, from 0 to 1: the mask before its division by sigmoid(s0)."""
        beta = self.temperature if temperature is None else check_temperature(temperature)
        if self.ticket if ticket is None else ticket:
            return (self.scores > 0).to(self.scores.dtype)
        return torch.sigmoid(beta * self.scores)

    def count_remaining(self) -> int:
        """Returns the number of weights in the ticket."""
        is_open = self.scores > 0
        return int(is_open.sum() if self.weight_count is None else (is_open * self.weight_count).sum())

    def count_masked(self) -> int:
        """Returns the number of masked weights, in the ticket or not."""
        return self.scores.numel() if self.weight_count is None else int(self.weight_count.sum())

    @torch.no_grad()
    def prune(self, temperature: float | None = None) -> None:
        """Ends a round: s <- min(beta * s, s0), then beta <- 1.

        Closed weights stay closed in the next round, since scores far below s0 have almost no gradient; the others
        start again at s0.

        Args:
            temperature: Overrides beta; 1 reproduces the published code.
        """
        beta = self.temperature if temperature is None else check_temperature(temperature)
        self.scores.copy_(torch.minimum(beta * self.scores, self.initial_value))
        self.temperature.fill_(1.0)

    def extra_repr(self) -> str:
        """Returns what ``print(model)`` shows."""
        shape = tuple(self.scores.shape)
        return f"{shape}, initial_value={self.initial_value:g}, temperature={self.temperature:g}, ticket={self.ticket}"


class ChannelMask(nn.Module):
    """Multiplies the rows of a tensor by a channel mask that several tensors share.

    A channel has one score, which acts on its filters, their bias and the norm after them, in every layer of its
    channel group. The first of these tensors registers the ``SoftMask`` as a submodule; the others only refer to it, so
    that the scores appear once in the state dict.

    Args:
        source: The shared mask, ``(C,)``.
        index: The channel of each row of the tensor, ``(rows,)`` int64, -1 for rows that are not masked; None if the
            rows are the channels in order.
        owner: Whether ``source`` is registered here.
    """

    index: Tensor | None

    def __init__(self, source: SoftMask, index: Tensor | None = None, owner: bool = False) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        if owner:
            self.source = source
        else:
            self.__dict__["source"] = source

    def rows(self, values: Tensor) -> Tensor:
        """Returns the value of each row's channel from ``values``, ``(C,)``; 1 for rows that are not masked."""
        return values if self.index is None else torch.where(self.index < 0, 1.0, values[self.index])

    def forward(self, tensor: Tensor) -> Tensor:
        """Returns ``tensor``, ``(rows, ...)``, with each row multiplied by the mask of its channel."""
        return tensor * self.rows(self.source.mask()).view(-1, *[1] * (tensor.ndim - 1))


def _is_number(value: object) -> bool:
    return isinstance(value, Real | Tensor)


def check_temperature(value: float) -> float:
    """Returns ``value`` as a float.

    Raises:
        InputError: It is not a positive finite number.
    """
    if not _is_number(value) or not (math.isfinite(value) and value > 0):
        raise InputError(
            f"temperature is {value!r:.80}: it must be a positive finite number (1 at the start of a round, 200 at its "
            "end)"
        )
    return float(value)


def temperature_at(epoch: int, epochs: int, final: float = 200.0) -> float:
    """Returns beta at ``epoch`` of a round of ``epochs``: ``final ** (epoch / (epochs - 1))``, from 1 to ``final``.

    A round of one epoch runs at ``final``.

    >>> [round(temperature_at(epoch, 3), 3) for epoch in range(3)]
    [1.0, 14.142, 200.0]

    Raises:
        InputError: ``epoch`` is outside the round, or ``final`` is not positive.
    """
    check_temperature(final)
    if not 0 <= epoch < epochs:
        raise InputError(f"epoch {epoch} is outside a round of {epochs} epochs: expected 0 to {epochs - 1}")
    return final if epochs == 1 else final ** (epoch / (epochs - 1))


def owners_of_parameters(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Returns, for each parameter name, every layer that holds the parameter and its name in that layer.

    A weight that two layers share has two owners, and its mask is attached to both.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for layer in model.modules():
        for tensor, parameter in layer._parameters.items():
            owners[id(parameter)].append((layer, tensor))
    return {name: owners[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def attach(layer: nn.Module, tensor: str, mask: SoftMask | ChannelMask) -> None:
    """Masks the parameter ``tensor`` of ``layer``, whose forward then reads the masked value."""
    # A parametrized parameter moves to the end of the state dict; ``detach`` restores this order.
    layer.__dict__.setdefault("_parameter_order", tuple(layer._parameters))
    parametrize.register_parametrization(layer, tensor, mask, unsafe=True)


def detach(layer: nn.Module) -> None:
    """Removes all masks from ``layer`` and restores the unmasked parameters, with their names and order."""
    chains: Any = layer.parametrizations
    originals = {tensor: chain.original for tensor, chain in chains.items()}
    # Not remove_parametrizations, which deletes the property from the class: copies of the layer share that class.
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    order = layer.__dict__.pop("_parameter_order")
    layer._parameters = {name: originals[name] if name in originals else layer._parameters[name] for name in order}
