"""OpenVINO files: parity with PyTorch, replacement of the pair, and refusals."""

import json
from pathlib import Path

import pytest
import torch

from hgsl.cli import export
from hgsl.common.errors import InputError
from hgsl.export import TOLERANCE, OpenVinoEmbedder, export_model
from hgsl.export.openvino import convert
from hgsl.models import Embedder, create_embedder, save_embedder
from tests.helpers import fails

openvino = pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
SLOW = pytest.mark.slow


def small_embedder(seed: int = 0) -> Embedder:
    torch.manual_seed(seed)
    return create_embedder("test_resnet", "maxavg", embedding_size=24, weights="none", image_size=48).eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported ``small_embedder``."""
    path = tmp_path_factory.mktemp("openvino") / "model.xml"
    export_model(small_embedder(), path, format="openvino", batch_sizes=(2,))
    return path


@pytest.mark.parametrize(
    ("backbone", "pooling", "size"),
    [
        pytest.param("test_vit", "gem", 24, marks=SLOW),
        pytest.param("test_efficientnet", "scda", 16, marks=SLOW),
        pytest.param("test_convnext", "max", 8, marks=SLOW),
        pytest.param("swin_tiny_patch4_window7_224", "avg", None, marks=SLOW),
    ],
)
def test_the_files_compute_what_the_model_does(tmp_path: Path, backbone: str, pooling: str, size: int | None) -> None:
    torch.manual_seed(0)
    side = 224 if backbone.startswith("swin") else 64
    model = create_embedder(backbone, pooling, size, weights="none", image_size=side).eval()
    differences = export_model(model, tmp_path / "model.xml", format="openvino", batch_sizes=(1, 3))
    assert set(differences) == {1, 3}
    assert max(differences.values()) <= TOLERANCE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    images = torch.randn(7, 3, side, side)  # a batch size that the export did not compare
    with torch.inference_mode():
        vectors = OpenVinoEmbedder(tmp_path / "model.xml")(images)
        torch.testing.assert_close(vectors, model(images), atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_views_and_whitening_are_in_the_files(tmp_path: Path) -> None:
    model = small_embedder()
    model.set_whitening(torch.rand(24) / 10, torch.randn(24, 6))
    model.set_views(flip=True, scales=[1.0, 1.25])
    export_model(model, tmp_path / "model.xml", format="openvino", batch_sizes=(2,))
    images = torch.randn(3, 3, 48, 48)
    with torch.inference_mode():
        vectors = OpenVinoEmbedder(tmp_path / "model.xml")(images)
        assert vectors.shape == (3, 6)
        torch.testing.assert_close(vectors, model(images), atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_a_precision_is_that_of_the_computation(file: Path) -> None:
    """Without the hint, a processor with bfloat16 would compute in it."""
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    precisions = [
        OpenVinoEmbedder(file, precision=name).request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
        for name in ("float32", "bfloat16")
    ]
    assert precisions[0] == openvino.Type.f32
    with torch.inference_mode():
        exact = OpenVinoEmbedder(file)(images)
        difference = (OpenVinoEmbedder(file, precision="bfloat16")(images) - exact).abs().max()
    assert (difference > 1e-4) == (precisions[1] == openvino.Type.bf16)
    assert difference < 0.05
    with pytest.raises(InputError, match="unknown precision 'float16'"):
        OpenVinoEmbedder(file, precision="float16")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_file_takes_other_batches_than_were_compared(file: Path) -> None:
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.bin", "model.xml"]
    images = torch.randn(7, 3, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(OpenVinoEmbedder(file)(images), small_embedder()(images), atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_a_new_export_replaces_both_files(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 48, 48)
    for seed in (0, 1):
        model = small_embedder(seed)
        export_model(model, tmp_path / "model.xml", format="openvino", batch_sizes=(2,))
        with torch.inference_mode():
            vectors = OpenVinoEmbedder(tmp_path / "model.xml")(images)
            torch.testing.assert_close(vectors, model(images), atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_files_that_differ_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoEmbedder, "forward", lambda _, images: torch.ones(len(images), 24))
    with pytest.raises(InputError, match=r"the openvino file differs .*more than 1e-04: it was removed"):
        export_model(small_embedder(), tmp_path / "model.xml", format="openvino", batch_sizes=(2,))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_is_an_error(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    export_model(small_embedder(), tmp_path / "model.onnx", batch_sizes=(2,))
    request.getfixturevalue("small_files")
    with pytest.raises(OSError, match=r"OpenVINO cannot write \(.*\): '/"):
        convert(tmp_path / "model.onnx", tmp_path / "model.xml", tmp_path / "model.bin")


@pytest.mark.slow
def test_images_of_another_form_are_refused(file: Path) -> None:
    """OpenVINO computes nothing for another size, without an error."""
    network = OpenVinoEmbedder(file)
    for images in (
        torch.zeros(2, 3, 64, 64),
        torch.zeros(2, 3, 48, 48, dtype=torch.float64),
        torch.zeros(0, 3, 48, 48),
    ):
        with pytest.raises(InputError, match=r"images are .*: this file takes float32 \(B, 3, 48, 48\)"):
            network(images)
    with pytest.raises(InputError, match="images: expected a tensor, found list"):
        network([])


@pytest.mark.slow
def test_files_that_cannot_be_run_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no OpenVINO file .*none\.xml: write it with hgsl-export RUN"):
        OpenVinoEmbedder(tmp_path / "none.xml")
    (tmp_path / "alone.xml").write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"no OpenVINO file .*alone\.bin"):
        OpenVinoEmbedder(tmp_path / "alone.xml")
    (tmp_path / "alone.bin").write_bytes(file.with_suffix(".bin").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"alone\.xml cannot be run by OpenVINO: "):
        OpenVinoEmbedder(tmp_path / "alone.xml")
    with pytest.raises(InputError, match=r"model\.ov does not end in \.xml: OpenVINO finds the weights"):
        export_model(small_embedder(), tmp_path / "model.ov", format="openvino")


@pytest.mark.slow
def test_the_command_prints_the_speed_beside_onnx_runtime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The converter of OpenVINO sends usage statistics, which reading an ONNX file does not.
    monkeypatch.setattr("openvino_telemetry.Telemetry.__init__", lambda *_, **__: pytest.fail("statistics are sent"))
    save_embedder(small_embedder(), tmp_path)
    assert export.main([str(tmp_path), "--format", "openvino"]) == 0
    printed = capsys.readouterr().out
    assert f"written: {tmp_path}/model.xml and {tmp_path}/model.bin (" in printed
    table = printed[printed.index("milliseconds per batch") :]
    assert all(f"\n{name}  " in table for name in ("PyTorch", "ONNX Runtime", "OpenVINO"))
    assert not (tmp_path / "model.onnx").exists()
    metadata = json.loads((tmp_path / "model.xml.json").read_text())
    assert metadata["format"] == "openvino"
    assert metadata["parity"]["options"] == {"INFERENCE_PRECISION_HINT": "f32"}
    assert "--int8 belongs to --format onnx, not to openvino" in fails(
        export.main, [str(tmp_path), "--format", "openvino", "--int8"], capsys
    )


def test_the_missing_extra_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_embedder(small_embedder(), tmp_path)
    monkeypatch.setattr("hgsl.common.extras.find_spec", lambda name: None if name == "openvino" else name)
    message = fails(export.main, [str(tmp_path), "--format", "openvino"], capsys)
    assert message == "error: exporting to openvino needs openvino: pip install 'hgsl[openvino]'\n"
