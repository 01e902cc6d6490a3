"""Check that a model takes images of a size, before any image is read."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from hgsl.common.errors import InputError, first_line
from hgsl.common.modules import evaluation_mode
from hgsl.models.backbone import size_step

if TYPE_CHECKING:
    from hgsl.models.embedder import Embedder

    Build = Callable[[int | None], Embedder]

TRIES = 8  # sizes below and above a refused one that are tried


def create_at_size(create: "Build", build: "Build", side: int, name: str) -> "Embedder":
    """Returns the model for images of ``side`` pixels, after it has embedded noise of that size.

    Args:
        create: Image size, None for that of the pretraining -> the model with its weights.
        build: The same with random weights, which suffice to find the sizes that the backbone takes.
        side: Side of the square input, in pixels.
        name: Name of the backbone.

    Raises:
        InputError: The backbone does not take this size; the message names the nearest ones that it takes.
    """
    try:
        model = create(side)
        features = _features(model, side)
    except InputError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = first_line(error)
    else:
        if features.any(dim=1).all():
            return model
        raise InputError(
            f"images of {side} pixels are too small for backbone {name!r}, since the features of some are all zero: "
            "set image_size (data.image_size in a config) to 32 or more"
        )
    sizes = " or ".join(map(str, _nearest_sizes(build, side)))
    raise InputError(
        f"backbone {name!r} does not take images of {side} pixels ({reason}): set image_size (data.image_size in a "
        f"config) to {sizes}, the nearest that it takes"
    )


def check_image_size(model: "Embedder", side: int | None = None, reason: str = "") -> None:
    """Checks that a model takes images of a size.

    Args:
        model: The model.
        side: Side of the square input in pixels; None takes ``data_config["image_size"]``.
        reason: What asks for this size, for the message.

    Raises:
        InputError: As :func:`create_at_size`.
    """
    side = model.data_config["image_size"] if side is None else side
    try:
        create_at_size(lambda _: model, lambda _: model, side, model.architecture["backbone"])
    except InputError as error:
        raise InputError(f"{reason}: {error}" if reason else str(error)) from None


def _features(model: "Embedder", side: int) -> torch.Tensor:
    count = max(1, min(16, (64 // side) ** 2))  # small images leave only some embeddings zero
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    with evaluation_mode(model), torch.inference_mode():
        return model.pooled(images)


def _nearest_sizes(build: "Build", side: int) -> list[int]:
    """The next smaller and the next larger size that the model takes, or that of its pretraining."""
    native = build(None)
    step = size_step(native.backbone)
    below = [side // step * step - number * step for number in range(TRIES)]
    above = [(side // step + 1) * step + number * step for number in range(TRIES)]
    sizes = [
        next((size for size in candidates if size != side and _takes(build, size)), None)
        for candidates in (below, above)
    ]
    return [size for size in sizes if size] or [native.data_config["input_size"][-1]]


def _takes(build: "Build", side: int) -> bool:
    try:
        return side > 0 and bool(_features(build(side), side).any(dim=1).all())
    except (AssertionError, RuntimeError, ValueError):
        return False
