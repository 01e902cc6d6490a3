"""Measured seconds of the layers of a network."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hgsl.common.latency import synchronize
from hgsl.common.modules import evaluation_mode

REPEATS = 7  # of which the fastest counts: other load on the machine only adds time


def seconds_of_layers(model: nn.Module, example: Tensor) -> tuple[dict[str, float], float]:
    """Measures each convolution, linear layer and norm, with an activation inside it, and all other leaf modules.

    Args:
        model: The network, which is measured in evaluation mode.
        example: A batch of inputs; the shares of the layers depend on its size.

    Returns:
        Weight name -> seconds of the layer's calls, and the seconds of all modules together.
    """
    seconds: dict[str, list[float]] = {}
    started: dict[str, float] = {}

    def before(name: str) -> Any:
        def start(*_: Any) -> None:
            synchronize(example.device)
            started[name] = time.perf_counter()

        return start

    def after(name: str) -> Any:
        def stop(*_: Any) -> None:
            synchronize(example.device)
            seconds[name][-1] += time.perf_counter() - started[name]

        return stop

    hooks = []
    for name, module in _timed(model).items():
        seconds[name] = []
        hooks += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        with evaluation_mode(model), torch.inference_mode():
            for _ in range(1 + REPEATS):
                for times in seconds.values():
                    times.append(0.0)
                model(example)
    finally:
        for hook in hooks:
            hook.remove()
    fastest = {name: min(times[1:]) for name, times in seconds.items()}  # the first call is a warm-up
    modules = dict(model.named_modules())
    layers = {f"{name}.weight".lstrip("."): value for name, value in fastest.items() if _is_layer(modules[name])}
    return layers, sum(fastest.values())


def _timed(model: nn.Module) -> dict[str, nn.Module]:
    """The layers, and the leaf modules outside of them."""
    timed: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in timed)
        if not inside and (_is_layer(module) or next(module.children(), None) is None):
            timed[name] = module
    return timed


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd | nn.Linear | _NormBase)
