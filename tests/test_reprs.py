"""What the objects of the package print in a notebook: the numbers that tell two of them apart."""

from pathlib import Path

import pytest
import torch

import hgsl
from hgsl import HardGlobalSoftminLoss, InputError, build_dataset, sparsify
from hgsl.data import RetrievalDataset, eval_transform, load_manifest
from hgsl.models import create_embedder, save_embedder
from hgsl.search import SearchIndex, build_index


def test_the_error_of_bad_input_is_a_public_name_and_a_value_error() -> None:
    with pytest.raises(InputError, match="num_classes") as error:
        HardGlobalSoftminLoss(0, 8)
    assert isinstance(error.value, ValueError)
    assert hgsl.InputError is InputError


def test_a_loss_prints_its_present_alpha() -> None:
    loss_fn = HardGlobalSoftminLoss(100, 16, top_k=5, alpha=0.4)
    assert repr(loss_fn).startswith(
        "HardGlobalSoftminLoss(num_classes=100, embedding_size=16, top_k=5, hard_set='all', alpha=0.4, "
        "learnable_scale=True, "
    )
    with torch.no_grad():
        loss_fn.alpha.fill_(1.5)
    loss_fn.set_top_k(None)
    assert "top_k=None, hard_set='all', alpha=1.5," in repr(loss_fn)
    assert "alpha=0.1, learnable_scale=False" in repr(HardGlobalSoftminLoss(9, 4, learnable_scale=False))
    with torch.device("meta"):
        assert "alpha=meta" in repr(HardGlobalSoftminLoss(9, 4))


def test_a_data_set_prints_its_split_and_counts() -> None:
    options = {"num_classes": 6, "images_per_class": 3, "image_size": 32}
    transform = eval_transform(create_embedder("test_resnet", weights="none", image_size=32).data_config, 32)
    train = build_dataset("synthetic", split="train", transform=transform, **options)
    text = repr(train)
    assert text.startswith("RetrievalDataset(synthetic, train, zero-shot: 9 images of 3 classes, Transform, split ")
    assert train.manifest.split_hash in text
    everything = RetrievalDataset(load_manifest("synthetic", **options))
    assert ", train and test, zero-shot: 18 images of 6 classes, PIL images, " in repr(everything)


def test_an_index_prints_what_it_searches(tmp_path: Path, photo_folder: object) -> None:
    torch.manual_seed(0)
    save_embedder(create_embedder("test_resnet", embedding_size=16, weights="none", image_size=32), tmp_path / "run")
    settings = {"checkpoint": tmp_path / "run", "labels": "folders", "device": "cpu", "progress": False}
    build_index(tmp_path / "index", photo_folder(), no_match=0.25, **settings)
    assert repr(SearchIndex.open(tmp_path / "index", device="cpu")) == (
        f"SearchIndex({str(tmp_path / 'index')!r}: 24 images, 6 labels, 16 dimensions, test_resnet, Flat, "
        "no-match threshold 0.2500, on cpu)"
    )


def test_masks_print_temperature_and_density() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 5))
    _, masks = sparsify(network)
    masks.temperature = 3.0
    with torch.no_grad():
        for scores in masks.mask_parameters():
            scores.fill_(-1.0)
        masks.mask_parameters()[0].fill_(1.0)
    assert repr(masks) == "Masks(Sequential, 2 masks, soft, temperature 3: 32 of 52 masked weights kept, 61.5 %)"
    masks.mask_parameters()[0].data[0, 0] = -1.0
    masks.mask_parameters()[1].data[0, 0] = 1.0
    masks.ticket = True
    assert repr(masks) == "Masks(Sequential, 2 masks, ticket: 32 of 52 masked weights kept, 61.5 %)"
