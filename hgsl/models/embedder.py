"""The model of this package: backbone -> pooling -> projection -> unit norm."""

from typing import Any

import timm
from torch import Tensor, nn
from torch.nn import functional as F

from hgsl.common.errors import InputError, unknown
from hgsl.common.transforms import Transform, eval_transform, train_transform
from hgsl.models.backbone import create_backbone, is_convolutional, spatial_features
from hgsl.models.pooling import POOLINGS
from hgsl.models.weights import load_backbone_weights


class Embedder(nn.Module):
    """Maps images (B, 3, H, W) to unit vectors (B, D), float32 whatever the precision of the backbone.

    Attributes:
        backbone: The timm model, without a classifier.
        pooling: One of :data:`hgsl.models.POOLINGS`.
        projection: A linear layer to ``embedding_size``, or nothing.
        embedding_size: D.
        data_config: Preprocessing in timm's terms (``mean``, ``std``, ``interpolation``, ``crop_pct``, ...), and
            ``image_size``, the side in pixels of the square input. Saved and loaded with the model.
        architecture: The arguments that build this model again, without its weights.
    """

    def __init__(
        self, backbone: nn.Module, pooling: nn.Module, embedding_size: int | None, architecture: dict[str, Any]
    ):
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        pooled = int(backbone.num_features) * int(pooling.expansion)  # type: ignore[arg-type]
        self.projection = nn.Identity() if embedding_size is None else nn.Linear(pooled, embedding_size)
        self.embedding_size = pooled if embedding_size is None else embedding_size
        self.data_config: dict[str, Any] = timm.data.resolve_model_data_config(backbone)
        self.data_config["image_size"] = self.data_config["input_size"][-1]
        self.architecture = architecture
        self.is_convolutional = is_convolutional(backbone)

    def transform(self, train: bool = False, image_size: int | None = None) -> Transform:
        """Returns the transform from an RGB image of any size to the input (3, S, S) of this model.

        Args:
            train: Whether to return the random transform of training; the fixed one of evaluation otherwise.
            image_size: S in pixels; None takes ``data_config["image_size"]``.
        """
        side = self.data_config["image_size"] if image_size is None else image_size
        if train:
            return train_transform(self.data_config, side)
        return eval_transform(self.data_config, side, crop_pct=self.data_config["crop_pct"])

    def pooled(self, images: Tensor) -> Tensor:
        """Returns the features before projection and normalization: (B, 3, H, W) -> (B, C')."""
        return self.pooling(spatial_features(self.backbone, images))

    def head(self, pooled: Tensor) -> Tensor:
        """Projects and normalizes: (B, C') -> (B, D), unit norm."""
        return F.normalize(self.projection(pooled).float(), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pooled(images))


def create_embedder(
    backbone: str,
    pooling: str = "maxavg",
    embedding_size: int | None = None,
    weights: str = "timm",
    output_stride: int | None = None,
    image_size: int | None = None,
) -> Embedder:
    """Builds a model that maps images (B, 3, H, W) to unit vectors (B, D).

    Args:
        backbone: Any timm model with feature maps or tokens, by timm name.
        pooling: ``avg``, ``max``, ``maxavg`` (max and average side by side), ``gem`` or ``scda``.
        embedding_size: D, reached by a linear projection; None keeps the pooled features as they are.
        weights: Of the backbone: ``timm`` (pretrained, from the hub), ``packaged`` (ImageNet weights of
            tf_efficientnet_lite0 that come with the installation, no network needed), ``none`` (random), or a file.
        output_stride: Input pixels to one place of the last feature map (16 is "last stride 1"), for convolutional
            families that have it; None keeps the family's own, mostly 32.
        image_size: Side in pixels of the square input; None takes the size the backbone was pretrained with.

    Returns:
        The :class:`Embedder`, in training mode, on the CPU.

    Raises:
        InputError: An unknown name, an option that the backbone does not take, or weights that do not fit.
        FileNotFoundError: The weights file is missing.
    """
    if pooling not in POOLINGS:
        raise unknown("pooling", pooling, POOLINGS)
    if embedding_size is not None and embedding_size < 1:
        raise InputError(
            f"embedding_size must be a positive number, found {embedding_size}: None keeps the pooled size"
        )
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size must be a positive number of pixels, found {image_size}")
    network = create_backbone(backbone, output_stride)
    load_backbone_weights(network, backbone, weights)
    architecture = {
        "backbone": backbone,
        "pooling": pooling,
        "embedding_size": embedding_size,
        "output_stride": output_stride,
    }
    model = Embedder(network, POOLINGS[pooling](), embedding_size, architecture)
    if image_size is not None:
        model.data_config["image_size"] = image_size
    return model
