"""The mask of one weight: a score per entry, squashed by a temperature, as a parametrisation of the masked tensor.

With s the scores, s0 their initial value and beta the temperature::

    soft mask    m = sigmoid(beta * s) / sigmoid(s0)     (one everywhere at the start, when s = s0 and beta = 1)
    ticket mask  m = 1[s > 0] / sigmoid(s0)              (the limit of the soft mask for beta to infinity)

Source: Savarese et al., "Winning the Lottery with Continuous Sparsification", NeurIPS 2020, arXiv:1912.04427.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError


class SoftMask(nn.Module):
    """Multiplies a weight by its mask; it knows its temperature, whether it is a ticket, and what it costs.

    ``temperature`` and ``initial_value`` are buffers: they move with the weight, a state dict restores them, and a new
    temperature needs no new compilation. ``ticket`` is a mode, as ``training`` is, and no state dict holds it.

    Args:
        shape: Shape of the scores: that of the weight, or ``(C,)`` for a mask that closes whole channels.
        initial_value: s0; below zero the search ends sparser, above zero denser.
        cost: How many weights each score opens or closes, ``(C,)`` int64; None is one weight a score.
        device: Where the weight lives.
        dtype: What the weight is stored in.

    Raises:
        InputError: ``initial_value`` is not between -10 and 10.
    """

    temperature: Tensor
    initial_value: Tensor
    cost: Tensor | None
    price: Tensor | None  # what each score adds to the penalty, if not its cost: (C,), or one number for all

    def __init__(
        self,
        shape: torch.Size | tuple[int, ...],
        initial_value: float = 0.0,
        cost: Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not -10.0 <= initial_value <= 10.0:  # 1 / sigmoid(s0) is a factor of the mask: 22,027 at -10
            raise InputError(f"mask_initial_value is {initial_value}: expected -10 to 10, such as -0.1, 0.0 or 3.0")
        self.scores = nn.Parameter(torch.full(tuple(shape), float(initial_value), device=device, dtype=dtype))
        self.register_buffer("temperature", torch.tensor(1.0, device=device, dtype=dtype))
        self.register_buffer("initial_value", torch.tensor(float(initial_value), device=device, dtype=dtype))
        self.register_buffer("cost", cost, persistent=False)
        self.register_buffer("price", None, persistent=False)
        self.ticket = False

    def mask(self, temperature: float | None = None, ticket: bool | None = None) -> Tensor:
        """Returns the mask, the shape of the scores, in the state held or in the one given.

        Raises:
            InputError: ``temperature`` is not positive.
        """
        return self._gate(temperature, ticket) / torch.sigmoid(self.initial_value)

    def forward(self, weight: Tensor, temperature: float | None = None, ticket: bool | None = None) -> Tensor:
        """Returns ``weight`` times the mask in the state held or in the one given."""
        return weight * self.mask(temperature, ticket)

    def penalty(self) -> Tensor:
        """Returns the sum of the mask over the masked weights, or of its price, a scalar."""
        price = self.cost if self.price is None else self.price
        wide = torch.promote_types(self.scores.dtype, torch.float32)  # half precision ends at 65,504 weights
        gate = self._gate().to(wide)
        total = (gate if price is None else gate * price).sum()
        return total / torch.sigmoid(self.initial_value.to(wide))  # divided once and not entry by entry

    def _gate(self, temperature: float | None = None, ticket: bool | None = None) -> Tensor:
        beta = self.temperature if temperature is None else check_temperature(temperature)
        if self.ticket if ticket is None else ticket:
            return (self.scores > 0).to(self.scores.dtype)
        return torch.sigmoid(beta * self.scores)

    def kept(self) -> int:
        """Returns how many weights the ticket keeps."""
        is_open = self.scores > 0
        return int(is_open.sum() if self.cost is None else (is_open * self.cost).sum())

    def total(self) -> int:
        """Returns how many weights are masked."""
        return self.scores.numel() if self.cost is None else int(self.cost.sum())

    @torch.no_grad()
    def prune(self, temperature: float | None = None) -> None:
        """Ends a round: s <- min(beta * s, s0), and the temperature, which the scores now hold, starts again at 1.

        What was closed stays closed in the next round (a score far below s0 has almost no gradient left); what was
        kept starts again at s0.

        Args:
            temperature: beta in place of the temperature held; 1 is what the published code does.
        """
        beta = self.temperature if temperature is None else check_temperature(temperature)
        self.scores.copy_(torch.minimum(beta * self.scores, self.initial_value))
        self.temperature.fill_(1.0)

    def extra_repr(self) -> str:
        """Shows the state in ``print(model)``."""
        shape = tuple(self.scores.shape)
        return f"{shape}, initial_value={self.initial_value:g}, temperature={self.temperature:g}, ticket={self.ticket}"


class ChannelMask(nn.Module):
    """Multiplies a tensor, channel by channel, by a mask that several tensors share.

    One channel is closed in the filters that make it, in their bias and in the norm that follows; layers joined by
    a residual connection or a depthwise convolution share it too. The first of these tensors owns the ``SoftMask``; the
    others refer to it without registering it, so that the scores appear once in the state dict.

    Args:
        source: The shared mask, ``(C,)``.
        index: Which of its channels this tensor's rows are, ``(rows,)`` int64, -1 for those that it leaves as they are;
            None for all of them in order.
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
        """Picks this tensor's rows out of ``values``, ``(C,)``: one for a row that is none of the channels."""
        return values if self.index is None else torch.where(self.index < 0, 1.0, values[self.index])

    def forward(self, tensor: Tensor) -> Tensor:
        """Returns ``tensor``, ``(rows, ...)``, with each row times its channel's mask."""
        return tensor * self.rows(self.source.mask()).view(-1, *[1] * (tensor.ndim - 1))


def check_temperature(value: float) -> float:
    """Returns ``value`` as a float.

    Raises:
        InputError: It is not a positive finite number.
    """
    if not (math.isfinite(value) and value > 0):
        raise InputError(
            f"temperature is {value}: it must be a positive finite number (1 at a round's start, 200 at its end)"
        )
    return float(value)


def owners_of_parameters(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Returns for each name of a parameter every layer that holds it, and under which name there.

    A weight that two layers share has two owners, each of which must see its mask.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for layer in model.modules():
        for tensor, parameter in layer._parameters.items():
            owners[id(parameter)].append((layer, tensor))
    return {name: owners[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def attach(layer: nn.Module, tensor: str, mask: SoftMask | ChannelMask) -> None:
    """Puts ``mask`` on the parameter ``tensor`` of ``layer``, whose own forward then sees the masked value."""
    # Masking a parameter moves it behind its neighbors; ``detach`` puts it back by this order.
    layer.__dict__.setdefault("_parameter_order", tuple(layer._parameters))
    parametrize.register_parametrization(layer, tensor, mask, unsafe=True)


def detach(layer: nn.Module) -> None:
    """Takes all masks off ``layer`` and leaves the unmasked parameters under their own names, in their own order."""
    chains: Any = layer.parametrizations
    originals = {tensor: chain.original for tensor, chain in chains.items()}
    # Not remove_parametrizations: it takes the property off the class, and a deepcopy shares its source's class.
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    order = layer.__dict__.pop("_parameter_order")
    layer._parameters = {name: originals[name] if name in originals else layer._parameters[name] for name in order}
