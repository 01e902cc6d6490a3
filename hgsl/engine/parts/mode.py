"""Training modes: what of an embedder trains, and what its images are replaced by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hgsl.config import Config
from hgsl.data import RetrievalDataset
from hgsl.engine.parts.freeze import freeze
from hgsl.engine.parts.head import Head, PooledSet, pooled_set, start_at_principal_axes
from hgsl.engine.runtime import Runtime
from hgsl.models import Embedder


@dataclass(frozen=True)
class FullMode:
    """Training of the whole network on augmented images."""

    runtime: Runtime

    def view(self, model: Embedder) -> Any:
        """The part of ``model`` that a training step and an evaluation call."""
        return model

    def inputs(self, model: Embedder, images: RetrievalDataset) -> Any:
        """What stands for ``images`` in an evaluation of :meth:`view`."""
        return images

    def training_inputs(self, augmented: RetrievalDataset, plain: Callable[[], Any]) -> Any:
        """The data set of the training steps: augmented images, or :meth:`inputs` of plain ones."""
        return augmented

    @property
    def loader_workers(self) -> int:
        """Processes that read the training inputs."""
        return self.runtime.workers

    def start(self, model: Embedder, plain: Any) -> None:
        """Sets parameters of ``model`` from the training images before the first step."""


@dataclass(frozen=True)
class HeadMode(FullMode):
    """Training of projection and centers on pooled features, which the backbone computes once."""

    config: Config

    def view(self, model: Embedder) -> Head:
        return Head(model)

    def inputs(self, model: Embedder, images: RetrievalDataset) -> PooledSet:
        return pooled_set(model, images, self.config, self.runtime)

    def training_inputs(self, augmented: RetrievalDataset, plain: Callable[[], PooledSet]) -> PooledSet:
        return plain()

    @property
    def loader_workers(self) -> int:
        return 0  # reading a row takes less than handing it to another process

    def start(self, model: Embedder, plain: PooledSet) -> None:
        start_at_principal_axes(model, plain.features)


def build_mode(config: Config, model: Embedder, runtime: Runtime) -> FullMode:
    """Returns the mode that ``config.train.mode`` names, with the rest of ``model`` frozen."""
    if config.train.mode == "full":
        return FullMode(runtime)
    freeze(model, "features")
    return HeadMode(runtime, config)
