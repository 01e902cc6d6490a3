"""Exported files: parity with PyTorch, the metadata beside them, and refusals."""

import json
import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import register_model
from timm.models.swin_transformer import swin_tiny_patch4_window7_224
from torch import nn

from hgsl.cli import _int8, export, train
from hgsl.common import extras
from hgsl.common.errors import InputError
from hgsl.export import TOLERANCE, OnnxEmbedder, export_model, latencies, parity, quantize, quantize_static
from hgsl.export.metadata import describe
from hgsl.models import create_embedder, save_embedder
from hgsl.models.storage.description import Description
from hgsl.models.storage.model_card import model_card

pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
onnx = pytest.importorskip("onnx", reason="the extra [export] is not installed")
SLOW = pytest.mark.slow
NETWORKS = [
    pytest.param("onnx", "test_vit", "gem", 24, marks=SLOW),
    ("torch-export", "test_resnet", "scda", None),
    pytest.param("onnx", "test_resnet", "maxavg", None, marks=SLOW),
    pytest.param("onnx", "test_efficientnet", "scda", 16, marks=SLOW),
    pytest.param("onnx", "small_swin", "avg", None, marks=SLOW),
    pytest.param("torch-export", "test_vit", "gem", 24, marks=SLOW),
    pytest.param("torch-export", "test_convnext", "max", 8, marks=SLOW),
]


