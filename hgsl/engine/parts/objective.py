"""The loss as the loop calls it: ours, or one of pytorch-metric-learning's with its miner and memory."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import asdict
from textwrap import shorten
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hgsl.common import ranks
from hgsl.common.collectives import gather_rows, gather_with_gradient
from hgsl.common.errors import InputError, first_line, unknown
from hgsl.common.random_state import preserved_random_state
from hgsl.config import LossConfig
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
            embeddings, labels = gather_with_gradient(embeddings), gather_rows(labels)
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
    """Builds the loss that ``settings`` name; a loss of pytorch-metric-learning is tried on a few vectors first.

    Raises:
        InputError: An unknown loss or miner, arguments it does not take or needs, a loss that does not train on
            embeddings and labels alone, or pytorch-metric-learning is missing.
    """
    if settings.name == OURS:
        return _ours(settings, num_classes, embedding_size)
    losses, miners = _library("losses"), _library("miners")
    given = {"num_classes": num_classes, "embedding_size": embedding_size}
    loss_fn = _construct(losses, settings.name, settings.options, given, "loss", "loss.options")
    miner = None
    if settings.miner:
        miner = _construct(miners, settings.miner, settings.miner_options, given, "miner", "loss.miner_options")
    if settings.memory:
        try:
            loss_fn = losses.CrossBatchMemory(loss_fn, embedding_size, settings.memory, miner)
        except Exception as error:  # the library refuses losses without pairs with a bare Exception
            raise InputError(f"loss.memory {settings.memory} does not go with {settings.name}: {error}") from None
        miner = None
    objective = Objective(loss_fn, miner, gather=True)
    _try_out(objective, settings, num_classes, embedding_size)
    _say_what_is_left_aside(settings, getattr(losses, settings.name))
    return objective


def _try_out(objective: Objective, settings: LossConfig, num_classes: int, embedding_size: int) -> None:
    """Takes two steps of a copy on a few vectors: what the library does not refuse by itself fails only when called."""
    count = min(8, settings.memory or 8)
    vectors = torch.randn(count, embedding_size, generator=torch.Generator().manual_seed(0))
    embeddings = nn.functional.normalize(vectors).requires_grad_()
    try:
        tried = copy.deepcopy(objective)
        tried.gather = False  # each process tries it on its own, before anything is on its device
        with preserved_random_state():
            for _ in range(2):  # a loss may keep something of the first
                tried(embeddings, torch.arange(count) // 2 % num_classes).backward()
    except Exception as error:  # whatever the library does with what it was not made for
        name = settings.name + (f" with loss.miner {settings.miner}" if settings.miner else "")
        options = {**settings.options, **settings.miner_options}
        raise InputError(
            f"loss.name {name}{f' and options {options}' if options else ''} does not train on embeddings and labels "
            f"({shorten(first_line(error), 100)}): {'mend the options or ' if options else ''}"
            f"choose another {'miner or ' if settings.miner else ''}loss, such as ProxyAnchorLoss"
        ) from None


def _say_what_is_left_aside(settings: LossConfig, kind: type) -> None:
    """Recipes set what only our loss has, and serve another loss as well: the two must not be mixed up."""
    usual, ours = LossConfig(), [*inspect.signature(HardGlobalSoftminLoss).parameters, "centers"]
    names = [name for name, value in asdict(settings).items() if name in ours and value != getattr(usual, name)]
    if names:
        taken = [p.name for p in inspect.signature(kind).parameters.values() if p.default is not p.empty]
        ranks.print_main(
            f"note: {', '.join(f'loss.{name}' for name in names)}: of {OURS} alone, without effect here; "
            f"{kind.__name__} takes loss.options" + (f", such as {', '.join(taken)}" if taken else "")
        )


def _ours(settings: LossConfig, num_classes: int, embedding_size: int) -> Objective:
    """A hard set that is larger than the classes is all of them: small data sets need no config of their own."""
    names = set(inspect.signature(HardGlobalSoftminLoss).parameters)
    options = {name: value for name, value in asdict(settings).items() if name in names}
    if settings.top_k is not None and settings.top_k >= num_classes:
        ranks.print_main(
            f"loss.top_k {settings.top_k} is not below the {num_classes} training classes: all of them count"
        )
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
    library: ModuleType, name: str, options: Mapping[str, Any], given: Mapping[str, Any], what: str, where: str
) -> nn.Module:
    """Builds the ``what`` of this name from the options that were found ``where`` and, if it takes them, ``given``."""
    known = [key for key, value in vars(library).items() if inspect.isclass(value)]
    if name not in known:
        raise unknown(what, name, [OURS, *known] if what == "loss" else known)
    kind = getattr(library, name)
    accepted = _parameters(kind)
    for key in options:
        if key not in accepted:
            raise unknown(f"argument of {name}", key, accepted)
    arguments = {**{key: value for key, value in given.items() if key in accepted}, **options}
    missing = [key for key in _required(kind) if key not in arguments]
    if missing:
        wrapper = "a loss around others is only had as loss.memory, for CrossBatchMemory"
        values = " and ".join(f"{where}.{key}" for key in missing)
        way_out = wrapper if {"loss", "losses"} & set(missing) else f"set {values}"
        raise InputError(f"{name} needs {', '.join(missing)}: {way_out}, or choose another {what}")
    try:
        return kind(**arguments)
    except Exception as error:  # by the library: assertions, wrong types, abstract classes
        raise InputError(
            f"{name} cannot be built with {where} {dict(options)} ({shorten(first_line(error), 100)}): "
            f"mend them or choose another {what}"
        ) from None


def _required(kind: type) -> list[str]:
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return [p.name for p in inspect.signature(kind).parameters.values() if p.kind in named and p.default is p.empty]


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
