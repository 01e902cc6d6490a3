import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from hgsl.config import AugmentConfig, Config, DataConfig
from hgsl.engine.loop.loader import RunBatches, SeededSamples, mixed_seed, run_loader
from hgsl.engine.parts.build import build_manifest, build_train_set
from hgsl.models import create_embedder

LABELS = np.arange(11) % 3


class Noise(Dataset):
    """A random image: equal tensors mean equal random states."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return torch.rand(3, 2, 2), index % 3, 100 + index


def stream(workers: int, start_step: int = 0) -> list[tuple[torch.Tensor, ...]]:
    batches = RunBatches(LABELS, 4, epochs=3, seed=5)
    batches.start_step = start_step
    return list(run_loader(Noise(), batches, workers=workers, device=torch.device("cpu")))


def test_every_epoch_is_another_permutation_of_all_images() -> None:
    batches = list(RunBatches(LABELS, 4, epochs=3, seed=5))
    assert len(batches) == len(RunBatches(LABELS, 4, epochs=3, seed=5)) == 6
    epochs = [[position for batch in batches[i : i + 2] for _, position in batch] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [epoch for epoch, _ in batches[3]] == [1, 1, 1, 1]


def test_a_later_start_gives_the_rest_of_the_same_stream() -> None:
    whole = stream(workers=0)
    for start in (1, 2, 5):
        rest = stream(workers=0, start_step=start)
        assert len(rest) == len(whole) - start
        for a, b in zip(whole[start:], rest, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_workers_change_nothing() -> None:
    for a, b in zip(stream(workers=0), stream(workers=2), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_augmentation_leaves_the_global_generator_alone() -> None:
    samples = SeededSamples(Noise(), seed=1)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, second = samples[0, 3][0], samples[1, 3][0]
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(first, second)


def test_the_named_augmentations_repeat_in_a_run(photo_folder: Callable[..., Path]) -> None:
    data = DataConfig(name="folder", root=str(photo_folder()), image_size=32)
    model = create_embedder("test_resnet", weights="none", image_size=32)
    manifest = build_manifest(data)
    plain = SeededSamples(build_train_set(Config(data=data), manifest, model), seed=3)
    for name, value in {"color_jitter": 0.8, "rand_augment": 9, "grayscale": 1.0, "random_erasing": 1.0}.items():
        changed = Config(data=replace(data, augment=AugmentConfig(**{name: value})))  # type: ignore[arg-type]
        samples = SeededSamples(build_train_set(changed, manifest, model), seed=3)
        keys = [(epoch, position) for epoch in range(2) for position in range(4)]
        images = [samples[key][0] for key in keys]
        random.seed(name)
        assert all(torch.equal(samples[key][0], image) for key, image in zip(keys, images, strict=True))
        assert not all(torch.equal(plain[key][0], image) for key, image in zip(keys, images, strict=True))


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    assert [len(batch) for batch in RunBatches(LABELS[:3], 8, epochs=2, seed=0)] == [3, 3]


def test_seeds_do_not_collide() -> None:
    seeds = {mixed_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
