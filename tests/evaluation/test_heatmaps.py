"""Heat maps of a pair: shares that add up to the cosine similarity, at the positions that make it."""

import numpy as np
import pytest
import torch
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.evaluation.heatmaps import explain_pair, show_heat
from hgsl.models import create_embedder


def images() -> list[Image.Image]:
    """Two noise images with the same bright square: at the upper left, and at the lower right."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 60, (2, 64, 64, 3), np.uint8)
    patch = generator.integers(120, 255, (24, 24, 3), np.uint8)
    pixels[0, 4:28, 4:28], pixels[1, 36:60, 36:60] = patch, patch
    return [Image.fromarray(image) for image in pixels]


def similarity(model: torch.nn.Module, pair: list[Image.Image]) -> float:
    with torch.inference_mode():
        one, other = model.eval()(torch.stack([model.transform()(image) for image in pair]))  # type: ignore[operator]
    return float(one @ other)


@pytest.mark.parametrize("pooling", ["avg", "max", "maxavg", "gem", "scda", "head"])
@pytest.mark.parametrize("size", [None, 8])
def test_shares_and_constant_add_up_to_the_similarity(pooling: str, size: int | None) -> None:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", pooling, size, "none", image_size=64)
    heat = explain_pair(model, *images())
    assert heat.exact
    assert heat.similarity == pytest.approx(similarity(model, images()), abs=1e-5)
    for shares, constant in zip((heat.one, heat.other), heat.constants, strict=True):
        assert shares.shape == (2, 2)
        assert shares.sum() + constant == pytest.approx(heat.similarity, abs=1e-5)
    if size is None and pooling != "gem":  # without bias nothing is left
        np.testing.assert_allclose(heat.constants, 0, atol=1e-4)


def test_an_average_has_the_share_of_each_position() -> None:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", "avg", None, "none", image_size=64).eval()
    with torch.inference_mode():
        tensors = torch.stack([model.transform()(image) for image in images()])
        features = model.backbone.forward_features(tensors)  # (2, C, 2, 2)
        one, other = features.mean(dim=(2, 3))
    expected = torch.einsum("chw,c->hw", features[0] / 4, other) / one.norm() / other.norm()
    np.testing.assert_allclose(explain_pair(model, *images()).one, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("pooling", "exact"), [("avg", True), ("token", False), ("token_avg", False)])
def test_tokens_are_laid_out_as_the_patches(pooling: str, exact: bool) -> None:
    torch.manual_seed(0)
    model = create_embedder("test_vit", pooling, None, "none", image_size=64)
    heat = explain_pair(model, *images())
    assert heat.one.shape == heat.other.shape == (4, 4)
    assert heat.exact is exact
    assert heat.similarity == pytest.approx(similarity(model, images()), abs=1e-5)
    if exact:
        assert heat.one.sum() + heat.constants[0] == pytest.approx(heat.similarity, abs=1e-5)


def test_whitening_is_part_of_the_similarity() -> None:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", "avg", None, "none", image_size=64)
    width = model.embedding_size
    model.set_whitening(0.01 * torch.randn(width), torch.randn(width, 6))
    heat = explain_pair(model, *images())
    assert heat.similarity == pytest.approx(similarity(model, images()), abs=1e-4)
    assert heat.one.sum() + heat.constants[0] == pytest.approx(heat.similarity, abs=1e-4)


def test_a_share_is_drawn_where_it_is() -> None:
    model = create_embedder("test_resnet", "avg", None, "none", image_size=64)
    plain = Image.new("RGB", (64, 64), (120, 120, 120))
    drawn = np.asarray(show_heat(model, plain, np.float32([[1, 0], [0, -1]])), int)
    assert drawn[8, 8, 0] > 150 > drawn[8, 8, 2]
    assert drawn[56, 56, 2] > 150 > drawn[56, 56, 0]
    assert abs(drawn[8, 56] - 120).max() <= 6


def test_a_network_that_is_no_embedder_is_refused() -> None:
    with pytest.raises(InputError, match="Linear: expected what create_embedder"):
        explain_pair(torch.nn.Linear(2, 2), *images())
