"""The batches of a whole run as one stream: any step can be reached again, with the same images augmented the same."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Key = tuple[int, int]  # (epoch, position in the dataset)


class SeededSamples(Dataset[Any]):
    """Gives sample ``position`` as it is augmented in ``epoch``: the same for any number of workers and any start."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int]:
        epoch, position = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.seed, epoch, position))
            return self.dataset[position]


class RunBatches(Sampler[list[Key]]):
    """Every batch of a run, in order: each epoch is a permutation of its own, its incomplete last batch left out.

    A dataset smaller than a batch is one batch an epoch.
    """

    def __init__(self, count: int, batch_size: int, epochs: int, seed: int, start_step: int = 0) -> None:
        self.count = count
        self.batch_size = min(batch_size, count)
        self.steps_per_epoch = count // self.batch_size
        self.epochs = epochs
        self.seed = seed
        self.start_step = start_step

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.start_step // self.steps_per_epoch, self.epochs):
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            order = torch.randperm(self.count, generator=generator).tolist()
            first = max(0, self.start_step - epoch * self.steps_per_epoch)
            for batch in range(first, self.steps_per_epoch):
                yield [(epoch, i) for i in order[batch * self.batch_size : (batch + 1) * self.batch_size]]


def run_loader(dataset: Dataset[Any], batches: RunBatches, *, workers: int, device: torch.device) -> DataLoader[Any]:
    """One loader for the whole run, so that its processes start once and read ahead across epochs."""
    return DataLoader(
        SeededSamples(dataset, batches.seed),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )


def mixed_seed(*numbers: int) -> int:
    """One 64-bit seed of several numbers, such that neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def default_workers() -> int:
    """One reading process a core, at most 8."""
    return min(8, os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0)))
