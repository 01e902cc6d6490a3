"""Head training: the backbone runs once over the images, and the projection trains on its pooled features."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hgsl.common.random_state import seeded_torch
from hgsl.config import Config
from hgsl.data import Manifest, RetrievalDataset
from hgsl.engine.parts.cached_embeddings import embed_once
from hgsl.engine.runtime import Runtime
from hgsl.models import Embedder
from hgsl.models.features import pool_features

AXES_ROWS = 10_000


class Pooled(nn.Module):
    """An embedder up to its pooled features: (B, 3, H, W) -> (B, C'), or of its V views side by side, (B, V C').

    Args:
        model: The embedder.
        views: Whether the features are those of all its views.
    """

    def __init__(self, model: Embedder, views: bool = False) -> None:
        super().__init__()
        self.backbone, self.pooling = model.backbone, model.pooling
        self._views = model.views if views else lambda images: [images]

    def forward(self, images: Tensor) -> Tensor:
        pooled = [pool_features(self.backbone, self.pooling, view) for view in self._views(images)]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


class Head(nn.Module):
    """An embedder from its pooled features on: (B, C') or (B, V C') -> (B, D), unit norm."""

    def __init__(self, model: Embedder) -> None:
        super().__init__()
        self.model = model
        self.embedding_size = model.embedding_size

    def forward(self, pooled: Tensor) -> Tensor:
        if self.training:
            return self.model.head(pooled)
        return self.model.combine([self.model.head(view) for view in pooled.split(self.model.pooled_size, dim=1)])


class PooledSet(Dataset[tuple[Tensor, int, int]]):
    """Pooled features of a data set: ``dataset[i]`` is (features (C',), label, id)."""

    def __init__(self, images: RetrievalDataset, features: np.ndarray) -> None:
        self.manifest: Manifest = images.manifest
        self.labels, self.ids = images.labels, images.ids
        self.class_names, self.num_classes = images.class_names, images.num_classes
        self.features = features

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return torch.from_numpy(np.array(self.features[index])), int(self.labels[index]), int(self.ids[index])


def pooled_set(model: Embedder, images: RetrievalDataset, config: Config, runtime: Runtime, views: bool) -> PooledSet:
    """Runs backbone and pooling over ``images``, or memory-maps the features stored by an earlier run.

    Args:
        model: The model, of which backbone and pooling are used.
        images: The images, with the transform of an evaluation.
        config: Batch size of the evaluation.
        runtime: Device and precision.
        views: Whether the features are those of all views of an evaluation.
    """
    pooled = embed_once(Pooled(model, views), model, images, "features", runtime, config.eval.batch_size, views=views)
    return PooledSet(images, pooled.embeddings)


@torch.no_grad()
def start_at_principal_axes(model: Embedder, features: np.ndarray) -> None:
    """Sets the projection to the principal axes of the unit ``features``, so that it preserves their inner products.

    The axes are those of the uncentered features: no projection of this size preserves their inner products better. A
    random projection would be trained on the training classes only, and would lose directions of other classes.

    Args:
        model: An embedder with a projection to D dimensions.
        features: (N, C') pooled features of training images; of more, ``AXES_ROWS`` evenly spaced rows are used.
    """
    rows = np.unique(np.linspace(0, len(features) - 1, min(len(features), AXES_ROWS)).astype(np.int64))
    unit = nn.functional.normalize(torch.from_numpy(np.asarray(features[rows], np.float32)), dim=1)
    layer = model.projection
    assert isinstance(layer, nn.Linear)
    rank = min(*unit.shape, layer.out_features + 32)  # a randomized SVD is inaccurate in its last axes
    with seeded_torch(0):
        axes = torch.svd_lowrank(unit, q=rank, niter=4)[2].T[: layer.out_features]  # (D or fewer, C')
    layer.weight.zero_()[: len(axes)] = axes.to(layer.weight)
    layer.bias.zero_()
