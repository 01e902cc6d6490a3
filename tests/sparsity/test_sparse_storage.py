"""Sparse files: their size, bit-exact restoration, and refusal of damaged files."""

import json
import struct
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from hgsl.common.errors import InputError
from hgsl.models.resnet_cifar import resnet20
from hgsl.sparsity import benchmark, compact, load, save, sparsify
from hgsl.sparsity.benchmark import table


def sparse_resnet20(density: float = 0.2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    _, masks = sparsify(resnet20(), 0.1)
    for scores in masks.mask_parameters():
        scores.data.copy_(density - torch.rand(scores.shape))
    masks.ticket = True
    return masks.finalize()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def test_the_file_of_a_ticket_is_small_and_restores_it_bit_for_bit(tmp_path: Path) -> None:
    ticket = sparse_resnet20(0.2)
    save(ticket, tmp_path / "sparse.safetensors")
    save_file(ticket.state_dict(), tmp_path / "dense.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("sparse", "dense")]
    assert sizes[0] <= 0.30 * sizes[1]
    other = resnet20()
    load(other, tmp_path / "sparse.safetensors")
    for name, tensor in ticket.state_dict().items():
        assert same_bits(tensor, other.state_dict()[name]), name
    save(other, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "sparse.safetensors").read_bytes()


def test_every_value_is_restored(tmp_path: Path) -> None:
    class Special(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            special = torch.zeros(33)
            special[[3, 7, 11, 32]] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45])
            self.special = nn.Parameter(special)
            self.rounded = nn.Parameter(torch.zeros(5, 7, dtype=torch.bfloat16))
            self.empty = nn.Parameter(torch.zeros(0, 4))
            self.register_buffer("flags", torch.tensor([True, False]))
            self.register_buffer("count", torch.tensor(7))

    first, second = Special(), Special()
    for tensor in second.state_dict().values():
        tensor.fill_(1)
    save(first, tmp_path / "special.safetensors")
    load(second, tmp_path / "special.safetensors")
    assert torch.signbit(second.special[3])
    for name, tensor in first.state_dict().items():
        restored = second.state_dict()[name]
        raw = [t.view(torch.uint8) if t.ndim else t.reshape(1).view(torch.uint8) for t in (tensor, restored)]
        assert torch.equal(*raw), name


@pytest.mark.slow
def test_a_compacted_network_loads_into_the_architecture_it_came_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    masked, masks = sparsify(timm.create_model("test_efficientnet", num_classes=4), granularity="channel", example=x)
    for scores in masks.mask_parameters():
        scores.data.normal_()
    masks.ticket = True
    small = compact(masked, x).eval()
    save(small, tmp_path / "small.safetensors")
    model = timm.create_model("test_efficientnet", num_classes=4).eval()
    with pytest.raises(InputError, match=r"has another architecture.*pass shrink=True"):
        load(model, tmp_path / "small.safetensors")
    load(model, tmp_path / "small.safetensors", shrink=True)
    assert torch.equal(model(x), small(x))


def test_sizes_that_do_not_fit_or_cut_the_output_change_nothing(tmp_path: Path) -> None:
    path, x = tmp_path / "small.safetensors", torch.randn(2, 3, 32, 32)
    model = resnet20()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stored = {name: tensor.contiguous() for name, tensor in resnet20().state_dict().items()}
    stored["layer1.0.conv1.weight"] = stored["layer1.0.conv1.weight"][:5].clone()  # its norm has 16 channels
    save_file(stored, path, metadata={"hgsl-sparse-1": "{}"})
    with pytest.raises(InputError, match=r"not a compacted version of this .* an input of shape .* fails"):
        load(model, path, shrink=True, example=x)
    stored["fc.bias"] = torch.zeros(1)  # would be broadcast to all classes
    save_file(stored, path, metadata={"hgsl-sparse-1": "{}"})
    with pytest.raises(InputError, match=r"differ in length: \{'fc.weight': 10, 'fc.bias': 1\}"):
        load(model, path, shrink=True, example=x)
    save(resnet20(num_classes=3), path)
    with pytest.raises(InputError, match=r"outputs of shapes \[\(2, 3\)\], those of the model \[\(2, 10\)\]"):
        load(model, path, shrink=True, example=x)
    with pytest.raises(InputError, match=r"cannot be run to check .*: pass an example that it takes"):
        load(model, path, shrink=True, example=torch.randn(2, 7))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_of_another_architecture_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    save(sparse_resnet20(), tmp_path / "r20.safetensors")
    renamed = resnet20()
    renamed.classifier = renamed.fc
    del renamed.fc
    before = {name: tensor.clone() for name, tensor in renamed.state_dict().items()}
    with pytest.raises(InputError, match="another architecture: 'classifier"):
        load(renamed, tmp_path / "r20.safetensors")
    with pytest.raises(
        InputError, match=r"another architecture: 'fc.weight' is \(10, 64\) in the file and \(7, 64\) in the model"
    ):
        load(resnet20(num_classes=7), tmp_path / "r20.safetensors")
    with pytest.raises(InputError, match=r"float32 in the file and torch.float64 in the model"):
        load(resnet20().double(), tmp_path / "r20.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in renamed.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shapes, stored: shapes.update({"conv1.weight": [16, 3, 3, 4]}), "has 576 entries.*bits for 432"),
        (lambda shapes, stored: shapes.update({"conv1.weight": [-16, -27]}), "is not a shape"),
        (lambda shapes, stored: shapes.update({"conv1.weight": "16x27"}), "is not a shape"),
        (lambda shapes, stored: shapes.update({"conv1.weight": [0, 10**30]}), "is not a shape"),
        (lambda shapes, stored: stored.update({"conv1.weight": torch.ones(16, 3, 3, 3)}), "it is stored twice"),
        (
            lambda shapes, stored: shapes.update({"conv1.weight": [27, 16]}),
            r"architecture: .*\(27, 16\) in the file",
        ),
        (lambda shapes, stored: shapes.update({"ghost": [4]}), "'ghost': its bits or values are missing"),
        (lambda shapes, stored: shapes.pop("conv1.weight"), "another architecture: 'conv1.weight'"),
        (lambda shapes, stored: stored["conv1.weight/bits"].fill_(255), "432 bits are set, but there are"),
        (
            lambda shapes, stored: stored.update({"conv1.weight/values": stored["conv1.weight/values"][1:].clone()}),
            "bits are set, but there are",
        ),
        (
            lambda shapes, stored: stored.update({"conv1.weight/bits": stored["conv1.weight/bits"].float()}),
            "missing or malformed",
        ),
    ],
)
def test_a_header_that_contradicts_the_tensors_is_refused(tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "changed.safetensors"
    save(sparse_resnet20(), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    stored, shapes = load_file(path), json.loads(metadata["hgsl-sparse-1"])
    change(shapes, stored)  # type: ignore[operator]
    save_file(stored, path, metadata={"hgsl-sparse-1": json.dumps(shapes)})
    with pytest.raises(InputError, match=message):
        load(resnet20(), path)


def test_damaged_and_missing_files_and_other_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no file .*model\.safetensors"):
        load(resnet20(), path)
    save(sparse_resnet20(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a sparse weights file"):
        load(resnet20(), path)
    path.write_bytes(struct.pack("<Q", 2**60) + whole[8:])
    with pytest.raises(InputError, match="not a sparse weights file"):
        load(resnet20(), path)
    save_file({"weight": torch.zeros(2, 2)}, path, metadata={"hgsl-sparse-1": "[" * 200_000})
    with pytest.raises(InputError, match="not a sparse weights file"):
        load(resnet20(), path)
    save_file(resnet20().state_dict(), path)
    with pytest.raises(InputError, match="its header has no 'hgsl-sparse-1'"):
        load(resnet20(), path)


def test_benchmark_reports_latency_counts_and_scores() -> None:
    x = torch.randn(2, 3, 32, 32)
    dense, ticket = resnet20(), sparse_resnet20()
    dense.conv1.eval()
    quality = {"ticket": {"accuracy": 0.5}}
    rows = benchmark({"dense": dense, "ticket": ticket}, x, repeats=2, quality=quality)
    assert rows["dense"]["parameters"] == rows["ticket"]["parameters"] == 272474
    assert rows["ticket"]["nonzero"] < 0.25 * rows["dense"]["nonzero"]
    assert rows["dense"]["flops"] == rows["ticket"]["flops"] == 81626368
    assert rows["ticket"]["file_bytes"] < 0.3 * rows["dense"]["file_bytes"]
    assert rows["dense"]["latency_ms"] > 0
    assert dense.training
    assert not dense.conv1.training
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert all(part in lines[0] for part in ("images/s", "MFLOPs/image", "file kB", "accuracy"))
    assert "0.5000" in lines[3]


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    save(nn.Linear(2, 2), tmp_path / "file")
    for call in (lambda: save(None, tmp_path / "other"), lambda: load(None, tmp_path / "file"), lambda: compact("x")):
        with pytest.raises(InputError, match=r"model is of type \w+: expected a network"):
            call()
    assert not (tmp_path / "other").exists()
