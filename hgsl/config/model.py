"""Settings of the embedding model."""

from dataclasses import dataclass, field
from typing import Literal

from hgsl.config.checks import check_finite, refuse

PACKAGED = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")  # as hgsl.models.weights


@dataclass
class LoraConfig:
    """Low-rank adapters of the backbone's linear layers (extra lora)."""

    rank: int = 0
    """Rank of the adapters that train in place of the backbone; 0 for none."""
    alpha: float = 16.0
    """Scale of the adapters, times 1 / rank."""
    targets: Literal["auto"] | list[str] = "auto"
    """Layers with an adapter: auto for all linear ones of the backbone, or the ends of their names, such as [qkv]."""

    def __post_init__(self) -> None:
        check_finite("model.lora", self)
        refuse(self.rank < 0, f"model.lora.rank cannot be negative, found {self.rank}")
        refuse(self.alpha <= 0, f"model.lora.alpha must be positive, found {self.alpha}")


@dataclass
class ModelConfig:
    """The embedding model."""

    backbone: str = "tf_efficientnet_lite0"
    """Backbone: the name of any timm model, hf-hub:OWNER/NAME of one on the Hub, or local-dir:FOLDER of one
    that timm saved."""
    pooling: str = "auto"
    """Pooling to one vector. auto fits the backbone: token where a class token was trained (DINOv2, DINOv3, CLIP), head
    for attention-pooled models (SigLIP) and other token models, maxavg for feature maps (convolutional networks). Of
    maps or patch tokens: avg, max, maxavg (both concatenated), gem, scda (both over the positions whose activation is
    above the mean); of class tokens: token, token_avg (with the mean of the patch tokens beside it); head is the
    pooling of the model itself."""
    embedding_size: int | None = None
    """Dimensions of the embedding after a linear projection; empty uses the pooled features."""
    weights: str = "timm"
    """Backbone weights: timm (downloads; of a backbone on the Hub or in a folder its own), packaged (no network:
    tf_efficientnet_lite0, and lite1 and lite2 with the extras of these names), none, or a file."""
    output_stride: int | None = None
    """Output stride of a convolutional backbone: 16 gives a finer last feature map ("last stride 1")."""
    freeze: Literal["none", "batch_norm", "stem", "backbone"] = "none"
    """Frozen part: none, the batch norms (statistics and affine parameters), the stem (the layers before the first
    stage, where timm defines them), or the whole backbone."""
    freeze_depth: float = 0.0
    """Share of the backbone's layers, in timm's groups (the stem and the stages or blocks), that is frozen besides
    freeze, from the first layer on: a step has no backward pass through them, and early layers serve new classes as
    they are. Adapters and masks are trained in all layers."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters; they are merged into the weights of the model that is saved."""
    sync_bn: bool = False
    """Whether batch norms share their statistics among several processes on GPUs."""
    checkpointing: bool = False
    """Whether activations are recomputed instead of stored: less memory, about a third more time."""

    def __post_init__(self) -> None:
        check_finite("model", self)
        refuse(
            self.weights == "packaged" and self.backbone not in PACKAGED,
            f"model.weights 'packaged' are those of {', '.join(PACKAGED)}, but model.backbone is {self.backbone!r}: "
            "change one of the two",
        )
        refuse(
            self.lora.rank > 0 and self.freeze not in ("none", "batch_norm"),
            f"model.lora trains adapters of the backbone, but model.freeze is {self.freeze!r}: use none or batch_norm",
        )
        refuse(
            not 0 <= self.freeze_depth < 1,
            f"model.freeze_depth must lie from 0 to below 1, found {self.freeze_depth}: for 1, set model.freeze "
            "backbone",
        )
        refuse(
            self.embedding_size is not None and self.embedding_size < 1,
            f"model.embedding_size must be positive or empty, found {self.embedding_size}",
        )
