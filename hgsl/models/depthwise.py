"""Depthwise convolutions of a backbone, which are no matrix products, for which processors have bfloat16 units."""

from functools import cache

import torch

from hgsl.common.errors import InputError
from hgsl.models.backbone import backbone_options, create_timm_model, has_depthwise
from hgsl.models.backbone_source import resolve_backbone


@cache
def has_depthwise_convolutions(backbone: str) -> bool:
    """Whether a backbone has convolutions whose channels each read one channel; takes no memory for weights.

    Args:
        backbone: As for :func:`hgsl.models.create_embedder`; False for a name that is not timm's, or not available.
    """
    try:
        source = resolve_backbone(backbone)
        options = backbone_options(source, None)
    except (InputError, FileNotFoundError):
        return False
    with torch.device("meta"):
        network = create_timm_model(source, options)
    return has_depthwise(network)
