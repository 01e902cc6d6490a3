"""The objective of a training step: a loss of this package, or one of pytorch-metric-learning with miner and memory.

A teacher adds a term to it.
"""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import asdict
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from hgsl.common import ranks
from hgsl.common.collectives import gather_rows, gather_with_gradient
from hgsl.common.errors import InputError, first_line, unknown
from hgsl.common.library_parts import trainable
from hgsl.common.random_state import preserved_random_state
from hgsl.config import LossConfig
from hgsl.config.training import FEW_CLASSES
from hgsl.engine.parts.distillation import Distillation
from hgsl.losses import LOSSES, HardGlobalSoftminLoss, ShardedHardGlobalSoftminLoss, scheduled_top_k

DEFAULT = HardGlobalSoftminLoss.__name__  # the loss whose arguments are settings of the config
SPARSE_FROM = 100_000  # classes; below, a dense gradient and its moments take less than 2 GB at 1,024 dimensions
ALPHA, ALPHA_OF_FEW = 1.0, 0.4  # of loss.alpha auto (docs/recipe.md)
QUEUE = ("embedding_memory", "label_memory", "queue_idx", "has_been_filled")  # of a cross-batch memory


class Objective(nn.Module):
    """Embeddings (B, D), labels (B,) and, with distillation, embeddings of the teacher (B, D') -> scalar.

    For images without labels, with labels None, it is the term of the teacher alone.

    Args:
        loss_fn: Called with embeddings, labels and, if there is a miner, its tuple.
        miner: A miner of pytorch-metric-learning, or None.
        gather: Whether the loss is computed over the embeddings of all processes.
        top_k_schedule: First epoch -> K, for HardGlobalSoftminLoss; empty leaves its K.
        weight: Factor of the loss beside the term of a teacher.

    Attributes:
        distillation: The term of a teacher, which is added to the loss; None without one.
    """

    distillation: Distillation | None

    def __init__(
        self,
        loss_fn: nn.Module,
        miner: nn.Module | None = None,
        *,
        gather: bool = False,
        top_k_schedule: Mapping[int, int | None] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.loss_fn = loss_fn
        self.miner = miner
        self.gather = gather
        self.top_k_schedule = dict(top_k_schedule or {})
        self.distillation = None

    def forward(self, embeddings: Tensor, labels: Tensor | None, teacher: Tensor | None = None) -> Tensor:
        if self.distillation is None:
            assert labels is not None
            return self._supervised(embeddings, labels)
        assert teacher is not None
        loss: Tensor = self.distillation(embeddings, teacher)
        return loss if labels is None else self._supervised(embeddings, labels) + loss

    def _supervised(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.gather and ranks.world_size() > 1:
            embeddings, labels = gather_with_gradient(embeddings), gather_rows(labels)
        if self.miner is None:
            loss: Tensor = self.loss_fn(embeddings, labels)
        else:
            loss = self.loss_fn(embeddings, labels, self.miner(embeddings, labels))
        return self.weight * loss

    def start_epoch(self, epoch: int) -> None:
        """Sets the K of this epoch, if there is a schedule."""
        if self.top_k_schedule:
            assert isinstance(self.loss_fn, HardGlobalSoftminLoss)
            k = scheduled_top_k(self.top_k_schedule, epoch)
            self.loss_fn.set_top_k(None if k is None or k >= self.loss_fn.num_classes else k)

    def get_extra_state(self) -> dict[str, Any]:
        """The queue of a cross-batch memory, which the state dict of pytorch-metric-learning lacks."""
        return {name: getattr(self.loss_fn, name) for name in QUEUE if hasattr(self.loss_fn, name)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self.loss_fn, name, value)


def check_loss(settings: LossConfig) -> None:
    """Checks the names of loss and miner.

    Raises:
        InputError: One is unknown, or needs pytorch-metric-learning, which is not installed.
    """
    _class("loss", settings.name)
    if settings.miner:
        _class("miner", settings.miner)


def build_objective(settings: LossConfig, num_classes: int, embedding_size: int) -> Objective:
    """Builds the loss that ``settings`` name; any other than the default one is tested on a few vectors first.

    Raises:
        InputError: The loss or miner is unknown, cannot be built with its options, or does not train on embeddings and
            labels.
    """
    if settings.name == DEFAULT:
        return _hard_global_softmin(settings, num_classes, embedding_size)
    sizes = {"num_classes": num_classes, "embedding_size": embedding_size}
    loss_class = _class("loss", settings.name)
    loss_fn = _construct(loss_class, settings.options, sizes, "loss.options")
    miner = None
    if settings.miner:
        miner = _construct(_class("miner", settings.miner), settings.miner_options, sizes, "loss.miner_options")
    if settings.memory:
        try:
            loss_fn = _library("losses")["CrossBatchMemory"](loss_fn, embedding_size, settings.memory, miner)
        except Exception as error:  # the library raises a bare Exception for losses without pairs
            raise InputError(f"loss.memory {settings.memory} does not go with {settings.name}: {error}") from error
        miner = None
    objective = Objective(loss_fn, miner, gather=True, weight=settings.weight)
    _try_out(objective, settings, num_classes, embedding_size)
    _note_unused_settings(settings)
    return objective


def _hard_global_softmin(settings: LossConfig, num_classes: int, embedding_size: int) -> Objective:
    """Builds the default loss; a K above the number of classes means all, so that a config fits small data as well."""
    names = inspect.signature(HardGlobalSoftminLoss).parameters
    options = {name: value for name, value in asdict(settings).items() if name in names}
    if settings.alpha == "auto":
        options["alpha"] = ALPHA_OF_FEW if num_classes < FEW_CLASSES else ALPHA
    if settings.top_k is not None and settings.top_k >= num_classes:
        ranks.print_main(
            f"loss.top_k {settings.top_k} is not below the {num_classes} training classes: all of them are used"
        )
        options.update(top_k=None, hard_set="all")
    loss_class = ShardedHardGlobalSoftminLoss if settings.sharded else LOSSES[DEFAULT]
    sparse_grad = use_sparse_centers(settings, num_classes)
    loss_fn = loss_class(num_classes, embedding_size, sparse_grad=sparse_grad, **options)
    schedule = settings.top_k_schedule
    return Objective(loss_fn, gather=settings.both_sides > 0, top_k_schedule=schedule, weight=settings.weight)


def _class(what: str, name: str) -> type[nn.Module]:
    """Returns the loss or miner of this name: losses of this package first, then those of pytorch-metric-learning."""
    package_losses = LOSSES if what == "loss" else {}
    if name in package_losses:
        return package_losses[name]
    library = _library("losses" if what == "loss" else "miners")
    if name not in library:
        raise unknown(what, name, [*package_losses, *trainable(library)])
    return library[name]


def _library(part: str) -> dict[str, type[nn.Module]]:
    """Returns the ``losses`` or ``miners`` of pytorch-metric-learning by name."""
    try:
        import pytorch_metric_learning.losses
        import pytorch_metric_learning.miners
    except ImportError as error:
        raise InputError(
            f"losses other than {', '.join(LOSSES)}, and miners, are those of pytorch-metric-learning: "
            'pip install "hgsl[pml]"'
        ) from error
    return dict(inspect.getmembers(getattr(pytorch_metric_learning, part), inspect.isclass))


def _construct(
    part_class: type[nn.Module], options: Mapping[str, Any], sizes: Mapping[str, int], where: str
) -> nn.Module:
    """Calls ``part_class`` with ``options`` and those ``sizes`` that its constructor, or a base's, accepts."""
    constructors = [base.__init__ for base in part_class.__mro__]  # type: ignore[misc]
    accepted = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
    try:
        return part_class(**{**{name: size for name, size in sizes.items() if name in accepted}, **options})
    except Exception as error:  # of any type: assertions, wrong types, abstract classes
        raise InputError(
            f"{part_class.__name__} cannot be built with {where} {dict(options)} ({shorten(first_line(error), 160)}): "
            f"correct {where}, or choose another class"
        ) from error


def _try_out(objective: Objective, settings: LossConfig, num_classes: int, embedding_size: int) -> None:
    """Takes two steps of a copy on a few vectors: some losses fail only when they are called."""
    count = min(8, settings.memory or 8)
    vectors = torch.randn(count, embedding_size, generator=torch.Generator().manual_seed(0))
    embeddings = nn.functional.normalize(vectors).requires_grad_()
    try:
        trial = copy.deepcopy(objective)
        trial.gather = False  # each process tests it alone, before anything is on its device
        with preserved_random_state():
            for _ in range(2):  # a loss may have state after the first
                trial(embeddings, torch.arange(count) // 2 % num_classes).backward()
    except Exception as error:  # of any type, as above
        name = settings.name + (f" with loss.miner {settings.miner}" if settings.miner else "")
        options = {**settings.options, **settings.miner_options}
        raise InputError(
            f"loss.name {name}{f' and options {options}' if options else ''} does not train on embeddings and labels "
            f"({shorten(first_line(error), 100)}): {'correct the options or ' if options else ''}"
            f"choose another {'miner or ' if settings.miner else ''}loss, such as ProxyAnchorLoss"
        ) from error


def _note_unused_settings(settings: LossConfig) -> None:
    """Prints the changed settings of the default loss, which have no effect on another loss."""
    default = LossConfig()
    names = [*inspect.signature(HardGlobalSoftminLoss).parameters, "centers"]
    changed = [name for name, value in asdict(settings).items() if name in names and value != getattr(default, name)]
    if changed:
        ranks.print_main(
            f"note: {', '.join(f'loss.{name}' for name in changed)}: of {DEFAULT} alone, without effect on "
            f"{settings.name}, whose arguments are loss.options"
        )


def use_sparse_centers(settings: LossConfig, num_classes: int) -> bool:
    """Whether the centers get a sparse gradient: by ``loss.sparse_centers``, else from ``SPARSE_FROM`` classes on.

    Raises:
        InputError: It is set, and several processes each hold all centers.
    """
    replicated = ranks.world_size() > 1 and not settings.sharded
    if settings.sparse_centers is None:
        return num_classes >= SPARSE_FROM and not replicated
    if settings.sparse_centers and replicated:
        raise InputError(
            "loss.sparse_centers true: processes that each hold all centers cannot average sparse gradients; "
            "set loss.sharded true, or loss.sparse_centers false"
        )
    return settings.sparse_centers


def scale_parameter(loss_fn: nn.Module) -> Tensor | None:
    """The parameter alpha of a loss, for the log, or None."""
    alpha = getattr(loss_fn, "alpha", None)
    return alpha if isinstance(alpha, torch.Tensor) else None
