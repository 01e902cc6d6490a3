"""Views, mean removal and whitening as parts of a model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hgsl.common.errors import InputError
from hgsl.evaluation.refine.whitening import fit_whitening
from hgsl.models import Embedder, create_embedder, load_embedder, save_embedder, save_pretrained


@pytest.fixture
def model() -> Embedder:
    torch.manual_seed(0)
    return create_embedder("test_resnet", weights="none", image_size=32).eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_an_embedding_is_the_mean_direction_of_its_views(model: Embedder) -> None:
    plain = model(images())
    mirrored = model(images().flip(-1))
    larger = F.interpolate(images(), (48, 48), mode="bilinear")
    larger, larger_mirrored = model(larger), model(larger.flip(-1))
    model.set_views(flip=True)
    assert torch.allclose(model(images()), F.normalize(plain + mirrored, dim=1), atol=1e-6)
    assert torch.allclose(model(images().flip(-1)), model(images()), atol=1e-6)
    model.set_views(flip=True, scales=[1.0, 1.5])
    expected = F.normalize(plain + mirrored + larger + larger_mirrored, dim=1)
    assert torch.allclose(model(images()), expected, atol=1e-6)
    model.set_views()
    assert torch.equal(model(images()), plain)


def test_training_embeds_one_view_before_whitening(model: Embedder) -> None:
    for module in model.modules():
        module.train(module is model)  # batch norms keep their statistics
    plain = model(images())
    model.set_views(flip=True)
    model.set_whitening(torch.ones(model.embedding_size))
    assert torch.equal(model(images()), plain)


@pytest.mark.parametrize(
    ("flip", "scales", "message"),
    [
        (1, [1.0], "flip must be True or False, found 1"),
        (False, [], "scales must be one or more numbers"),
        (False, [0.0], "scales must be one or more numbers"),
        (False, [float("nan")], "scales must be one or more numbers"),
        (False, "1", "scales must be one or more numbers"),
        (False, [True], "scales must be one or more numbers"),
        (False, [1, 1.0], "name a scale twice"),
    ],
)
def test_views_of_another_form_are_refused(model: Embedder, flip: object, scales: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.set_views(flip=flip, scales=scales)  # type: ignore[arg-type]


@torch.no_grad()
def test_mean_removal_and_whitening_follow_their_formulas(model: Embedder) -> None:
    vectors = model(torch.randn(400, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    mean = vectors.double().mean(0)
    x = model(images())
    model.set_whitening(mean)
    assert torch.allclose(model(images()), F.normalize(x - mean.float(), dim=1), atol=1e-5)

    fit = fit_whitening(vectors.numpy(), 5, shrinkage=0.25)
    model.set_whitening(torch.from_numpy(fit.mean), torch.from_numpy(fit.projection.copy()))
    assert model.embedding_size == 5
    covariance = torch.cov(vectors.double().T, correction=0)
    values, axes = torch.linalg.eigh(covariance)
    scale = (0.75 * values[-5:] + 0.25 * values.mean()).sqrt()
    expected = F.normalize(((x.double() - mean) @ axes[:, -5:] / scale).flip(1), dim=1)
    assert torch.allclose(model(images()).double().abs(), expected.abs(), atol=1e-4)  # up to the signs of the axes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images()).dtype == torch.float32


def test_a_whitening_of_another_size_is_refused(model: Embedder) -> None:
    width = model.embedding_size
    for mean, matrix in ((torch.zeros(3), None), (torch.zeros(width), torch.zeros(1, 4))):
        with pytest.raises(InputError, match=f"do not fit embeddings of {width} dimensions"):
            model.set_whitening(mean, matrix)
    assert model.architecture["whitening"] is None


def test_a_vector_at_the_mean_keeps_its_direction(model: Embedder) -> None:
    with torch.no_grad():
        x = model(images(1))
        model.set_whitening(x[0])
        assert torch.allclose(model(images(1)), x, atol=1e-6)
        model.set_whitening(x[0], torch.eye(len(x[0]))[:, :4] + 0.1)
        assert model(images(1)).norm().item() == pytest.approx(1, abs=1e-5)


def test_shrinkage_goes_from_whitening_to_a_projection() -> None:
    rows = F.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9), dim=1)
    projection = fit_whitening(rows.numpy(), shrinkage=1.0).projection
    lengths = torch.from_numpy((projection**2).sum(0))
    assert torch.allclose(lengths, lengths[:1].expand(8))  # of equal weight, as in PCA without whitening
    whitened = (rows.double() - rows.double().mean(0)) @ torch.from_numpy(fit_whitening(rows.numpy()).projection.copy())
    assert torch.allclose(whitened.var(0, correction=0), torch.ones(8, dtype=torch.float64), atol=1e-6)
    with pytest.raises(InputError, match="shrinkage must lie from 0 to 1, found 2"):
        fit_whitening(rows.numpy(), shrinkage=2)
    assert fit_whitening(rows[:, :3].numpy(), 100, at_most=True).projection.shape == (3, 3)


@pytest.mark.parametrize("whitened", ["mean", "matrix"])
@pytest.mark.parametrize("save", [save_embedder, save_pretrained])
def test_views_and_whitening_are_saved_with_the_model(tmp_path: Path, model: Embedder, whitened: str, save) -> None:
    mean = torch.randn(model.embedding_size) / 10
    model.set_whitening(mean, torch.randn(len(mean), 6) if whitened == "matrix" else None)
    model.set_views(flip=True, scales=[1.0, 1.25])
    model.data_config["image_size"] = 40
    save(model, tmp_path / "model")
    loaded = load_embedder(tmp_path / "model")
    assert loaded.architecture == model.architecture
    assert loaded.data_config["image_size"] == 40
    assert loaded.embedding_size == model.embedding_size
    with torch.no_grad():
        assert torch.equal(loaded(images()), model(images()))


def test_the_model_card_states_views_and_whitening(tmp_path: Path, model: Embedder) -> None:
    save_pretrained(model, tmp_path / "plain")
    model.set_views(flip=True, scales=[1.0, 1.25])
    model.set_whitening(torch.zeros(model.embedding_size), torch.zeros(model.embedding_size, 6))
    save_pretrained(model, tmp_path / "views")
    card = (tmp_path / "views" / "README.md").read_text()
    assert "The model averages over the scales 1, 1.25 and the mirror image." in card
    assert "PCA-whitening to 6 dimensions" in card
    assert "averages" not in (tmp_path / "plain" / "README.md").read_text()


def test_a_forged_whitening_is_refused(tmp_path: Path, model: Embedder) -> None:
    model.set_whitening(torch.zeros(model.embedding_size), torch.zeros(model.embedding_size, 6))
    save_embedder(model, tmp_path)
    path = tmp_path / "model.json"
    text = path.read_text()
    for value, message in (("10000000000000", "whitening.matrix"), ("true", "whitening is True"), ('"pca"', "'pca'")):
        path.write_text(text.replace('"whitening": 6', f'"whitening": {value}'))
        with pytest.raises(InputError, match=message):
            load_embedder(tmp_path)
