"""What leaves the device: exports of a model on it, and an index built there and queried on the CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hgsl.export import export_model
from hgsl.models import create_embedder, load_embedder, save_embedder
from hgsl.search import SearchIndex, build_index
from tests.gpu.conftest import NAME


@pytest.mark.parametrize("file_format", ["torch-export", "onnx"])
def test_a_model_on_the_device_is_exported(device: torch.device, tmp_path: Path, file_format: str) -> None:
    if file_format == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
    torch.manual_seed(0)
    model = create_embedder("test_resnet", "maxavg", embedding_size=24, weights="none", image_size=48).eval()
    expected = model(torch.ones(1, 3, 48, 48))
    model.to(device)
    differences = export_model(model, tmp_path / "model.file", format=file_format, batch_sizes=(1, 3))
    assert max(differences.values()) < 1e-4
    torch.testing.assert_close(model.cpu()(torch.ones(1, 3, 48, 48)), expected)


def test_a_saved_model_does_not_depend_on_the_device(device: torch.device, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", embedding_size=8, weights="none").eval()
    save_embedder(model, tmp_path / "cpu")
    save_embedder(model.to(device), tmp_path / "device")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cpu", "device")]
    assert files[0] == files[1]
    assert {value.device.type for value in load_embedder(tmp_path / "device").state_dict().values()} == {"cpu"}


def test_an_index_built_on_the_device_is_queried_on_the_cpu(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    photos = photo_folder(classes=4, images=4)
    save_embedder(create_embedder("test_resnet", embedding_size=16, weights="none", image_size=32), tmp_path / "run")
    build_index(tmp_path / "index", photos, checkpoint=tmp_path / "run", device=NAME, progress=False)
    build_index(tmp_path / "other", photos, checkpoint=tmp_path / "run", device="cpu", progress=False)
    image = photos / "kind_01" / "02.jpg"
    hits, expected = (
        SearchIndex.open(tmp_path / name, device="cpu").search(image, k=3)[0] for name in ("index", "other")
    )
    assert [hit.path for hit in hits] == [hit.path for hit in expected]
    assert hits[0].path.endswith("kind_01/02.jpg")
    assert [hit.similarity for hit in hits] == pytest.approx([hit.similarity for hit in expected], abs=1e-5)
