"""CUDA graphs of a loss: value and gradients of a call, captured once for its shapes and then replayed.

The loss takes a hundred operations, and on a GPU with few classes each takes less time than its launch. A replay
launches them all at once. It computes the gradients for an incoming gradient of 1 together with the value, so that a
call does not depend on those before or after it; the backward pass multiplies them by the incoming one. The numbers are
those of an ordinary call, and so are the random ones that it draws.
"""

import warnings
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hgsl.common.autograd import builds_graph
from hgsl.common.cuda_graphs import beside, capture
from hgsl.common.errors import InputError, first_line
from hgsl.losses.deferral import DeferredChecks, deferring
from hgsl.losses.hard_set import is_searched

DEVICES = ("cuda",)
MOST_GRAPHS = 8  # graphs that a loss keeps; calls of further shapes are ordinary
MOST_SCORES = 2**23  # scores of every pair: more take longer than their launches, and a graph keeps their memory

Key = tuple[object, ...]


class CapturedLoss(Protocol):
    """A loss with class centers and a scale; ``compute`` is an ordinary call."""

    centers: nn.Parameter
    alpha: nn.Parameter
    top_k: int | None

    def compute(self, embeddings: Tensor, centers: Tensor, alpha: Tensor, labels: Tensor) -> Tensor: ...


class LossGraphs:
    """The graphs of one loss, by what they have fixed. A copy of a loss starts without any."""

    def __init__(self) -> None:
        self._graphs: dict[Key, _Graph] = {}
        self._failed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return LossGraphs, ()

    def loss(self, loss_fn: CapturedLoss, embeddings: Tensor, labels: Tensor, settings: Key) -> Tensor | None:
        """Returns the loss with its gradients, or None for a call that must be an ordinary one.

        Args:
            loss_fn: The loss.
            embeddings: ``(B, D)``.
            labels: ``(B,)``.
            settings: What the result depends on besides these and the parameters.
        """
        inputs = embeddings, loss_fn.centers, loss_fn.alpha
        classes = len(loss_fn.centers)
        is_small = len(labels) * classes <= MOST_SCORES or is_searched(loss_fn.top_k, classes)
        if self._failed or not is_small or not _can_be_captured(inputs, labels):
            return None
        tensors = [(t.dtype, t.shape, t.requires_grad) for t in inputs]
        deterministic = torch.are_deterministic_algorithms_enabled()
        stream = torch.cuda.current_stream(embeddings.device) if embeddings.device.type == "cuda" else None
        addresses = loss_fn.centers.data_ptr(), loss_fn.alpha.data_ptr()
        key = (*tensors, labels.dtype, *addresses, stream, deterministic, settings)
        graph = self._graphs.get(key) or self._capture(key, loss_fn, embeddings, labels)
        if graph is None:
            return None
        loss: Tensor = _Replay.apply(*inputs, labels, graph, loss_fn)
        return loss if graph.is_valid() else None  # the ordinary call then names what is wrong

    def _capture(self, key: Key, loss_fn: CapturedLoss, embeddings: Tensor, labels: Tensor) -> "_Graph | None":
        if len(self._graphs) == MOST_GRAPHS:
            return None
        try:
            self._graphs[key] = _Graph(loss_fn, embeddings, labels)
        except InputError:  # of a setting: the ordinary call raises it too
            return None
        except RuntimeError as error:
            self._failed = True
            warnings.warn(f"the loss is computed without CUDA graphs: {first_line(error)}", stacklevel=5)
            return None
        return self._graphs[key]


