"""From an embedder to a file of another runtime, with any number of images a batch."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError, first_line, unknown
from hgsl.common.extras import require
from hgsl.common.files import atomic_path
from hgsl.export.measure import TOLERANCE, parity
from hgsl.export.session import INPUT, OUTPUT, OnnxEmbedder
from hgsl.models import Embedder

MAX_ONNX_BYTES = 1 << 31  # of one protobuf message
EXTENSIONS = {"onnx": ".onnx", "torch-export": ".pt2"}


def export_model(
    model: Embedder,
    path: str | Path,
    *,
    format: str = "onnx",
    batch_sizes: Sequence[int] = (1, 2, 5, 16),
) -> dict[int, float]:
    """Writes ``model`` as one file, which is read back and compared with the model before it gets its name.

    Args:
        model: On the CPU; it is exported in evaluation mode. The exported model takes images of
            ``data_config["image_size"]`` pixels alone, and batches of any size.
        path: The file to write.
        format: ``onnx`` (for ONNX Runtime and its kin), or ``torch-export`` (for ``torch.export.load``).
        batch_sizes: Batches that the file is tried on.

    Returns:
        Batch size -> the largest absolute difference between the file's embeddings and the model's.

    Raises:
        InputError: An unknown format, a folder in place of the file, a missing extra, a model that cannot be exported,
            or a difference above 1e-4; no file is then left.
    """
    if format not in EXTENSIONS:
        raise unknown("export format", format, EXTENSIONS)
    if Path(path).is_dir():
        raise InputError(
            f"{path} is a folder: name the file to write, such as {Path(path) / 'model'}{EXTENSIONS[format]}"
        )
    if format == "onnx":
        require("export", "exporting to ONNX")
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        if size >= MAX_ONNX_BYTES:
            raise InputError(f"an ONNX file holds up to 2 GiB, the weights are {size / 2**30:.1f}: use torch-export")
    model, image_size = model.eval(), model.data_config["image_size"]
    with atomic_path(path) as temporary:
        try:
            with _quiet():
                again = (_to_onnx if format == "onnx" else _to_program)(model, temporary, image_size)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise InputError(f"cannot export this model to {format}: {first_line(error)}") from error
        found = parity(model, again, image_size, batch_sizes)
        if not max(found.values()) <= TOLERANCE:
            raise InputError(
                f"the {format} file differs from PyTorch by {max(found.values()):.1e}, more than {TOLERANCE:.0e}: "
                "it was removed; try the other format"
            )
    return found


def quantize(source: str | Path, path: str | Path) -> None:
    """Writes the ONNX file ``source`` with 8-bit weights; activations are quantized as they come.

    Fewer bytes, not always less time: processors without 8-bit instructions (VNNI, or ARM's dot product) may be slower,
    and embeddings change, so measure both before use.

    Raises:
        InputError: The extra is missing.
    """
    require("export", "8-bit quantization")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with atomic_path(path) as temporary, _quiet():
        # Unsigned: ONNX Runtime's CPU kernels have no convolution with signed 8-bit weights.
        quantize_dynamic(str(source), str(temporary), weight_type=QuantType.QUInt8, per_channel=True)


def _to_onnx(model: nn.Module, path: Path, image_size: int) -> OnnxEmbedder:
    torch.onnx.export(
        model,
        (_example(image_size),),
        str(path),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return OnnxEmbedder(path)


def _to_program(model: nn.Module, path: Path, image_size: int) -> Callable[[Tensor], Tensor]:
    shapes = {"images": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(model, (_example(image_size),), dynamic_shapes=shapes), path)
    return torch.export.load(path).module()  # the file just written, not one from elsewhere


def _example(image_size: int) -> Tensor:
    """Two images, as exporters take a batch of one for a constant."""
    return torch.zeros(2, 3, image_size, image_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what exporters print about themselves on success."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
