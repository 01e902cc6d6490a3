"""The controller of every mask in a network: state, penalty, density, rounds, and the way back to a plain module."""

import copy
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError
from hgsl.sparsity.soft_mask import ChannelMask, SoftMask, check_temperature, detach


class Masks:
    """Drives the masks it finds by walking ``module``: a deepcopy or a reloaded model needs only ``Masks(copy)``.

    Args:
        module: A network that ``sparsify`` returned, or one built with the masked layers.

    Attributes:
        saved: What ``checkpoint`` stored, name to tensor, or None; a trainer writes it beside its own state.

    Raises:
        InputError: The module holds no mask.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.saved: dict[str, Tensor] | None = None
        if not self._masks:
            raise InputError(f"{type(module).__name__} holds no mask: make one with sparsify(model)")

    @property
    def _masks(self) -> list[SoftMask]:
        """All masks there are now: a hand-written network may get a layer, or lose one, at any time."""
        return [part for part in self.module.modules() if isinstance(part, SoftMask)]

    @property
    def temperature(self) -> float:
        """beta, the same in every mask."""
        return float(self._masks[0].temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        check_temperature(value)
        for mask in self._masks:
            mask.temperature.fill_(value)

    @property
    def ticket(self) -> bool:
        """Whether the masks are hard. A ticket's scores get no gradient: train its weights alone."""
        return self._masks[0].ticket

    @ticket.setter
    def ticket(self, value: bool) -> None:
        for mask in self._masks:
            mask.ticket = bool(value)
        if value and (closed := self.closed_layers()):
            warnings.warn(f"the ticket closes these layers fully: {', '.join(closed)}", stacklevel=2)

    def penalty(self) -> Tensor:
        """Returns the sum of the masks over all masked weights; the search loss adds lambda times this.

        With ``sparsify(..., penalty="operations")`` each mask counts by the multiplications it saves, in units in which
        all masks together count as much as the masked weights.
        """
        return torch.stack([mask.penalty() for mask in self._masks]).sum()

    def density(self) -> float:
        """Returns the share of the masked weights that the ticket keeps."""
        return self._kept() / self._total()

    def overall_density(self) -> float:
        """Returns the share of all the network's weights, masked or not, that the ticket keeps."""
        everything = sum(parameter.numel() for parameter in self.weight_parameters())
        return 1.0 - (self._total() - self._kept()) / everything

    def layers(self) -> list[dict[str, Any]]:
        """Returns ``layer``, ``weights``, ``kept`` and ``density`` of each masked weight, in the network's order."""
        rows = []
        for name, weight, scores in self._weights():
            entries = weight.numel() // scores.numel()  # of each score: 1, or a filter's
            kept = int((scores > 0).sum()) * entries
            rows.append({"layer": name, "weights": weight.numel(), "kept": kept, "density": kept / weight.numel()})
        return rows

    def density_by_layer(self) -> dict[str, float]:
        """Returns the share kept of each masked weight, under its layer's name."""
        return {row["layer"]: row["density"] for row in self.layers()}

    def closed_layers(self) -> list[str]:
        """Returns the names of the layers of which the ticket keeps nothing."""
        return [name or "weight" for name, density in self.density_by_layer().items() if density == 0.0]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Returns every parameter but the masks' scores, as a fresh list that can be walked more than once."""
        scores = {id(mask.scores) for mask in self._masks}
        return [parameter for parameter in self.module.parameters() if id(parameter) not in scores]

    def mask_parameters(self) -> list[nn.Parameter]:
        """Returns the masks' scores."""
        return [mask.scores for mask in self._masks]

    def checkpoint(self) -> None:
        """Remembers every parameter and buffer of the network, but no mask, as the point to rewind to."""
        self.saved = {name: tensor.detach().clone() for name, tensor in self._network_tensors()}

    @torch.no_grad()
    def rewind(self) -> None:
        """Puts every parameter and buffer back to the checkpoint, in place; the masks stay as they are.

        Raises:
            InputError: There was no ``checkpoint`` before.
        """
        if self.saved is None:
            raise InputError("rewind before checkpoint: call masks.checkpoint() in the epoch to return to")
        for name, tensor in self._network_tensors():
            tensor.copy_(self.saved[name])

    def prune(self, temperature: float | None = None) -> None:
        """Ends a round: s <- min(beta * s, s0) with the temperature held (or the one given), which is then 1 again."""
        for mask in self._masks:
            mask.prune(temperature)

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """Returns a copy as a plain module that computes the same, with the masks multiplied in.

        In ticket mode the closed weights are exact zeros; else the soft masks are multiplied in and nothing is zero.
        The state dict has the keys of the network before it was masked, in the same order.

        Raises:
            InputError: A masked layer has another parametrisation too.
        """
        plain = copy.deepcopy(self.module)
        for name, layer, _, _ in masked_tensors(plain):
            chains: Any = layer.parametrizations
            for tensor, chain in chains.items():
                if not all(isinstance(part, SoftMask | ChannelMask) for part in chain):
                    raise InputError(
                        f"{tensor} of {name or type(layer).__name__} has a parametrisation beside its mask: "
                        "take it off first (torch.nn.utils.parametrize.remove_parametrizations)"
                    )
        # All values come first: a weight that two layers share must not be masked twice. Adding zero makes -0.0 a 0.0.
        masked = [(layer, tensor, getattr(layer, tensor) + 0.0) for _, layer, tensor, _ in masked_tensors(plain)]
        for layer in {id(layer): layer for layer, _, _ in masked}.values():
            detach(layer)
        for layer, tensor, value in masked:
            layer.get_parameter(tensor).copy_(value)
        for part in plain.modules():
            if isinstance(part, MaskedNet):
                part.__dict__.pop("masks", None)
        return plain

    def _kept(self) -> int:
        return sum(mask.kept() for mask in self._masks)

    def _total(self) -> int:
        return sum(mask.total() for mask in self._masks)

    def _weights(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yields (layer name, unmasked weight, its scores or those of its rows)."""
        for name, tensor, weight, mask in masked_weights(self.module):
            label = name if tensor == "weight" else f"{name}.{tensor}".lstrip(".")
            yield label, weight, mask.scores if isinstance(mask, SoftMask) else mask.rows(mask.source.scores)

    def _network_tensors(self) -> Iterator[tuple[str, Tensor]]:
        own = {
            id(tensor)
            for part in self.module.modules()
            if isinstance(part, SoftMask | ChannelMask)
            for tensor in (*part.parameters(), *part.buffers())
        }
        for tensors in (self.module.named_parameters(), self.module.named_buffers()):
            yield from ((name, tensor) for name, tensor in tensors if id(tensor) not in own)


class MaskedNet(nn.Module):
    """Base of a hand-written network of masked layers, and of these layers: it holds the controller as ``masks``.

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
        """The controller of all masks below; built at the first use, when all layers are there."""
        return Masks(self)

    def checkpoint(self) -> None:
        """Remembers all weights and buffers; see ``Masks.checkpoint``."""
        self.masks.checkpoint()

    def rewind_weights(self) -> None:
        """Returns to the checkpoint; see ``Masks.rewind``."""
        self.masks.rewind()

    def prune(self, temp: float | None = None) -> None:
        """Ends a round; see ``Masks.prune``."""
        self.masks.prune(temp)


def masked_tensors(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, SoftMask | ChannelMask]]:
    """Yields (layer name, layer, tensor name, mask) of each masked tensor."""
    for name, layer in module.named_modules():
        chains: Any = layer.parametrizations if parametrize.is_parametrized(layer) else {}
        for tensor, chain in chains.items():
            if isinstance(chain[0], SoftMask | ChannelMask):
                yield name, layer, tensor, chain[0]


def masked_weights(module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter, SoftMask | ChannelMask]]:
    """Yields (layer name, tensor name, unmasked weight, mask) of each filter: biases and norms only follow theirs."""
    for name, layer, tensor, mask in masked_tensors(module):
        weight = layer.get_parameter(f"parametrizations.{tensor}.original")
        if weight.ndim > 1:
            yield name, tensor, weight, mask
