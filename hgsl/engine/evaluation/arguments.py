"""Checks of the arguments of ``evaluate_model``."""

from collections.abc import Mapping

import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.engine.evaluation.options import EvalOptions


def check_arguments(model: object, options: object, datasets: Mapping[str, object]) -> None:
    """Checks the types, and the first element of each data set that has no transform.

    Args:
        model: The network.
        options: The options.
        datasets: Name of the argument -> data set, or None where it is not given.

    Raises:
        InputError: The message names the argument, its type and the expected one.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a network, such as load_embedder(...) returns, found {_described(model)}")
    if not isinstance(options, EvalOptions):
        raise InputError(f"options: expected EvalOptions(...), found {_described(options)}")
    for name, dataset in datasets.items():
        if dataset is not None:
            _check_dataset(name, dataset)


def _check_dataset(name: str, dataset: object) -> None:
    if isinstance(dataset, str | Mapping) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(
            f"{name}: expected a data set, such as build_dataset(...) returns, found {_described(dataset)}"
        )
    if not len(dataset) or getattr(dataset, "transform", None) is not None:
        return
    element = dataset[0]
    if not isinstance(element, tuple | list) or len(element) != 3 or not isinstance(element[0], torch.Tensor):
        raise InputError(
            f"{name}: expected elements (image tensor, label, id), found {_described(element)}: with build_dataset, "
            "give transform=model.transform()"
        )


def _described(value: object) -> str:
    """The type of a value, or the types of the entries of a short tuple, or text itself."""
    if isinstance(value, tuple | list) and len(value) <= 3:
        return f"({', '.join(type(entry).__name__ for entry in value)})"
    return repr(value) if isinstance(value, str) else type(value).__name__
