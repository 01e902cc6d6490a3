"""Features of timm backbones in one layout for all families, and the pooling that fits a backbone."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import AttentionPool2d, AttentionPoolLatent, RotAttentionPool2d
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.common.modules import evaluation_mode

ATTENTION_POOLS = (AttentionPoolLatent, AttentionPool2d, RotAttentionPool2d)


def pool_features(backbone: nn.Module, pooling: nn.Module, images: Tensor, width: int | None = None) -> Tensor:
    """Runs the backbone and a pooling of :data:`hgsl.models.POOLINGS`: (B, 3, H, W) -> (B, C').

    Args:
        backbone: The timm model.
        pooling: The pooling.
        images: The images.
        width: C'; None is that of the timm model, which one without its closed channels no longer has.

    Raises:
        InputError: The backbone does not compute what the pooling reads.
    """
    features = backbone.forward_features(images)  # type: ignore[operator]
    names = getattr(pooling, "inputs", ("features",))
    pooled: Tensor = pooling(*(INPUTS[name](backbone, features) for name in names))
    width = pooled_width(backbone, pooling) if width is None else width
    if "features" in names and pooled.shape[1] != width:
        raise InputError(
            f"backbone {backbone_name(backbone)!r} has features of several layouts, of which {pooled.shape[1]} instead "
            f"of {width} are pooled: use pooling 'head' (the model's own) or 'auto'"
        )
    return pooled


def pooled_width(backbone: nn.Module, pooling: nn.Module) -> int:
    """Returns C', the number of pooled features."""
    reads_head = "head" in getattr(pooling, "inputs", ())
    return int(backbone.head_hidden_size if reads_head else backbone.num_features * int(pooling.expansion))  # type: ignore


def spatial_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Returns the last features as (B, C, h, w), or the patch tokens as (B, C, N, 1)."""
    return _spatial(backbone, backbone.forward_features(images))  # type: ignore[operator]


def default_pooling(backbone: nn.Module, image_size: int) -> str:
    """Returns the pooling that fits a backbone, by what its pretraining reads.

    - ``head`` where the model pools by attention, as SigLIP;
    - ``token`` where a class token was trained, as in DINOv2, DINOv3, DeiT and CLIP;
    - ``maxavg`` where the last features are a map, as of convolutional networks and Swin;
    - ``head`` for all others, such as the mean of the patch tokens and its norm in BEiT.

    Args:
        backbone: The timm model.
        image_size: Side in pixels of an image that the backbone takes.
    """
    if has_attention_pool(backbone):
        return "head"
    if has_class_token(backbone) and (backbone.global_pool == "token" or "dinov3" in backbone_name(backbone)):
        return "token"  # timm averages the patches of DINOv3, whose objective trains the class token
    device = next(backbone.parameters()).device
    with evaluation_mode(backbone), torch.inference_mode():
        features = backbone.forward_features(torch.zeros(1, 3, image_size, image_size, device=device))  # type: ignore[operator]
    return "maxavg" if isinstance(features, Tensor) and features.ndim == 4 else "head"


def check_pooling(backbone: nn.Module, name: str) -> None:
    """Refuses a pooling of the class token where the backbone has none.

    Raises:
        InputError: It has none, or several (CrossViT, CoaT), which its own pooling combines.
    """
    if name in ("token", "token_avg") and not has_class_token(backbone):
        raise InputError(
            f"pooling {name!r} needs a single class token, and backbone {backbone_name(backbone)!r} has none: "
            "use pooling 'head' (the model's own) or 'auto'"
        )


def has_class_token(backbone: nn.Module) -> bool:
    """Whether the first token of the features is a class token."""
    return getattr(backbone, "cls_token", None) is not None


def has_attention_pool(backbone: nn.Module) -> bool:
    """Whether the model's own pooling is an attention over the features."""
    return any(isinstance(module, ATTENTION_POOLS) for module in backbone.children())


def backbone_name(backbone: nn.Module) -> str:
    """The timm name of a backbone, or that of its class."""
    config: Any = getattr(backbone, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(backbone).__name__)


def _spatial(backbone: nn.Module, features: Any) -> Tensor:
    if isinstance(features, (tuple, list)):
        features = features[-1]  # CoaT: the patches of the coarsest scale
    tokens = features.ndim == 3
    nhwc = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    if not tokens:
        return features.permute(0, 3, 1, 2) if nhwc else features
    patches = features[:, _num_prefix_tokens(backbone) :]  # (B, N, C)
    if not patches.shape[1]:
        raise InputError(
            f"backbone {backbone_name(backbone)!r} returns its class token alone, without patches: "
            "use pooling 'token', 'head' or 'auto'"
        )
    return patches.mT.unsqueeze(-1)  # (B, C, N, 1)


def _num_prefix_tokens(backbone: Any) -> int:
    """Class, distillation and register tokens before the patches; some families of timm do not count theirs."""
    count = getattr(backbone, "num_prefix_tokens", None)
    if count is not None:
        return int(count)
    if has_class_token(backbone):
        return int(backbone.cls_token.shape[1])
    return int(hasattr(backbone, "cls_token1"))  # CoaT: one token per scale


def _class_token(backbone: nn.Module, features: Any) -> Tensor:
    check_pooling(backbone, "token")
    return features[:, 0]


def _head(backbone: nn.Module, features: Any) -> Tensor:
    return backbone.forward_head(features, pre_logits=True).flatten(1)  # type: ignore[operator]


# What a pooling may read -> (backbone, what its forward_features returned) -> the tensor.
INPUTS: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    "features": _spatial,  # (B, C, h, w), or patch tokens as (B, C, N, 1)
    "class_token": _class_token,  # (B, C)
    "head": _head,  # (B, head_hidden_size)
}
