"""Class centers: initialization at the class means, and their similarity."""

import torch
from torch import Tensor, nn

from hgsl.config import LossConfig
from hgsl.config.training import FEW_CLASSES
from hgsl.data import RetrievalDataset
from hgsl.engine.parts.head import Head, PooledSet
from hgsl.engine.runtime import Runtime
from hgsl.evaluation import embed
from hgsl.losses import HardGlobalSoftminLoss, ShardedHardGlobalSoftminLoss
from hgsl.models import Embedder

CHUNK = 4096  # centers compared at a time, and maximum number compared with all others


def starts_at_means(settings: LossConfig, classes: int) -> bool:
    """Whether the centers of so many classes start at the class means."""
    return settings.centers == "class_means" or (settings.centers == "auto" and classes >= FEW_CLASSES)


def start_centers(
    loss_fn: nn.Module,
    settings: LossConfig,
    model: Embedder | Head,
    images: RetrievalDataset | PooledSet,
    runtime: Runtime,
    batch: int,
) -> None:
    """Initializes the centers by ``settings.centers``; losses of other libraries keep their own initialization."""
    if starts_at_means(settings, images.num_classes) and isinstance(loss_fn, HardGlobalSoftminLoss):
        start_at_means(loss_fn, model, images, runtime, batch)


def start_at_means(
    loss_fn: HardGlobalSoftminLoss,
    model: Embedder | Head,
    images: RetrievalDataset | PooledSet,
    runtime: Runtime,
    batch: int,
) -> None:
    """Sets each class center to the direction of the mean embedding of its images, ``sqrt(D) mean(x) / |mean(x)|``.

    The loss uses only directions. The length is that of random centers, so that one learning rate suits both: a step of
    Adam changes every coordinate by about the rate, which would rotate short vectors too far.

    Args:
        loss_fn: The loss whose centers, or this process's shard of them, are set.
        model: Model that embeds the images.
        images: The training images without augmentation.
        runtime: Device and precision.
        batch: Images per forward pass.
    """
    vectors = embed(
        model,
        images,
        batch_size=batch,
        num_workers=runtime.workers,
        device=runtime.device,
        dtype=runtime.dtype,
    )
    sums = torch.zeros(images.num_classes, model.embedding_size)
    sums.index_add_(0, torch.from_numpy(vectors.labels), torch.from_numpy(vectors.embeddings))
    means = model.embedding_size**0.5 * nn.functional.normalize(sums, dim=1)
    if isinstance(loss_fn, ShardedHardGlobalSoftminLoss):
        means = means[loss_fn.first_class :][: len(loss_fn.centers)]
    with torch.no_grad():
        loss_fn.centers.copy_(means)


def class_vectors(loss_fn: nn.Module, classes: int, width: int) -> Tensor | None:
    """The vectors of the classes, (C, D), or this process's shard of them; None for a loss without any."""
    if isinstance(loss_fn, ShardedHardGlobalSoftminLoss):
        return loss_fn.centers
    candidates = [p for p in loss_fn.parameters() if p.shape in ((classes, width), (width, classes))]
    if len(candidates) != 1:
        return None
    return candidates[0] if candidates[0].shape[1] == width else candidates[0].T


@torch.no_grad()
def nearest_similarity(centers: Tensor) -> float | None:
    """Returns the mean over classes of the cosine to the nearest other center, near 1 where the centers collapse.

    With more than ``CHUNK`` classes, at most as many evenly spaced ones are compared with all. None for fewer than two,
    as a process may hold of sharded centers.

    Args:
        centers: (C, D), of any length; the shard of a process if they are sharded.
    """
    if len(centers) < 2:
        return None
    sample = torch.arange(0, len(centers), -(-len(centers) // CHUNK), device=centers.device)
    unit = nn.functional.normalize(centers[sample].float(), dim=1)
    nearest = torch.full((len(unit),), -1.0, device=centers.device)
    for start in range(0, len(centers), CHUNK):
        cosines = unit @ nn.functional.normalize(centers[start : start + CHUNK].float(), dim=1).T
        itself = torch.arange(start, start + cosines.shape[1], device=centers.device) == sample[:, None]
        nearest = torch.maximum(nearest, cosines.masked_fill(itself, -1.0).amax(dim=1))
    return float(nearest.mean())