class _Graph:
    """A captured call: the tensors that it reads and writes, and the checks of its inputs."""

    def __init__(self, loss_fn: CapturedLoss, embeddings: Tensor, labels: Tensor) -> None:
        device = embeddings.device
        self.embeddings = embeddings.detach().clone().requires_grad_(embeddings.requires_grad)
        self.labels = labels.clone()
        self.checks = DeferredChecks()
        # Other tensors of the same memory: what autograd knows of the parameters does not mention the capture's stream.
        centers, alpha = (p.detach().requires_grad_(p.requires_grad) for p in (loss_fn.centers, loss_fn.alpha))
        self.inputs = self.embeddings, centers, alpha
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        random_state = _generator_state(device)
        with beside(stream):
            self._compute(loss_fn)  # allocates what a capture must not
        self.launch = capture(lambda: self._compute(loss_fn), stream)
        _set_generator_state(random_state, device)

    def _compute(self, loss_fn: CapturedLoss) -> None:
        with torch.enable_grad(), deferring(self.checks):
            value = loss_fn.compute(*self.inputs, self.labels)
        needed = [tensor for tensor in self.inputs if tensor.requires_grad]
        gradients = iter(torch.autograd.grad(value, needed))
        self.value = value.detach()
        self.gradients = [next(gradients) if tensor.requires_grad else None for tensor in self.inputs]

    def replay(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Returns the loss and its gradients, in tensors of their own."""
        self.embeddings.detach().copy_(embeddings)
        self.labels.copy_(labels)
        self.launch()
        copies = [None if gradient is None else _scaled(gradient, None) for gradient in self.gradients]
        return self.value.clone(), copies

    def is_valid(self) -> bool:
        """Whether the inputs of the last call were valid, or will be checked later."""
        if self.checks.deferred():
            return True
        try:
            self.checks.raise_errors()
        except InputError:
            return False
        return True


class _Replay(torch.autograd.Function):
    """The replayed loss as a function of embeddings, centers and alpha."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        centers: Tensor,
        alpha: Tensor,
        labels: Tensor,
        graph: _Graph,
        loss_fn: CapturedLoss,
    ) -> Tensor:
        ctx.random_state = _generator_state(embeddings.device)
        value, ctx.gradients = graph.replay(embeddings, labels)
        ctx.save_for_backward(embeddings, centers, alpha, labels)
        ctx.loss_fn = loss_fn
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        if builds_graph():
            *inputs, labels = ctx.saved_tensors
            gradients = _differentiable_gradients(ctx.loss_fn, inputs, labels, grad_value, ctx.random_state)
        else:
            gradients = [None if gradient is None else _scaled(gradient, grad_value) for gradient in ctx.gradients]
        return *gradients, None, None, None


def _differentiable_gradients(
    loss_fn: CapturedLoss, inputs: list[Tensor], labels: Tensor, grad_value: Tensor, random_state: Tensor
) -> list[Tensor | None]:
    """Returns the gradients from an ordinary call, which can be differentiated, with the same random numbers."""
    device = labels.device
    now = _generator_state(device)
    _set_generator_state(random_state, device)
    embeddings, centers, alpha = inputs
    value = loss_fn.compute(embeddings, centers, alpha, labels)
    _set_generator_state(now, device)
    needed = [tensor for tensor in inputs if tensor.requires_grad]
    gradients = iter(torch.autograd.grad(value, needed, grad_value, create_graph=True))
    return [next(gradients) if tensor.requires_grad else None for tensor in inputs]


def _can_be_captured(inputs: tuple[Tensor, ...], labels: Tensor) -> bool:
    embeddings = inputs[0]
    return (
        embeddings.device.type in DEVICES
        and all(tensor.device == embeddings.device for tensor in (*inputs, labels))
        and torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in inputs)
        and not (embeddings.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def _scaled(gradient: Tensor, factor: Tensor | None) -> Tensor:
    """Returns a new tensor: the dense or sparse gradient, times ``factor`` if there is one."""
    if not gradient.is_sparse:
        return gradient.clone() if factor is None else gradient * factor.to(gradient.dtype)
    indices, values = gradient._indices().clone(), _scaled(gradient._values(), factor)
    return torch.sparse_coo_tensor(indices, values, gradient.shape, check_invariants=False)


def _generator_state(device: torch.device) -> Tensor:
    """Returns the state of torch's generator on ``device``, without waiting for it."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_generator_state(state: Tensor, device: torch.device) -> None:
    """Sets the state of torch's generator on ``device``."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
