"""The loss as the loop calls it: ours, or one of pytorch-metric-learning's with its miner and memory."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hgsl.common import ranks
from hgsl.common.errors import InputError, unknown
from hgsl.config import LossConfig
from hgsl.engine.distributed import GatherRows
from hgsl.losses import HardGlobalSoftminLoss, ShardedHardGlobalSoftminLoss, scheduled_top_k

OURS = "HardGlobalSoftminLoss"


class Objective(nn.Module):
    """Embeddings (B, D) and labels (B,) -> scalar.

    Args:
        loss_fn: Called with embeddings, labels and, if there is a miner, its tuple.
        miner: Of pytorch-metric-learning, or None.
        gather: Whether the loss needs the embeddings of all processes at once: losses over pairs, ours from both sides.
        top_k_schedule: First epoch -> K, for our loss; empty leaves its K.
    """

    def __init__(
        self,
        loss_fn: nn.Module,
        miner: nn.Module | None = None,
        *,
        gather: bool = False,
        top_k_schedule: Mapping[int, int | None] | None = None,
    ) -> None:
        super().__init__()
        self.loss_fn = loss_fn
        self.miner = miner
        self.gather = gather
        self.top_k_schedule = dict(top_k_schedule or {})

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.gather and ranks.world_size() > 1:
            embeddings, labels = GatherRows.apply(embeddings), GatherRows.apply(labels)
        if self.miner is None:
            return self.loss_fn(embeddings, labels)
        return self.loss_fn(embeddings, labels, self.miner(embeddings, labels))

    def start_epoch(self, epoch: int) -> None:
        """Sets the K of this epoch, where there is a schedule."""
        if self.top_k_schedule:
            assert isinstance(self.loss_fn, HardGlobalSoftminLoss)
            k = scheduled_top_k(self.top_k_schedule, epoch)
            self.loss_fn.set_top_k(None if k is None or k >= self.loss_fn.num_classes else k)

    def get_extra_state(self) -> dict[str, Any]:
        """The queue of a cross-batch memory, which pytorch-metric-learning leaves out of its state dict."""
        return {name: getattr(self.loss_fn, name) for name in _QUEUE if hasattr(self.loss_fn, name)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self.loss_fn, name, value)


_QUEUE = ("embedding_memory", "label_memory", "queue_idx", "has_been_filled")


def build_objective(settings: LossConfig, num_classes: int, embedding_size: int) -> Objective:
    """Builds the loss that ``settings`` name.

    Raises:
        InputError: An unknown loss or miner, arguments it does not take, or pytorch-metric-learning is missing.
    """
    if settings.name == OURS:
        return _ours(settings, num_classes, embedding_size)
    losses, miners = _library("losses"), _library("miners")
    given = {"num_classes": num_classes, "embedding_size": embedding_size}
    loss_fn = _construct(losses, settings.name, settings.options, given, "loss")
    miner = settings.miner and _construct(miners, settings.miner, settings.miner_options, given, "miner")
    if settings.memory:
        options = {"loss": loss_fn, "miner": miner, "memory_size": settings.memory}
        try:
            return Objective(_construct(losses, "CrossBatchMemory", options, given, "loss"), gather=True)
        except InputError:
            raise
        except Exception as error:  # the library refuses losses without pairs with a bare Exception
            raise InputError(f"loss.memory {settings.memory} does not go with {settings.name}: {error}") from None
    return Objective(loss_fn, miner or None, gather=True)


def _ours(settings: LossConfig, num_classes: int, embedding_size: int) -> Objective:
    """A hard set that is larger than the classes is all of them: small data sets need no config of their own."""
    names = set(inspect.signature(HardGlobalSoftminLoss).parameters)
    options = {name: value for name, value in asdict(settings).items() if name in names}
    if settings.top_k is not None and settings.top_k >= num_classes:
        ranks.say(f"loss.top_k {settings.top_k} is not below the {num_classes} training classes: all of them count")
        options.update(top_k=None, hard_set="all")
    kind = ShardedHardGlobalSoftminLoss if settings.sharded else HardGlobalSoftminLoss
    loss_fn = kind(num_classes, embedding_size, **options)
    return Objective(loss_fn, gather=settings.both_sides > 0, top_k_schedule=settings.top_k_schedule)


def _library(part: str) -> ModuleType:
    try:
        import pytorch_metric_learning.losses
        import pytorch_metric_learning.miners
    except ImportError:
        raise InputError(
            'other losses and miners are those of pytorch-metric-learning: pip install "hgsl[pml]"'
        ) from None
    return getattr(pytorch_metric_learning, part)


def _construct(
    library: ModuleType, name: str, options: Mapping[str, Any], given: Mapping[str, Any], what: str
) -> nn.Module:
    known = [key for key, value in vars(library).items() if inspect.isclass(value)]
    if name not in known:
        raise unknown(what, name, [OURS, *known] if what == "loss" else known)
    kind = getattr(library, name)
    accepted = _parameters(kind)
    for key in options:
        if key not in accepted:
            raise unknown(f"argument of {name}", key, accepted)
    filled = {key: value for key, value in given.items() if key in accepted}
    return kind(**{**filled, **options})


def _parameters(kind: type) -> set[str]:
    """The arguments of a class and of the bases that it hands its keyword arguments on to."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base in (nn.Module, object):
            break
        found |= set(inspect.signature(base.__init__).parameters)  # type: ignore[misc]
    return found - {"self", "args", "kwargs"}


def scale_parameter(loss_fn: nn.Module) -> Tensor | None:
    """Our loss's alpha, which is worth watching; other losses have none."""
    alpha = getattr(loss_fn, "alpha", None)
    return alpha if isinstance(alpha, torch.Tensor) else None