@register_model
def small_swin(pretrained: bool = False, **options: Any) -> nn.Module:
    """Plain and shifted windows and the merging of patches, without the width and depth whose export takes minutes."""
    return swin_tiny_patch4_window7_224(pretrained, embed_dim=24, depths=(2, 2), num_heads=(2, 4), **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a tiny model, without its data set."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = create_embedder("test_resnet", "maxavg", embedding_size=24, weights="none", image_size=48).eval()
    model.data_config["crop_pct"] = 0.75
    save_embedder(model, folder)
    assert export.main([str(folder)]) == 0
    return folder


@pytest.mark.parametrize(("format", "backbone", "pooling", "size"), NETWORKS)
def test_the_file_computes_what_the_model_does(
    tmp_path: Path, format: str, backbone: str, pooling: str, size: int | None
) -> None:
    torch.manual_seed(0)
    side = 224 if backbone == "small_swin" else 64
    model = create_embedder(backbone, pooling, size, weights="none", image_size=side).eval()
    path = tmp_path / "model.file"
    differences = export_model(model, path, format=format, batch_sizes=(1, 3))
    assert set(differences) == {1, 3}
    assert max(differences.values()) <= TOLERANCE
    images = torch.randn(7, 3, side, side)  # a batch size that the export did not compare
    exported = OnnxEmbedder(path) if format == "onnx" else torch.export.load(path).module()
    with torch.inference_mode():
        torch.testing.assert_close(exported(images), model(images), atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_views_and_whitening_are_in_the_file(tmp_path: Path, format: str) -> None:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", weights="none", image_size=48).eval()
    mean = torch.rand(model.embedding_size) / 10
    model.set_whitening(mean, torch.randn(len(mean), 6))
    model.set_views(flip=True, scales=[1.0, 1.25])
    images = torch.randn(3, 3, 48, 48)
    export_model(model, tmp_path / "model", format=format, batch_sizes=(2,))
    exported = OnnxEmbedder(tmp_path / "model") if format == "onnx" else torch.export.load(tmp_path / "model").module()
    with torch.inference_mode():
        vectors = exported(images)
        assert vectors.shape == (3, 6)
        torch.testing.assert_close(vectors, model(images), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(exported(images.flip(-1)), vectors, atol=TOLERANCE, rtol=0)
    if format == "onnx":
        quantize(tmp_path / "model", tmp_path / "int8.onnx")
        assert OnnxEmbedder(tmp_path / "int8.onnx")(images).shape == (3, 6)
        quantize_static(tmp_path / "model", tmp_path / "static.onnx", images.split(1))
        assert OnnxEmbedder(tmp_path / "static.onnx")(images).shape == (3, 6)
        # The four views share their weights.
        assert (tmp_path / "static.onnx").stat().st_size < 0.5 * (tmp_path / "model").stat().st_size


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_a_full_disk_is_an_error_with_the_path(tmp_path: Path, format: str) -> None:
    """A limit on the size of files stands for the disk; no file is left."""
    model = create_embedder("test_resnet", "avg", weights="none", image_size=32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{tmp_path}/model"):
            export_model(model, tmp_path / "model", format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_before_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_embedder("test_resnet", "avg", weights="none", image_size=32)
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("the export has begun"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"1,000 bytes are free.*model\.pt2"):
        export_model(model, tmp_path / "model.pt2", format="torch-export")
    assert not list(tmp_path.iterdir())


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    model = create_embedder("test_resnet", "avg", weights="none").to("meta")
    with pytest.raises(InputError, match="the model is on the meta device, which holds no weights: load them"):
        export_model(model, tmp_path / "model.onnx")


def test_images_of_another_form_are_refused(run: Path) -> None:
    network = OnnxEmbedder(run / "model.onnx")
    for images in (torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 48, 48, dtype=torch.float64), torch.zeros(3, 48, 48)):
        with pytest.raises(InputError, match=r"images are .*: this file takes float32 \(B, 3, 48, 48\)"):
            network(images)


@pytest.mark.parametrize("batch_sizes", [(), (0,), (2.0,), 5])
def test_an_export_is_compared_on_batches(tmp_path: Path, batch_sizes: Any) -> None:
    model = create_embedder("test_resnet", "avg", weights="none", image_size=32)
    with pytest.raises(InputError, match=r"batch_sizes is .*: expected positive integers, such as \(1, 2, 5\)"):
        export_model(model, tmp_path / "model.pt2", format="torch-export", batch_sizes=batch_sizes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [nn.Linear(2, 2), None])
def test_another_network_is_refused(tmp_path: Path, model: Any) -> None:
    with pytest.raises(InputError, match=r"model is of type .*: expected the Embedder of create_embedder"):
        export_model(model, tmp_path / "model.onnx")


def test_a_copy_on_the_cpu_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving the model itself would move the caller's, whose mode must not change either."""
    model = create_embedder("test_resnet", "avg", weights="none", image_size=32).train()
    moved: list[torch.nn.Module] = []
    to_cpu = torch.nn.Module.cpu
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda module: moved.append(module) or to_cpu(module))
    export_model(model, tmp_path / "model.pt2", format="torch-export", batch_sizes=(3,))
    assert len(moved) == 1
    assert moved[0] is not model
    assert not moved[0].training
    assert all(module.training for module in model.modules())


def test_a_file_that_differs_is_not_kept(tmp_path: Path) -> None:
    class Unstable(nn.Module):
        """Returns another output each time, like an operator that is exported wrongly."""

        calls = 0
        data_config: ClassVar = {"image_size": 8}

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            Unstable.calls += 1
            return images.flatten(1)[:, :4] + Unstable.calls

    with pytest.raises(InputError, match=r"differs from PyTorch by .*more than 1e-04: it was removed"):
        export_model(Unstable(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_gives_nan_for_some_batches_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(nn.Module):
        data_config: ClassVar = {"image_size": 8}

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    monkeypatch.setattr("hgsl.export.formats.parity", lambda *_: {1: 1e-7, 2: math.nan, 5: 1e-7})
    with pytest.raises(InputError, match="differs from PyTorch by nan"):
        export_model(Network(), tmp_path / "model.pt2", format="torch-export")
    assert not list(tmp_path.iterdir())


def test_parity_and_latencies() -> None:
    assert parity(lambda x: x, lambda x: x + 0.25, 8, (1, 2)) == pytest.approx({1: 0.25, 2: 0.25}, abs=1e-6)
    assert np.isnan(parity(lambda x: x, lambda x: x * torch.nan, 8, (1,))[1])
    milliseconds = latencies({"a": lambda x: x, "b": lambda x: x}, 8, (1, 2), repeats=3)
    assert {name: sorted(row) for name, row in milliseconds.items()} == {"a": [1, 2], "b": [1, 2]}


def test_the_metadata_suffices_to_use_the_file(run: Path) -> None:
    """Following the JSON with Pillow and NumPy alone gives the embeddings of PyTorch."""
    import onnxruntime

    metadata = json.loads((run / "model.onnx.json").read_text())
    steps = metadata["preprocessing"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    short, side = steps["resize_shortest_side"], steps["center_crop"]
    assert (short, side) == (64, 48)
    scaled = image.resize((120 * short // 90, short), getattr(Image.Resampling, steps["interpolation"].upper()))
    left, top = round((scaled.width - side) / 2), round((scaled.height - side) / 2)
    pixels = np.asarray(scaled.crop((left, top, left + side, top + side)), dtype=np.float32) / steps["divide_by"]
    pixels = (pixels - np.float32(steps["then_subtract"])) / np.float32(steps["then_divide_by"])
    session = onnxruntime.InferenceSession(str(run / "model.onnx"))
    (vector,) = session.run([metadata["output"]["name"]], {metadata["input"]["name"]: pixels.transpose(2, 0, 1)[None]})

    from hgsl import load_embedder

    model = load_embedder(run)
    with torch.inference_mode():
        expected = model(model.transform()(image)[None]).numpy()
    assert float((vector * expected).sum()) > 0.9999  # Pillow's resizing differs by one of 255 levels
    assert metadata["output"]["shape"] == ["batch", 24]
    assert metadata["parity"]["tolerance"] == 1e-4
    assert set(metadata["parity"]["largest_difference"]) == {"1", "2", "5", "16"}


def test_metadata_and_model_card_state_the_square_resize_of_models_that_squash_images() -> None:
    model = create_embedder("test_vit", weights="none", image_size=32)
    description = Description(model.architecture, model.data_config)
    assert "then_resize_both_sides" not in describe(model, "onnx", {}, {})["preprocessing"]
    assert "both sides" not in model_card("name", description, 64)
    model.data_config |= {"crop_mode": "squash", "crop_pct": 0.8}
    assert describe(model, "onnx", {}, {})["preprocessing"]["then_resize_both_sides"] == 40
    assert "shortest side resized to 40 pixels (bicubic), then both sides, center crop" in model_card(
        "name", description, 64
    )


@pytest.mark.slow
def test_int8_reports_its_scores_on_the_data_of_the_run(
    photo_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = photo_folder()
    words = ["--config", str(Path(train.__file__).parents[1] / "configs/folder.yaml"), "--data.root", str(root)]
    words += ["--model.backbone", "test_resnet", "--model.weights", "none", "--data.image_size", "32"]
    words += ["--train.epochs", "1", "--train.batch_size", "4", "--run.device", "cpu", "--run.precision", "float32"]
    words += ["--model.freeze", "none", "--loss.top_k", "2", "--data.workers", "0", "--run.dir", str(tmp_path / "run")]
    assert train.main(words) == 0
    score = json.loads((tmp_path / "run/report.json").read_text())["after"]
    root.rename(tmp_path / "moved")
    capsys.readouterr()
    words = [str(tmp_path / "run"), "--int8", "--root", str(tmp_path / "moved")]
    assert export.main([*words, "--keep-slower"]) == 0
    printed = capsys.readouterr().out
    files = [tmp_path / "run" / f"model{suffix}.onnx" for suffix in ("", ".int8", ".int8-dynamic")]
    for file in files[1:]:
        assert file.stat().st_size < files[0].stat().st_size
        assert f"written: {file}" in printed
    assert f"split {score['split_hash']}" in printed
    table = printed[printed.index("split") :].splitlines()
    rows = {line.split("  ")[0]: line.split()[-1] for line in table if line.startswith(("PyT", "ONNX", "8 b"))}
    assert set(rows) == {"PyTorch", "ONNX Runtime", "8 bits, static", "8 bits, dynamic"}
    assert float(rows["PyTorch"]) == pytest.approx(100 * score["map@r"], abs=0.01)
    assert "milliseconds per batch" in printed

    slow = {"PyTorch": 1.0, _int8.FLOAT: 1.0, _int8.STATIC: 0.9, _int8.DYNAMIC: 1.1}
    monkeypatch.setattr(_int8, "latencies", lambda *_: {name: {1: time, 16: 2 * time} for name, time in slow.items()})
    assert export.main(words) == 0
    printed = capsys.readouterr().out
    assert "model.int8.onnx" in printed
    assert "takes 90% (batch 1), 90% (batch 16) of the time of the float32 file" in printed
    assert "not kept: model.int8-dynamic.onnx takes 110% (batch 1)" in printed
    assert [file.is_file() for file in files] == [True, True, False]


@pytest.mark.slow
def test_static_quantization_keeps_the_directions_of_calibrated_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", weights="none", image_size=48).eval()
    export_model(model, tmp_path / "model.onnx", batch_sizes=(2,))
    images = torch.randn(12, 3, 48, 48)
    quantize_static(tmp_path / "model.onnx", tmp_path / "int8.onnx", images[:8].split(3))
    with torch.inference_mode():
        similarity = (OnnxEmbedder(tmp_path / "int8.onnx")(images[8:]) * model(images[8:])).sum(dim=1)
    assert 0.998 < similarity.min() < 0.999999  # 8 bits, and not the float32 network
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    producer = {output: node.op_type for node in nodes for output in node.output}
    assert "DequantizeLinear" in producer.values()
    before_activations = {producer[node.input[0]] for node in nodes if node.op_type == "Relu"}
    assert "DequantizeLinear" not in before_activations  # ranges are taken after an activation, not before
    with pytest.raises(InputError, match="images: there are none to calibrate the activations on"):
        quantize_static(tmp_path / "model.onnx", tmp_path / "other.onnx", [])
    infinite = images[:2].clone()
    infinite[1, 2, 3, 4] = math.inf
    with pytest.raises(InputError, match=r"model\.onnx cannot be calibrated on these images: .*is not finite"):
        quantize_static(tmp_path / "model.onnx", tmp_path / "other.onnx", [infinite])
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.slow
def test_an_activation_that_hardly_varies_is_calibrated_by_its_extremes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", weights="none", image_size=48).eval()
    export_model(model, tmp_path / "model.onnx", batch_sizes=(1,))
    image = torch.ones(1, 3, 48, 48)
    image[0, 0, 0, 0] += torch.finfo(image.dtype).eps  # no histogram has a hundred bins between 1 and the next number
    quantize_static(tmp_path / "model.onnx", tmp_path / "int8.onnx", [image])
    with torch.inference_mode():
        assert (OnnxEmbedder(tmp_path / "int8.onnx")(image) * model(image)).sum() > 0.99


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--format", "torch-export", "--int8"], "--int8 belongs to --format onnx, not to torch-export"),
        (["RUN", "--push", "me/x"], "--push belongs to --format hub"),
        (["RUN", "--int8"], "has no config.yaml"),
        (["RUN", "--root", "x"], "give both"),
        (["RUN", "--keep-slower"], "--keep-slower keeps files of --int8: give both"),
        (["RUN", "--int8", "--root", "absent"], "has no config.yaml"),
        (["RUN", "--format", "hub", "--license", ""], "--license is empty"),
        (["RUN", "--out", ""], "--out is empty"),
        (
            ["RUN", "--format", "hub", "--push", "birds"],
            "'birds' is not the name of a model on the Hub",
        ),
        (["RUN", "--out", "RUN"], "is a folder: name the file to write, such as"),
        (["RUN", "--out", "RUN/model.pt2"], "model.pt2 has the extension of another format than onnx"),
        (["RUN", "--out", "/proc/none/model.onnx"], "/proc/none/model.onnx"),
        (["RUN", "--out", "/proc/none", "--format", "hub"], "/proc/none"),
        (["me/birds"], "me/birds is on the Hub: name the file or folder to write with --out"),
        (["nowhere"], "no model at nowhere: expected a run folder"),
        (["nowhere", "--out", "x.onnx"], "no model at nowhere: expected a run folder"),
    ],
)
def test_mistakes_end_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert export.main([word.replace("RUN", str(run)) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_extra_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert export.main([str(run)]) == 2
    assert "needs onnx, onnxscript, onnxruntime: pip install 'hgsl[export]'" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x80\x04cos\nsystem\n(S'id'\ntR."])
def test_a_damaged_onnx_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match="cannot be run by ONNX Runtime"):
        OnnxEmbedder(tmp_path / "model.onnx")


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_ends_an_export_in_an_error_that_names_the_file(tmp_path: Path) -> None:
    model = create_embedder("test_resnet", weights="none").eval()
    with pytest.raises(OSError, match=r"File too large: '.*/model\.pt2'"):
        export_model(model, tmp_path / "model.pt2", format="torch-export")
    assert not list(tmp_path.iterdir())
