"""The embedding model: backbone -> pooling -> projection -> L2 normalization."""

from typing import Any

import timm
from torch import Tensor, nn
from torch.nn import functional as F

from hgsl.common.errors import InputError, unknown
from hgsl.common.transforms import Transform, eval_transform, train_transform
from hgsl.models.backbone import create_backbone, is_convolutional
from hgsl.models.features import check_pooling, default_pooling, pool_features, pooled_width
from hgsl.models.image_size import create_at_size
from hgsl.models.pooling import CHOICES, POOLINGS
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
        pooled = pooled_width(backbone, pooling)
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
        return pool_features(self.backbone, self.pooling, images)

    def _pooled_of_one(self, image: Tensor) -> Tensor:
        try:
            return pool_features(self.backbone, self.pooling, image)
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
    pooling: str = "auto",
    embedding_size: int | None = None,
    weights: str = "timm",
    output_stride: int | None = None,
    image_size: int | None = None,
) -> Embedder:
    """Builds a model that maps images (B, 3, H, W) to unit vectors (B, D).

    Args:
        backbone: Name of any timm model with feature maps or tokens.
        pooling: Of feature maps or patch tokens: ``avg``, ``max``, ``maxavg`` (max and average side by side), ``gem``
            or ``scda``. Of transformers: ``token`` (class token) or ``token_avg`` (class token and mean of the patch
            tokens side by side). Of any model: ``head`` (its own pooling, such as the attention pooling of SigLIP).
            ``auto`` is the one that fits the backbone, see :func:`hgsl.models.features.default_pooling`.
        embedding_size: D, the output size of a linear projection; None returns the pooled features.
        weights: Weights of the backbone: ``timm`` (pretrained, downloaded), ``packaged`` (ImageNet weights that
            need no network: of tf_efficientnet_lite0, and with the extras ``lite1`` and ``lite2`` of these), ``none``
            (random), or a file.
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
    if embedding_size is not None and embedding_size < 1:
        raise InputError(f"embedding_size must be a positive integer, found {embedding_size}: None means no projection")
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise InputError(f"image_size must be 1 to {MAX_IMAGE_SIZE} pixels, found {image_size}")
    check_weights_source(weights, backbone)

    def build(side: int | None) -> Embedder:
        return build_embedder(backbone, pooling, embedding_size, output_stride, side)

    def create(side: int | None) -> Embedder:
        model = build(side)
        load_backbone_weights(model.backbone, backbone, weights, side)
        return model

    return create(None) if image_size is None else create_at_size(create, build, image_size, backbone)


def build_embedder(
    backbone: str, pooling: str, embedding_size: int | None, output_stride: int | None, image_size: int | None
) -> Embedder:
    """Builds the model of :func:`create_embedder` with random weights and without a check of the image size."""
    if pooling not in POOLINGS and pooling not in CHOICES:
        raise unknown("pooling", pooling, [*CHOICES, *POOLINGS])
    network = create_backbone(backbone, output_stride, image_size)
    side = image_size or timm.data.resolve_model_data_config(network)["input_size"][-1]
    name = default_pooling(network, side) if pooling == "auto" else pooling
    check_pooling(network, name)
    architecture = {
        "backbone": backbone,
        "pooling": name,
        "embedding_size": embedding_size,
        "output_stride": output_stride,
    }
    model = Embedder(network, POOLINGS[name](), embedding_size, architecture)
    model.data_config["image_size"] = side
    return model
