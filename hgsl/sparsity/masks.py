"""The controller of all masks of a network: temperature, penalty, density, rounds, rewind, and the plain network."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.sparsity.channels.costs import LayerCosts
from hgsl.sparsity.joint import joint_masks
from hgsl.sparsity.masked_tensors import check_finalizable, masked_tensors, masked_weights
from hgsl.sparsity.soft_mask import ChannelMask, SoftMask, check_temperature, detach


class Masks:
    """Controller of all masks in ``module``; for a deepcopy of a network, create another one: ``Masks(copy)``.

    Args:
        module: A network that ``sparsify`` returned, or one built with the masked layers.
        costs: The costs of its layers, for ``share``; None counts each mask by its price in the penalty.

    Attributes:
        saved: The tensors that ``checkpoint`` stored, by name, or None; a trainer saves them with its own state.

    Raises:
        InputError: The module has no mask.
    """

    def __init__(self, module: nn.Module, costs: LayerCosts | None = None) -> None:
        self.module, self.costs = module, costs
        self.saved: dict[str, Tensor] | None = None
        self._joint_penalty: Tensor | None = None
        if not self._masks:
            raise InputError(f"{type(module).__name__} has no mask: sparsify(model) returns a masked network")

    @property
    def _masks(self) -> list[SoftMask]:
        """All masks, looked up at each use since layers of a hand-written network may be added or removed."""
        return [module for module in self.module.modules() if isinstance(module, SoftMask)]

    def __repr__(self) -> str:
        if self._masks[0].scores.is_meta:
            return f"Masks({type(self.module).__name__}, {len(self._masks)} masks, on meta)"
        state = "ticket" if self.ticket else f"soft, temperature {self.temperature:.4g}"
        return (
            f"Masks({type(self.module).__name__}, {len(self._masks)} masks, {state}: {self._count_remaining():,} of "
            f"{self._count_masked():,} masked weights kept, {100 * self.density():.1f} %)"
        )

    @property
    def temperature(self) -> float:
        """The temperature beta, the same in every mask."""
        return float(self._masks[0].temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        check_temperature(value)
        for mask in self._masks:
            mask.temperature.fill_(value)

    @property
    def ticket(self) -> bool:
        """Whether the masks are hard. The scores then get no gradient: train the weights alone."""
        return self._masks[0].ticket

    @ticket.setter
    def ticket(self, value: bool) -> None:
        for mask in self._masks:
            mask.ticket = bool(value)
        if value and not self._masks[0].scores.is_meta and (closed := self.closed_layers()):
            warnings.warn(f"the ticket closes these layers fully: {', '.join(closed)}", stacklevel=2)

    def penalty(self) -> Tensor:
        """Returns the sum of the masks over all masked weights; the loss of the search adds lambda times this.

        With ``sparsify(..., penalty="operations")`` or ``"time"`` each mask is weighted by the cost that it saves,
        scaled so that a fully open network has the same penalty and one lambda suits all.
        """
        if self._joint_penalty is not None:
            return self._joint_penalty
        return torch.stack([mask.penalty() for mask in self._masks]).sum()

    def share(self) -> Tensor:
        """Returns the share that is left of what the penalty counts, a scalar; soft masks count as far as they open.

        Of the operations or the time of a network with channel masks, it is the share that ``compact`` leaves, in which
        a convolution counts by its open outputs times its open inputs.
        """
        if self.costs is not None:
            return self.costs.share()
        masks = self._masks
        prices = [torch.ones(()) if mask.price is None else mask.price for mask in masks]
        left = torch.stack([(mask.gate() * price).sum() for mask, price in zip(masks, prices, strict=True)]).sum()
        total = sum(float(price.expand(mask.scores.shape).sum()) for mask, price in zip(masks, prices, strict=True))
        return left / total

    @contextmanager
    def joint(self) -> Iterator[None]:
        """Computes all masks together within the context, in which the network's forward and backward pass lie.

        The results are the same. It saves most of the operations of the masks, and a small network on a GPU takes as
        long as the launches of its operations.
        """
        with joint_masks(self._masks) as self._joint_penalty:
            try:
                yield
            finally:
                self._joint_penalty = None

    def density(self) -> float:
        """Returns the fraction of the masked weights that is in the ticket."""
        return self._count_remaining() / self._count_masked()

    def overall_density(self) -> float:
        """Returns the fraction of all parameters of the network that remains, unmasked ones included."""
        parameter_count = sum(parameter.numel() for parameter in self.weight_parameters())
        return 1.0 - (self._count_masked() - self._count_remaining()) / parameter_count

    def layers(self) -> list[dict[str, Any]]:
        """Returns ``layer``, ``weights``, ``remaining`` and ``density`` of each masked weight, in network order."""
        rows = []
        for name, weight, scores in self._weights():
            weights_per_score = weight.numel() // scores.numel()
            remaining_count = int((scores > 0).sum()) * weights_per_score
            density = remaining_count / weight.numel()
            rows.append({"layer": name, "weights": weight.numel(), "remaining": remaining_count, "density": density})
        return rows

    def density_by_layer(self) -> dict[str, float]:
        """Returns the density of each masked weight, by layer name."""
        return {row["layer"]: row["density"] for row in self.layers()}

    def closed_layers(self) -> list[str]:
        """Returns the names of the layers with no weight in the ticket."""
        return [name or "weight" for name, density in self.density_by_layer().items() if density == 0.0]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Returns every parameter except the scores, as a new list."""
        scores = {id(mask.scores) for mask in self._masks}
        return [parameter for parameter in self.module.parameters() if id(parameter) not in scores]

    def mask_parameters(self) -> list[nn.Parameter]:
        """Returns the scores of all masks."""
        return [mask.scores for mask in self._masks]

    def checkpoint(self) -> None:
        """Stores a copy of every parameter and buffer except those of the masks, as the point to rewind to."""
        self.saved = {name: tensor.detach().clone() for name, tensor in self._network_tensors()}

    @torch.no_grad()
    def rewind(self) -> None:
        """Restores every parameter and buffer from the checkpoint, in place; the masks are unchanged.

        Raises:
            InputError: ``checkpoint`` was not called.
        """
        if self.saved is None:
            raise InputError("rewind before checkpoint: call masks.checkpoint() in the epoch to return to")
        for name, tensor in self._network_tensors():
            tensor.copy_(self.saved[name])

    def prune(self, temperature: float | None = None) -> None:
        """Ends a round: s <- min(beta * s, s0), beta the current temperature or the one given; then beta <- 1."""
        for mask in self._masks:
            mask.prune(temperature)

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """Returns a copy without masks and with the same output: each weight is replaced by its masked value.

        In a ticket the closed weights are exact zeros; soft masks leave no zeros. The state dict has the keys of the
        network before it was masked, in the same order.

        Raises:
            InputError: A masked layer has another parametrization too, or the network cannot be copied.
        """
        check_finalizable(self.module)
        plain = copy.deepcopy(self.module)
        # All values first: a weight that two layers share must not be masked twice. Adding zero turns -0.0 into 0.0.
        masked = [(layer, tensor, getattr(layer, tensor) + 0.0) for _, layer, tensor, _ in masked_tensors(plain)]
        for layer in {id(layer): layer for layer, _, _ in masked}.values():
            detach(layer)
        for layer, tensor, value in masked:
            layer.get_parameter(tensor).copy_(value)
        for module in plain.modules():
            if isinstance(module, MaskedNet):
                module.__dict__.pop("masks", None)
        return plain

    def _count_remaining(self) -> int:
        return sum(mask.count_remaining() for mask in self._masks)

    def _count_masked(self) -> int:
        return sum(mask.count_masked() for mask in self._masks)

    def _weights(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yields (layer name, unmasked weight, scores of its entries or rows)."""
        for name, tensor, weight, mask in masked_weights(self.module):
            label = name if tensor == "weight" else f"{name}.{tensor}".lstrip(".")
            yield label, weight, mask.scores if isinstance(mask, SoftMask) else mask.rows(mask.source.scores)

    def _network_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yields every parameter and buffer except those of the masks."""
        mask_tensors = {
            id(tensor)
            for module in self.module.modules()
            if isinstance(module, SoftMask | ChannelMask)
            for tensor in (*module.parameters(), *module.buffers())
        }
        for tensors in (self.module.named_parameters(), self.module.named_buffers()):
            yield from ((name, tensor) for name, tensor in tensors if id(tensor) not in mask_tensors)


class MaskedNet(nn.Module):
    """Base class of hand-written masked networks and of masked layers, with the controller as attribute ``masks``.

    >>> from hgsl.sparsity import SoftMaskedLinear
    >>> class Net(MaskedNet):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = SoftMaskedLinear(4, 2)
    ...     def forward(self, x):
    ...         return self.layer(x)
    >>> net = Net()
    >>> net.masks.temperature = 20.0
    >>> net.layer.compute_mask().mean().item()
    1.0
    """

    @cached_property
    def masks(self) -> Masks:
        """The controller of all masks in this network, created at the first use, when all layers exist."""
        return Masks(self)

    def checkpoint(self) -> None:
        """Stores all weights and buffers; see ``Masks.checkpoint``."""
        self.masks.checkpoint()

    def rewind_weights(self) -> None:
        """Restores the checkpoint; see ``Masks.rewind``."""
        self.masks.rewind()

    def prune(self, temp: float | None = None) -> None:
        """Ends a round; see ``Masks.prune``."""
        self.masks.prune(temp)
