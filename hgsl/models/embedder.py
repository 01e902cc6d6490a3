"""The embedding model: backbone -> pooling -> projection -> L2 normalization."""

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgsl.common.errors import InputError, first_line, unknown
from hgsl.common.modules import evaluation_mode
from hgsl.common.transforms import Transform, eval_transform, train_transform
from hgsl.models.backbone import create_backbone, is_convolutional, spatial_features
from hgsl.models.pooling import POOLINGS
from hgsl.models.weights import check_weights_source, load_backbone_weights

MAX_IMAGE_SIZE = 4096  # pixels per side


class Embedder(nn.Module):
    """Maps images (B, 3, H, W) to unit vectors (B, D), in float32 whatever the precision of the backbone.

    Attributes:
        backbone: The timm model, without a classifier.
        pooling: One of :data:`hgsl.models.POOLINGS`.
        projection: A linear layer to ``embedding_size``, or the identity.
        embedding_size: D.
        data_config: Preprocessing in timm's terms (``mean``, ``std``, ``interpolation``, ``crop_pct``, ...), and
            ``image_size``, the side in pixels of the square input. Saved and loaded with the model.
        architecture: The arguments of ``create_embedder`` that build this model again, without its weights.
        is_convolutional: Whether most weights are in convolutions, so that the channels-last memory format is faster.
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
            train: Whether to return the random transform of training instead of the fixed one of evaluation.
            image_size: S in pixels; None takes ``data_config["image_size"]``.
        """
        side = self.data_config["image_size"] if image_size is None else image_size
        if train:
            return train_transform(self.data_config, side)
        return eval_transform(self.data_config, side, crop_pct=self.data_config["crop_pct"])

    def pooled(self, images: Tensor) -> Tensor:
        """Returns the features before projection and normalization: (B, 3, H, W) -> (B, C').

        Raises:
            InputError: One image in training mode, where batch norm has a single value per channel.
        """
        if self.training and len(images) == 1:
            return self._pooled_of_one(images)
        return self.pooling(spatial_features(self.backbone, images))

    def _pooled_of_one(self, image: Tensor) -> Tensor:
        try:
            return self.pooling(spatial_features(self.backbone, image))
        except ValueError as error:  # raised by torch.nn.functional.batch_norm
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"a batch of one image of {image.shape[-1]} pixels has a single value per channel, too few for batch "
                "norm in training mode: use larger batches or images, or model.eval()"
            ) from error

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
        backbone: Name of any timm model with feature maps or tokens.
        pooling: ``avg``, ``max``, ``maxavg`` (max and average concatenated), ``gem`` or ``scda``.
        embedding_size: D, the output size of a linear projection; None returns the pooled features.
        weights: Weights of the backbone: ``timm`` (pretrained, downloaded), ``packaged`` (ImageNet weights of
            tf_efficientnet_lite0 that are installed with hgsl, no network needed), ``none`` (random), or a file.
        output_stride: Input pixels per position of the last feature map (16 is "last stride 1"), for convolutional
            families with that option; None keeps the default of the family, mostly 32.
        image_size: Side in pixels of the square input, checked with one forward pass; None takes the size that the
            backbone was pretrained with.

    Returns:
        The :class:`Embedder`, in training mode, on the CPU.

    Raises:
        InputError: An unknown name, an option or image size that the backbone does not take, or weights that do not
            fit or cannot be downloaded.
        FileNotFoundError: The weights file is missing.
    """
    if pooling not in POOLINGS:
        raise unknown("pooling", pooling, POOLINGS)
    if embedding_size is not None and embedding_size < 1:
        raise InputError(f"embedding_size must be a positive integer, found {embedding_size}: None means no projection")
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise InputError(f"image_size must be 1 to {MAX_IMAGE_SIZE} pixels, found {image_size}")
    check_weights_source(weights, backbone)
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
        check_image_size(model)
    return model


def check_image_size(model: Embedder) -> None:
    """Embeds noise, so that an image size that the backbone does not take is reported before any image is read."""
    side, name = model.data_config["image_size"], model.architecture["backbone"]
    count = max(1, min(16, (64 // side) ** 2))  # small images leave only some embeddings zero
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        with evaluation_mode(model), torch.inference_mode():
            features = model.pooled(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        pretrained = model.data_config["input_size"][-1]
        raise InputError(
            f"backbone {name!r} does not take images of {side} pixels ({first_line(error)}): set image_size "
            f"(data.image_size in a config) to {pretrained} or another multiple of its patch size"
        ) from None
    if not features.any(dim=1).all():
        raise InputError(
            f"images of {side} pixels are too small for backbone {name!r}, since the features of some are all zero: "
            "set image_size (data.image_size in a config) to 32 or more"
        )
