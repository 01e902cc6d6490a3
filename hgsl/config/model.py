"""Settings of the embedding model."""

from dataclasses import dataclass
from typing import Literal

from hgsl.config.checks import refuse


@dataclass
class ModelConfig:
    """The embedding model."""

    backbone: str = "tf_efficientnet_lite0"
    """Backbone: the name of any timm model."""
    pooling: str = "maxavg"
    """Pooling of the last feature map: avg, max, maxavg (max and average concatenated), gem, or scda (maxavg over the
    positions whose activation is above the mean)."""
    embedding_size: int | None = None
    """Dimensions of the embedding after a linear projection; empty uses the pooled features."""
    weights: str = "timm"
    """Backbone weights: timm (downloads), packaged (tf_efficientnet_lite0, no network), none, or a file."""
    output_stride: int | None = None
    """Output stride of a convolutional backbone: 16 gives a finer last feature map ("last stride 1")."""
    freeze: Literal["none", "batch_norm", "stem", "backbone"] = "none"
    """Frozen part: none, the batch norms (statistics and affine parameters), the stem (the layers before the first
    stage, where timm defines them), or the whole backbone."""
    sync_bn: bool = False
    """Whether batch norms share their statistics among several processes on GPUs."""
    checkpointing: bool = False
    """Whether activations are recomputed instead of stored: less memory, about a third more time."""

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
