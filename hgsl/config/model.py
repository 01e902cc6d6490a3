"""The embedding model, and the masks that make it sparse."""

from dataclasses import dataclass
from typing import Literal

from hgsl.config.checks import refuse


@dataclass
class ModelConfig:
    """The embedding model."""

    backbone: str = "tf_efficientnet_lite0"
    """Any timm model name."""
    pooling: str = "maxavg"
    """Pooling of the last feature map to one vector: avg, max, maxavg (both side by side), gem, or scda (both over the
    positions whose activation is above the mean)."""
    embedding_size: int | None = None
    """Dimensions of the embedding, reached by a linear projection; empty keeps the pooled features."""
    weights: str = "timm"
    """Backbone weights: timm (downloads), packaged (tf_efficientnet_lite0, no network), none, or a file."""
    output_stride: int | None = None
    """16 gives convolutional backbones a finer last feature map ("last stride 1"); empty keeps their own."""
    freeze: Literal["none", "batch_norm", "stem", "backbone"] = "none"
    """What does not train: nothing, the batch norms (statistics and affine), the stem (what comes before the first
    stage, where timm tells it), or the whole backbone."""
    sync_bn: bool = False
    """With several processes on GPUs, whether batch norms share their statistics."""
    checkpointing: bool = False
    """Whether activations are computed twice instead of kept: less memory, about a third more time."""

    def __post_init__(self) -> None:
        refuse(
            self.weights == "packaged" and self.backbone != "tf_efficientnet_lite0",
            f"model.weights 'packaged' are those of tf_efficientnet_lite0, but model.backbone is {self.backbone!r}: "
            "change one of the two",
        )
        refuse(
            self.embedding_size is not None and self.embedding_size < 1,
            f"model.embedding_size must be positive or empty, found {self.embedding_size}",
        )
