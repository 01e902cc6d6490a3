"""Class centres that start where the classes already are, so that the first steps do not tear up what is known."""

import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.data import RetrievalDataset
from hgsl.engine.build import Place
from hgsl.evaluation import embed
from hgsl.losses import ShardedHardGlobalSoftminLoss
from hgsl.models import Embedder


def start_at_means(loss_fn: nn.Module, model: Embedder, images: RetrievalDataset, place: Place, batch: int) -> None:
    """Puts each class centre at the direction of the mean embedding of its images, ``mean(x) / |mean(x)|``.

    Args:
        loss_fn: Ours, or one of pytorch-metric-learning's that holds one vector a class.
        model: Embeds the images as it is now.
        images: The training images without augmentation.
        place: Where to compute.
        batch: Images a forward pass.

    Raises:
        InputError: The loss holds no vector a class.
    """
    centers = _class_vectors(loss_fn, images.num_classes, model.embedding_size)
    found = embed(
        model, images, batch_size=batch, num_workers=place.workers, device=place.device, precision=place.precision
    )
    sums = torch.zeros(images.num_classes, model.embedding_size)
    sums.index_add_(0, torch.from_numpy(found.labels), torch.from_numpy(found.embeddings))
    means = nn.functional.normalize(sums, dim=1)
    if isinstance(loss_fn, ShardedHardGlobalSoftminLoss):
        means = means[loss_fn.first_class :][: len(centers)]
    with torch.no_grad():
        centers.copy_(means if centers.shape == means.shape else means.T)


def _class_vectors(loss_fn: nn.Module, classes: int, width: int) -> Tensor:
    if isinstance(loss_fn, ShardedHardGlobalSoftminLoss):
        return loss_fn.centers
    fitting = [p for p in loss_fn.parameters() if p.shape in ((classes, width), (width, classes))]
    if len(fitting) != 1:
        raise InputError(
            f"loss.centers 'class_means' needs a loss with one vector a class, and {type(loss_fn).__name__} has none: "
            "leave it at 'random'"
        )
    return fitting[0]
