"""Batches of a stage as one stream that can start at any step, with the same images and augmentation."""

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hgsl.common import ranks
from hgsl.common.cores import available_cores
from hgsl.common.errors import InputError
from hgsl.common.random_state import seeded_torch
from hgsl.common.workers import init_worker
from hgsl.data.samplers import epoch_plan

Key = tuple[int, int]  # (epoch, position in the dataset)


class SeededSamples(Dataset[Any]):
    """Samples whose augmentation depends on epoch and position alone, not on workers or the first step."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int]:
        epoch, position = key
        with seeded_torch(mixed_seed(self.seed, epoch, position)):
            return self.dataset[position]


class RunBatches(Sampler[list[Key]]):
    """Every batch of a stage, in order: the sampler's plan of each epoch, without an incomplete last batch.

    The plan does not depend on the number of processes: each takes its share of every batch, so that the steps
    are the same for any number of them. A data set smaller than a batch is one batch per epoch.

    Args:
        labels: (N,) the class of each image.
        batch_size: Images per step, over all processes.
        epochs: Number of epochs.
        seed: Seed of the shuffle.
        sampler: One of ``hgsl.data.SAMPLERS``.
        per_class: Images per class, for the samplers ``m_per_class`` and ``category``.
        unlabeled: Number of images without labels, at the positions after the N of the others. As many of them as a
            batch has images are appended to it; they are shuffled anew after all were taken.
        categories: (C,) the category of each class, for the sampler ``category``.

    Attributes:
        steps_per_epoch: The same in every epoch.
        start_step: Step at which the stream begins; a resumed run sets it.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        batch_size: int,
        epochs: int,
        seed: int,
        sampler: str = "random",
        per_class: int = 4,
        unlabeled: int = 0,
        categories: NDArray[np.int64] | None = None,
    ) -> None:
        world = ranks.world_size()
        if batch_size % world:
            raise InputError(f"train.batch_size {batch_size} cannot be divided among {world} processes: use a multiple")
        if sampler == "random":
            batch_size = min(batch_size, len(labels) // world * world)
        self.labels, self.batch_size, self.epochs, self.seed = labels, batch_size, epochs, seed
        self.sampler, self.per_class, self.unlabeled, self.categories = sampler, per_class, unlabeled, categories
        self.steps_per_epoch = len(self._plan(0))
        self.start_step = 0

    def _plan(self, epoch: int) -> NDArray[np.int64]:
        return epoch_plan(
            self.sampler,
            self.labels,
            self.batch_size,
            per_class=self.per_class,
            seed=self.seed,
            epoch=epoch,
            categories=self.categories,
        )

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.start_step // self.steps_per_epoch, self.epochs):
            first = max(0, self.start_step - epoch * self.steps_per_epoch)
            for number, batch in enumerate(self._plan(epoch)[first:].tolist(), start=first):
                share = slice(ranks.rank(), None, ranks.world_size())
                positions = [*batch[share], *self._unlabeled(epoch * self.steps_per_epoch + number)[share]]
                yield [(epoch, position) for position in positions]

    def _unlabeled(self, step: int) -> list[int]:
        """The positions of the images without labels in the batch of a step."""
        if not self.unlabeled:
            return []
        indices = range(step * self.batch_size, (step + 1) * self.batch_size)
        passes = (divmod(index, self.unlabeled) for index in indices)
        return [len(self.labels) + int(_shuffled(self.unlabeled, self.seed, number)[row]) for number, row in passes]


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, number: int) -> NDArray[np.int64]:
    """The order of ``count`` images in a pass over them."""
    return np.random.default_rng([seed, number, 1]).permutation(count)


def run_loader(dataset: Dataset[Any], batches: RunBatches, *, workers: int, device: torch.device) -> DataLoader[Any]:
    """One loader for all epochs, so that its workers start once and prefetch across epochs."""
    return DataLoader(
        SeededSamples(dataset, batches.seed),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # the workers' seed is not drawn from the global generator
    )


def mixed_seed(*numbers: int) -> int:
    """Returns a 64-bit seed from several numbers; neighboring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def default_workers() -> int:
    """Returns one loader process per core, at most 8, divided by the number of training processes on this machine."""
    return max(1, min(8, available_cores()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
