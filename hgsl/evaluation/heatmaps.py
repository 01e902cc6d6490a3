"""Heat maps of a pair of images: which parts of each make the cosine similarity of their embeddings.

The pooled features are sums over positions: an average has a share from every position, a maximum one from the position
where it is reached. Projection and whitening are linear up to a constant, and so the cosine of an image with a fixed
other embedding is a sum over the positions of its last feature map, plus that constant. By Euler's theorem the share of
a position is its features times the gradient with respect to them, with the norms held fixed. This is exact for all
poolings over positions. Poolings that read a class token, or attention, mix the patches in the last block: there the
shares are those of the patch tokens that enter that block, to first order.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from hgsl.common.errors import InputError
from hgsl.common.modules import evaluation_mode
from hgsl.evaluation.knn.vectors import Floats


class PairHeat(NamedTuple):
    """Heat maps of two images, whose sum and constant are the cosine similarity.

    Attributes:
        similarity: Cosine similarity of the two embeddings.
        one: (h, w) shares of the positions of the first image.
        other: (h, w) shares of the positions of the second image.
        constants: The rest of the similarity for each of the two, from biases and the mean of a whitening.
        exact: Whether share and constant add up to the similarity.
    """

    similarity: float
    one: Floats
    other: Floats
    constants: tuple[float, float]
    exact: bool


def explain_pair(model: nn.Module, one: Image.Image, other: Image.Image) -> PairHeat:
    """Returns the heat maps of two images.

    >>> heat = explain_pair(model, Image.open("a.jpg"), Image.open("b.jpg"))    # doctest: +SKIP
    >>> show_heat(model, Image.open("a.jpg"), heat.one).save("a_heat.png")      # doctest: +SKIP

    Args:
        model: Returned by ``create_embedder`` or ``load_embedder``; of its views in evaluation mode, the plain one.
        one, other: RGB images.

    Raises:
        InputError: The model is no embedder, or its features have no positions.
    """
    if not all(hasattr(model, name) for name in ("backbone", "pooling", "projection", "transform")):
        raise InputError(f"model is a {type(model).__name__}: expected what create_embedder or load_embedder returns")
    network: Any = model
    transform = network.transform()
    device = next(model.parameters()).device
    images = torch.stack([transform(one.convert("RGB")), transform(other.convert("RGB"))]).to(device)
    with evaluation_mode(model), torch.inference_mode(False), torch.enable_grad():
        leaf, pooled = _pooled(network, images)
        embeddings = _embed(network, pooled)
        similarity = float(embeddings.detach()[0] @ embeddings.detach()[1])
        # Each embedding is a function of its own image's features only.
        score = (embeddings * embeddings.detach().flip(0)).sum()
        [gradient] = torch.autograd.grad(score, leaf)
    shares = (leaf.detach() * gradient).float()
    maps = _positions(network, shares, images.shape[-2:])
    constants = similarity - maps.sum(dim=(1, 2))
    exact = not _mixes_tokens(network)
    first, second = maps.cpu().numpy()
    return PairHeat(similarity, first, second, (float(constants[0]), float(constants[1])), exact)


def show_heat(model: nn.Module, image: Image.Image, heat: Floats, strength: float = 0.6) -> Image.Image:
    """Returns the part of an image that the model reads, with its positive shares in red and negative ones in blue.

    Args:
        model: As in :func:`explain_pair`.
        image: RGB.
        heat: (h, w) shares.
        strength: Opacity of the largest share.
    """
    network: Any = model
    pixels = network.transform()(image.convert("RGB"))  # (3, S, S), normalized
    mean, std = (torch.tensor(network.data_config[name]).view(3, 1, 1) for name in ("mean", "std"))
    view = (pixels * std + mean).clamp(0, 1)
    values = torch.from_numpy(np.ascontiguousarray(heat))[None, None].float()
    smooth = F.interpolate(values, size=view.shape[-2:], mode="bicubic", align_corners=False)[0, 0]
    opacity = strength * (smooth / smooth.abs().max().clamp(min=1e-12)).abs()
    red, blue = (torch.tensor(color).view(3, 1, 1) for color in ([0.9, 0.1, 0.1], [0.1, 0.3, 0.9]))
    color = torch.where(smooth >= 0, red, blue)
    gray = view.mean(dim=0, keepdim=True) * 0.5 + view * 0.5
    mixed = gray * (1 - opacity) + color * opacity
    return Image.fromarray((255 * mixed).round().byte().permute(1, 2, 0).numpy())


def _embed(model: Any, pooled: Tensor) -> Tensor:
    """Projects, normalizes and whitens pooled features (2, C'), with the norms as constants."""
    projected = model.projection(pooled).float()
    unit = projected / projected.detach().norm(dim=1, keepdim=True)
    whitening = getattr(model, "whitening", None)
    if whitening is None or isinstance(whitening, nn.Identity):
        return unit
    centered = unit - whitening.mean
    values = centered if whitening.matrix is None else centered @ whitening.matrix
    return values / values.detach().norm(dim=1, keepdim=True)


def _pooled(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The features whose shares are computed, as a leaf of the graph, and the pooled features (2, C') after them."""
    if _mixes_tokens(model):
        leaves: list[Tensor] = []
        with _leaf_before(model.backbone.blocks[-1], leaves):
            pooled = model.pooled(images)
        return leaves[0], pooled
    with torch.no_grad():
        features = model.backbone.forward_features(images)
    reads_features = _inputs(model) == ("features",)
    if not isinstance(features, Tensor) or features.ndim not in ((3, 4) if reads_features else (4,)):
        raise InputError(f"heat maps need features with positions, which {type(model.backbone).__name__} lacks")
    leaf = features.detach().clone().requires_grad_()
    if reads_features:
        return leaf, model.pooling(_spatial(model, leaf))
    return leaf, model.backbone.forward_head(leaf, pre_logits=True).flatten(1)


def _spatial(model: Any, features: Tensor) -> Tensor:
    """Features as the poolings read them: (2, C, h, w), or the patch tokens as (2, C, N, 1)."""
    if features.ndim == 3:
        return features[:, _prefix(model) :].mT.unsqueeze(-1)
    return features.permute(0, 3, 1, 2) if _is_channels_last(model) else features


@contextmanager
def _leaf_before(block: nn.Module, leaves: list[Tensor]) -> Iterator[None]:
    """Cuts the graph before a block, in this thread; ``leaves`` gets the tokens that enter it."""
    thread = threading.get_ident()

    def cut(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != thread:
            return None
        leaves.append(inputs[0].detach().clone().requires_grad_())
        return (leaves[-1], *inputs[1:])

    handle = block.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def _mixes_tokens(model: Any) -> bool:
    """Whether the pooling reads more than the features at each position, from a network of attention blocks."""
    blocks: Any = getattr(model.backbone, "blocks", None)
    return _inputs(model) != ("features",) and bool(blocks) and hasattr(blocks[-1], "attn")


def _inputs(model: Any) -> tuple[str, ...]:
    return tuple(getattr(model.pooling, "inputs", ("features",)))


def _prefix(model: Any) -> int:
    return int(getattr(model.backbone, "num_prefix_tokens", 0))


def _is_channels_last(model: Any) -> bool:
    return "NHWC" in str(getattr(model.backbone, "output_fmt", "NCHW"))


def _positions(model: Any, shares: Tensor, size: Any) -> Tensor:
    """Sums the shares (2, ...) of the channels at each position: (2, h, w)."""
    if shares.ndim == 4:
        return shares.sum(dim=3 if _is_channels_last(model) else 1)
    tokens = shares[:, _prefix(model) :].sum(dim=2)  # (2, N)
    patch: Any = getattr(model.backbone, "patch_embed", None)
    height, width = (int(side) // int(step) for side, step in zip(size, patch.patch_size, strict=True))
    if tokens.shape[1] != height * width:
        raise InputError(f"the {tokens.shape[1]} tokens of {type(model.backbone).__name__} are no grid of patches")
    return tokens.unflatten(1, (height, width))
