"""timm backbones as feature extractors, with one layout of the last feature map for all families."""

import inspect
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError, nearest


def create_backbone(name: str, output_stride: int | None = None) -> nn.Module:
    """Returns the timm model ``name`` without its classifier and with random weights.

    Args:
        name: A timm model name, such as ``resnet50`` or ``vit_small_patch16_224``.
        output_stride: Input pixels per position of the last feature map (8 or 16 instead of the usual 32: "last stride
            1"), where the family has that option; strides are removed without adding dilation.

    Raises:
        InputError: timm has no such model, or the family has no ``output_stride``.
    """
    if not timm.is_model(name):
        close = nearest(name, timm.list_models())
        hint = f"did you mean {close!r}? " if close else ""
        raise InputError(f"unknown backbone {name!r}: {hint}timm.list_models() lists all of them")
    options: dict[str, Any] = {"num_classes": 0}
    if output_stride is not None:
        options["output_stride"] = output_stride
    # Position embeddings are interpolated in the forward pass, so transformers take any image size as convnets do.
    if "dynamic_img_size" in inspect.signature(_model_class(name)).parameters:
        options["dynamic_img_size"] = True
    try:
        backbone = timm.create_model(name, **options)
    except (TypeError, NotImplementedError, AssertionError) as error:
        if output_stride is None:
            raise
        raise InputError(
            f"backbone {name!r} does not take output_stride {output_stride}: leave model.output_stride empty, "
            "or use a convolutional family such as resnet or efficientnet"
        ) from error
    if output_stride is not None:
        _undilate(backbone)
    return backbone


def _undilate(backbone: nn.Module) -> None:
    """Removes the dilation that timm adds where it removes a stride; published recipes have none."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            if isinstance(module.padding, tuple):
                module.padding = tuple(p // d for p, d in zip(module.padding, module.dilation, strict=True))
            module.dilation = (1, 1)


def _model_class(name: str) -> type:
    """Returns the class of the timm model ``name``, from an instance on the meta device, which takes little time."""
    with torch.device("meta"):
        return type(timm.create_model(name, num_classes=0))


def spatial_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Returns the last features as (B, C, h, w), or tokens as (B, C, N, 1) without class and register tokens."""
    features = backbone.forward_features(images)  # type: ignore[operator]
    if isinstance(features, (tuple, list)):
        features = features[-1]
    if features.ndim == 3:
        features = features[:, getattr(backbone, "num_prefix_tokens", 0) :]  # (B, N, C)
        return features.mT.unsqueeze(-1)  # (B, C, N, 1)
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    return features


def is_convolutional(backbone: nn.Module) -> bool:
    """Whether most weights are in convolutions, for which the channels-last memory format is faster."""
    convolution = sum(m.weight.numel() for m in backbone.modules() if isinstance(m, nn.Conv2d))
    return convolution > 0.5 * sum(p.numel() for p in backbone.parameters())
