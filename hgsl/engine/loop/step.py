"""One step of the optimizer, with or without waiting for the device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hgsl.common.device import widest_float
from hgsl.engine.distributed import all_true
from hgsl.engine.loop.train_state import Batch, LoopOptions, TrainState
from hgsl.engine.parts.masking import MaskedObjective
from hgsl.engine.parts.objective import scale_parameter
from hgsl.engine.parts.optim import skips_on_device
from hgsl.engine.parts.shards import clip_gradients
from hgsl.engine.runtime import Runtime

NUMBERS = ("loss", "grad_norm", "alpha")  # of a step, in its tensor; alpha is NaN for a loss without one


def train_step(state: TrainState, batch: Batch, options: LoopOptions, runtime: Runtime) -> Tensor:
    """One step of the optimizer over one batch, in ``accumulate`` micro-batches, and of the running mean.

    A step whose loss or gradient is not finite leaves the parameters, the optimizer and the scaler's step unchanged.
    With ``log_every`` 1, and on a CPU, the host decides that; otherwise the optimizer does so on the device.

    Returns:
        ``(3,)`` on the device, see ``NUMBERS``: the mean loss, the norm of the whole gradient before clipping, and the
        alpha after the step. The loss is NaN if the step was skipped, except where a float16 scaler does that, which
        may try too large a scale.
    """
    numbers = update_parameters(state, batch, options, runtime)
    if state.ema and (not host_decides(options, runtime) or numbers[0].isfinite()):
        state.ema.update(state.model, step=state.step)
    return numbers


def host_decides(options: LoopOptions, runtime: Runtime) -> bool:
    """Whether the host reads from the device within a step: where it does so after each one, or need not wait."""
    return options.log_every == 1 or runtime.device.type == "cpu"


def update_parameters(state: TrainState, batch: Batch, options: LoopOptions, runtime: Runtime) -> Tensor:
    """Forward, backward and the optimizer's step of :func:`train_step`."""
    images, labels, ids = batch
    state.optimizer.zero_grad(set_to_none=True)
    labels = labels.to(runtime.device, non_blocking=True)
    total = torch.zeros((), dtype=widest_float(runtime.device), device=runtime.device)
    channels_last = state.model.prefers_channels_last(runtime.device)
    micro_batches = _micro_batches(state, images, labels, ids, options.accumulate)
    for number, part in enumerate(micro_batches, start=1):
        with _averaged_gradients(state, number == len(micro_batches)), _joint_masks(state), _recorded_features(state):
            teacher = state.teacher(part.ids, part.images) if state.teacher else None
            with runtime.autocast():
                embeddings = state.network(runtime.prepare(part.images, channels_last))
            finite = embeddings.isfinite().all()
            if host_decides(options, runtime) and not all_true(finite):  # agreed, since the next call is collective
                return _numbers(state, total * torch.nan, total * torch.nan)
            loss = state.loss_call(embeddings, part.labels, teacher) * part.share
            if not host_decides(options, runtime):  # the whole gradient is then NaN, and the step is skipped
                usable = finite & loss.detach().isfinite()
                loss = loss * torch.ones_like(loss.detach()).masked_fill(~usable, torch.nan)
            state.scaler.scale(loss).backward()
        total = total + loss.detach()
    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.optimizer, options.clip, state.shard)
    total = _step_if_finite(state, total, norm.to(total.device), options, runtime)
    return _numbers(state, total, norm.to(total.device))


class MicroBatch(NamedTuple):
    """A part of a batch that is computed at once.

    Attributes:
        images: ``(B, 3, H, W)``.
        labels: ``(B,)``, or None for images without labels.
        ids: ``(B,)``.
        share: Weight of the part's mean loss: B divided by the number of such images in the batch.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor
    share: float


def _micro_batches(state: TrainState, images: Tensor, labels: Tensor, ids: Tensor, accumulate: int) -> list[MicroBatch]:
    """Divides a batch: first the images without labels, which are its last ones, and then those with labels."""
    count = len(ids) - (state.teacher.count_unlabeled(ids) if state.teacher else 0)
    micro_batches = []
    for rows, labeled in ((slice(count, None), False), (slice(0, count), True)):
        sides = zip(*(tensor[rows].chunk(accumulate) for tensor in (images, labels, ids)), strict=True)
        micro_batches += [
            MicroBatch(part, part_labels if labeled else None, part_ids, len(part) / len(ids[rows]))
            for part, part_labels, part_ids in sides
            if len(part)
        ]
    return micro_batches


def _step_if_finite(state: TrainState, total: Tensor, norm: Tensor, options: LoopOptions, runtime: Runtime) -> Tensor:
    """Steps the optimizer unless loss or gradient are not finite, and returns the loss, NaN if it skipped."""
    scaled = state.scaler.is_enabled()  # its own check of the gradient skips the step, and lowers the scale
    usable = total.isfinite() if scaled else total.isfinite() & norm.isfinite()
    on_device = skips_on_device(state.optimizer) and not host_decides(options, runtime)
    if scaled:
        if on_device or bool(usable):
            state.scaler.step(state.optimizer)
            state.scaler.update()
        return total
    if on_device:
        # The interface through which a gradient scaler skips a step of a fused optimizer.
        state.optimizer.grad_scale, state.optimizer.found_inf = None, (~usable).to(torch.float32)  # type: ignore[attr-defined]
        state.optimizer.step()
        del state.optimizer.grad_scale, state.optimizer.found_inf  # type: ignore[attr-defined]
    elif bool(usable):
        state.optimizer.step()
    return total.masked_fill(~usable & total.isfinite(), torch.nan)


def _numbers(state: TrainState, total: Tensor, norm: Tensor) -> Tensor:
    alpha = scale_parameter(state.objective.loss_fn)
    values = (total, norm, torch.full_like(total, torch.nan) if alpha is None else alpha.detach())
    return torch.stack([value.to(total.dtype) for value in values])


def _joint_masks(state: TrainState) -> AbstractContextManager[None]:
    """Computes all masks together within the context; a compiled network fuses their operations itself."""
    if hasattr(state.network, "_orig_mod") or not isinstance(state.objective, MaskedObjective):
        return nullcontext()
    return state.objective.masks.joint()


def _recorded_features(state: TrainState) -> AbstractContextManager[None]:
    """Records the outputs of the blocks of model and teacher within the context, if they are compared."""
    features = state.teacher.features if state.teacher else None
    return features.recorded() if features else nullcontext()


@contextmanager
def _averaged_gradients(state: TrainState, last: bool) -> Iterator[None]:
    """Averages the gradients over processes once per step, with the last micro-batch."""
    with ExitStack() as stack:
        for module in (state.network, state.loss_call):
            if not last and isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield
