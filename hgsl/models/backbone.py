"""timm backbones without classifiers, for images of any size that the family takes."""

import inspect
from typing import Any

import timm
import torch
from torch import nn

from hgsl.common.errors import InputError, first_line
from hgsl.models.backbone_source import BackboneSource


def create_backbone(source: BackboneSource, output_stride: int | None = None, image_size: int | None = None) -> Any:
    """Returns the timm model of ``source`` without its classifier and with random weights.

    Args:
        source: What timm builds it from.
        output_stride: Input pixels per position of the last feature map (8 or 16 instead of the usual 32: "last stride
            1"), where the family has that option; strides are removed without adding dilation.
        image_size: Side in pixels of the square input, for families that are built for one; None takes that of the
            pretraining.

    Raises:
        InputError: The family has no ``output_stride``, or no such option as a model of the Hub sets.
    """
    options = backbone_options(source, image_size)
    if output_stride is None:
        return create_timm_model(source, options)
    try:
        backbone = timm.create_model(source.architecture, output_stride=output_stride, **options)
    except (TypeError, NotImplementedError, AssertionError) as error:
        raise InputError(
            f"backbone {source.name!r} does not take output_stride {output_stride}: leave model.output_stride empty, "
            "or use a convolutional family such as resnet or efficientnet"
        ) from error
    _undilate(backbone)
    return backbone


def create_timm_model(source: BackboneSource, options: dict[str, Any]) -> Any:
    """Calls ``timm.create_model``.

    Raises:
        InputError: The model of the Hub sets options that its family does not have.
    """
    if not source.model_args:
        return timm.create_model(source.architecture, **options)
    try:
        return timm.create_model(source.architecture, **options)
    except TypeError as error:
        raise InputError(
            f"backbone {source.name!r}: timm's {source.architecture} does not take its options {source.model_args}: "
            f"{first_line(error)}"
        ) from None


def backbone_options(source: BackboneSource, image_size: int | None) -> dict[str, Any]:
    """Returns the arguments of ``timm.create_model`` with which the model takes images of ``image_size`` pixels.

    Position embeddings are interpolated in the forward pass where the family has that option, so that such models take
    any size, as convolutional ones do; others are built for one size.
    """
    options: dict[str, Any] = {**source.model_args, "num_classes": 0}
    if source.pretrained_cfg is not None:
        options["pretrained_cfg"] = source.pretrained_cfg
    with torch.device("meta"):  # takes no memory and no time
        model = create_timm_model(source, options)
    parameters = inspect.signature(type(model)).parameters
    if "dynamic_img_size" in parameters:
        return {**options, "dynamic_img_size": True}
    if image_size is None or "img_size" not in parameters or not model.pretrained_cfg["fixed_input_size"]:
        return options
    return options if image_size == model.pretrained_cfg["input_size"][-1] else {**options, "img_size": image_size}


def size_step(backbone: nn.Module) -> int:
    """The number of pixels of which an image's side should be a multiple: those of a patch, or 32."""
    patch: Any = getattr(getattr(backbone, "patch_embed", None), "patch_size", 32)
    return int(patch[0] if isinstance(patch, (tuple, list)) else patch)


def _undilate(backbone: nn.Module) -> None:
    """Removes the dilation that timm adds where it removes a stride; published recipes have none."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            if isinstance(module.padding, tuple):
                module.padding = tuple(p // d for p, d in zip(module.padding, module.dilation, strict=True))
            module.dilation = (1, 1)


def is_convolutional(backbone: nn.Module) -> bool:
    """Whether most weights are in convolutions, for which the channels-last memory format is faster."""
    convolution = sum(m.weight.numel() for m in backbone.modules() if isinstance(m, nn.Conv2d))
    return convolution > 0.5 * sum(p.numel() for p in backbone.parameters())


def has_depthwise(backbone: nn.Module) -> bool:
    """Whether there is a convolution with a filter for each channel."""
    return any(m.groups == m.in_channels > 1 for m in backbone.modules() if isinstance(m, nn.Conv2d))
