"""Construction of an embedder by name, with its weights, or from its saved architecture."""

from collections.abc import Sequence
from typing import Any

import timm

from hgsl.common.errors import InputError, unknown
from hgsl.models.backbone import create_backbone
from hgsl.models.backbone_source import BackboneSource, check_timm_name, resolve_backbone
from hgsl.models.embedder import Embedder
from hgsl.models.features import check_pooling, default_pooling
from hgsl.models.image_size import create_at_size
from hgsl.models.pooling import CHOICES, POOLINGS
from hgsl.models.weights import check_weights_source, load_backbone_weights

MAX_IMAGE_SIZE = 4096  # pixels per side


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
        backbone: Any timm model with feature maps or tokens: its name; ``hf-hub:OWNER/NAME`` of a timm model on the
            Hugging Face Hub; or ``local-dir:FOLDER`` of one that timm has saved.
        pooling: Of feature maps or patch tokens: ``avg``, ``max``, ``maxavg`` (max and average side by side), ``gem``
            or ``scda``. Of transformers: ``token`` (class token) or ``token_avg`` (class token and mean of the patch
            tokens side by side). Of any model: ``head`` (its own pooling, such as the attention pooling of SigLIP).
            ``auto`` is the one that fits the backbone, see :func:`hgsl.models.features.default_pooling`.
        embedding_size: D, the output size of a linear projection; None returns the pooled features.
        weights: Weights of the backbone: ``timm`` (pretrained: downloaded, or those in the folder), ``packaged``
            (ImageNet weights that need no network: of tf_efficientnet_lite0, and with the extras ``lite1`` and
            ``lite2`` of these), ``none`` (random), or a file.
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
    source = resolve_backbone(backbone)

    def build(side: int | None) -> Embedder:
        return _build(source, pooling, embedding_size, output_stride, side)

    def create(side: int | None) -> Embedder:
        model = build(side)
        load_backbone_weights(model.backbone, source, weights, side)
        return model

    return create(None) if image_size is None else create_at_size(create, build, image_size, backbone)


def build_embedder(
    backbone: str,
    pooling: str,
    embedding_size: int | None,
    output_stride: int | None,
    image_size: int | None,
    *,
    model_args: dict[str, Any],
    flip: bool,
    scales: Sequence[float],
    whitening: int | str | None,
) -> Embedder:
    """Builds a model from its ``architecture``, with random weights and without a check of the image size.

    Args:
        backbone: A model name of timm.
        pooling, embedding_size, output_stride, image_size: As in :func:`create_embedder`.
        model_args: Further arguments of the backbone, of one that was built from the Hub or a folder.
        flip, scales: The views of :meth:`Embedder.set_views`.
        whitening: E of the whitened embeddings, "mean" for mean removal, or None.

    Raises:
        InputError: An unknown name, or an option that the backbone does not take.
    """
    check_timm_name(backbone)
    source = BackboneSource(backbone, backbone, model_args)
    model = _build(source, pooling, embedding_size, output_stride, image_size)
    model.architecture |= {"flip": flip, "scales": list(scales)}
    model.build_whitening(whitening)
    return model


def _build(
    source: BackboneSource,
    pooling: str,
    embedding_size: int | None,
    output_stride: int | None,
    image_size: int | None,
) -> Embedder:
    if pooling not in POOLINGS and pooling not in CHOICES:
        raise unknown("pooling", pooling, [*CHOICES, *POOLINGS])
    network = create_backbone(source, output_stride, image_size)
    side = image_size or timm.data.resolve_model_data_config(network)["input_size"][-1]
    name = default_pooling(network, side) if pooling == "auto" else pooling
    check_pooling(network, name)
    architecture = {
        "backbone": source.architecture,
        "model_args": source.model_args,
        "pooling": name,
        "embedding_size": embedding_size,
        "output_stride": output_stride,
        "flip": False,
        "scales": [1.0],
    }
    model = Embedder(network, POOLINGS[name](), embedding_size, architecture)
    model.data_config["image_size"] = side
    model.build_whitening(None)
    return model
