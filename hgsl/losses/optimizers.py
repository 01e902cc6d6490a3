"""Optimizers of class centers: parameter groups, and the optimizers of torch that suit sparse gradients."""

from typing import Any

from torch import optim

from hgsl.common.errors import InputError, unknown
from hgsl.losses.checks import check_number
from hgsl.losses.hgsl import HardGlobalSoftminLoss

SPARSE_OPTIMIZERS = {"sgd": optim.SGD, "adagrad": optim.Adagrad, "sparse_adam": optim.SparseAdam}
ADVICE = "use SGD (momentum 0, weight_decay 0), Adagrad (weight_decay 0) or SparseAdam"


def parameter_groups(loss_fn: HardGlobalSoftminLoss, centers_lr: float, scale_lr: float = 1e-5) -> list[dict[str, Any]]:
    """Returns the groups ``centers`` and ``scale``, without weight decay, to add to those of the network.

    A fixed scale is omitted, and so are centers with ``sparse_grad``, which need :func:`sparse_optimizer`.
    """
    check_number("centers_lr", centers_lr)
    check_number("scale_lr", scale_lr)
    groups: list[dict[str, Any]] = []
    if not loss_fn.sparse_grad:
        groups.append({"name": "centers", "params": [loss_fn.centers], "lr": centers_lr, "weight_decay": 0.0})
    if loss_fn.alpha.requires_grad:
        groups.append({"name": "scale", "params": [loss_fn.alpha], "lr": scale_lr, "weight_decay": 0.0})
    return groups


def sparse_optimizer(
    loss_fn: HardGlobalSoftminLoss, name: str = "sgd", lr: float = 1e-2, **options: Any
) -> optim.Optimizer:
    """Creates and attaches the optimizer of the centers of a loss with ``sparse_grad``.

    Args:
        loss_fn: the loss.
        name: ``"sgd"``, ``"adagrad"`` or ``"sparse_adam"``.
        lr: learning rate.
        **options: further arguments of the optimizer.

    Raises:
        InputError: The name is unknown, the rate is not finite, or the options are incompatible with sparse gradients.
    """
    if name not in SPARSE_OPTIMIZERS:
        raise unknown("sparse optimizer", name, SPARSE_OPTIMIZERS)
    check_number("lr", lr)
    optimizer: optim.Optimizer = SPARSE_OPTIMIZERS[name]([loss_fn.centers], lr=lr, **options)
    attach_optimizer(loss_fn, optimizer)
    return optimizer


def attach_optimizer(loss_fn: HardGlobalSoftminLoss, optimizer: optim.Optimizer) -> None:
    """Checks that ``optimizer`` supports sparse centers, and makes it normalize the rows that a step has updated.

    The check is repeated before each step, since schedulers may change the momentum.

    Raises:
        InputError: The optimizer does not hold the centers, would move rows without a gradient, or fails on sparse
            gradients.
    """
    check_optimizer(loss_fn, optimizer)
    optimizer.register_step_pre_hook(lambda *_: check_optimizer(loss_fn, optimizer))
    optimizer.register_step_post_hook(lambda *_: _renormalize_touched(loss_fn))
    loss_fn.optimizer_attached = True


def check_optimizer(loss_fn: HardGlobalSoftminLoss, optimizer: optim.Optimizer) -> None:
    """Raises InputError with the reason if ``optimizer`` cannot train the sparse centers of ``loss_fn``."""
    name = type(optimizer).__name__
    groups = [g for g in optimizer.param_groups if any(p is loss_fn.centers for p in g["params"])]
    if not groups:
        raise InputError(f"this {name} does not hold loss_fn.centers: give it [loss_fn.centers]")
    if not loss_fn.sparse_grad:
        raise InputError(f"this loss has dense gradients: {name} needs no attaching, or set sparse_grad=True")
    if not isinstance(optimizer, tuple(SPARSE_OPTIMIZERS.values())):
        raise InputError(f"{name} refuses sparse gradients or moves rows without one: {ADVICE}")
    if groups[0].get("momentum"):
        raise InputError(f"{name} with momentum {groups[0]['momentum']} keeps moving rows outside the batch: {ADVICE}")
    if groups[0].get("weight_decay"):
        raise InputError(f"{name} with weight_decay {groups[0]['weight_decay']} fails on sparse gradients: {ADVICE}")


def _renormalize_touched(loss_fn: HardGlobalSoftminLoss) -> None:
    gradient = loss_fn.centers.grad
    if gradient is not None:
        loss_fn.renormalize(gradient._indices()[0] if gradient.is_sparse else None)
