"""Training modes: the part of an embedder that is trained, and the inputs of that part."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hgsl.config import Config
from hgsl.data import RetrievalDataset
from hgsl.engine.parts.freeze import freeze
from hgsl.engine.parts.head import Head, PooledSet, pooled_set, start_at_principal_axes
from hgsl.engine.runtime import Runtime
from hgsl.models import Embedder


class SingleView(nn.Module):
    """An embedder of the image alone, in evaluation mode too."""

    def __init__(self, model: Embedder) -> None:
        super().__init__()
        self.model, self.embedding_size = model, model.embedding_size

    def forward(self, images: Tensor) -> Tensor:
        return self.model.head(self.model.pooled(images))


@dataclass(frozen=True)
class FullMode:
    """Training of the whole network on augmented images."""

    runtime: Runtime

    def view(self, model: Embedder) -> Any:
        """The part of ``model`` that a training step and an evaluation call."""
        return model

    def single_view(self, model: Embedder) -> Any:
        """:meth:`view`, which embeds one view of an image."""
        return SingleView(model)

    def inputs(self, model: Embedder, images: RetrievalDataset, views: bool) -> Any:
        """The inputs of :meth:`view` for ``images``: all that its views need, or one view."""
        return images

    def training_inputs(self, augmented: RetrievalDataset, plain: Callable[[], Any]) -> Any:
        """The data set of the training steps: augmented images, or :meth:`inputs` of plain ones."""
        return augmented

    @property
    def loader_workers(self) -> int:
        """Loader processes of the training inputs."""
        return self.runtime.workers

    def start(self, model: Embedder, plain: Any) -> None:
        """Initializes parameters of ``model`` from the training images before the first step."""


@dataclass(frozen=True)
class HeadMode(FullMode):
    """Training of projection and centers on pooled features, which the backbone computes once."""

    config: Config

    def view(self, model: Embedder) -> Head:
        return Head(model)

    def single_view(self, model: Embedder) -> Head:
        return Head(model)  # of features of one view

    def inputs(self, model: Embedder, images: RetrievalDataset, views: bool) -> PooledSet:
        return pooled_set(model, images, self.config, self.runtime, views)

    def training_inputs(self, augmented: RetrievalDataset, plain: Callable[[], PooledSet]) -> PooledSet:
        return plain()

    @property
    def loader_workers(self) -> int:
        return 0  # reading a row takes less time than transferring it between processes

    def start(self, model: Embedder, plain: PooledSet) -> None:
        start_at_principal_axes(model, plain.features)


def build_mode(config: Config, model: Embedder, runtime: Runtime) -> FullMode:
    """Returns the mode of ``config.train.mode``, and freezes the parts of ``model`` that are not trained."""
    if config.train.mode == "full":
        return FullMode(runtime)
    freeze(model, "features")
    return HeadMode(runtime, config)
