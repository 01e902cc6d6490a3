"""Export formats: ONNX, OpenVINO and torch.export files, which take batches of any size."""

import copy
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError, first_line, unknown
from hgsl.common.extras import EXPORT_EXTRAS, require
from hgsl.common.files import atomic_path
from hgsl.export.measure import TOLERANCE, Network, parity
from hgsl.export.openvino import OpenVinoEmbedder, convert
from hgsl.export.quiet import quiet
from hgsl.export.session import INPUT, OUTPUT, OnnxEmbedder
from hgsl.models import Embedder

MAX_ONNX_BYTES = 1 << 31  # of one protobuf message
EXTENSIONS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}


def export_model(
    model: Embedder,
    path: str | Path,
    *,
    format: str = "onnx",
    batch_sizes: Sequence[int] = (1, 2, 5, 16),
) -> dict[int, float]:
    """Writes ``model`` as one file, or a pair; it is loaded and compared with the model before it replaces ``path``.

    Args:
        model: On any device; a copy on the CPU, in evaluation mode, is exported. The exported model takes images of
            ``data_config["image_size"]`` pixels only, and batches of any size.
        path: The file to write. Format ``openvino`` writes ``path``, which ends in ``.xml``, and the weights in a
            ``.bin`` file of the same name.
        format: ``onnx`` (for ONNX Runtime and others), ``openvino``, or ``torch-export`` (for ``torch.export.load``).
        batch_sizes: Batch sizes of the comparison.

    Returns:
        Batch size -> the largest absolute difference between the file's embeddings and the model's.

    Raises:
        InputError: No embedder, no batch sizes, an unknown format, a path of another format, a missing extra, a model
            without weights (on the meta device), one that cannot be exported, or a difference above 1e-4; no file is
            written then.
        OSError: The path cannot be written, or the disk is full; checked before the export where possible.
    """
    _check_model(model, batch_sizes)
    check_path(path, format)
    check_writable(path, _check_weights(model, format))
    model, image_size = copy.deepcopy(model).cpu().eval(), model.data_config["image_size"]
    targets = export_files(path, format)
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_path(target)) for target in targets]
        try:
            with quiet():
                exported = WRITERS[format](model, files, image_size)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise InputError(f"cannot export this model to {format}: {first_line(error)}") from error
        differences = parity(model, exported, image_size, batch_sizes)
        too_large = [difference for difference in differences.values() if not difference <= TOLERANCE]  # also NaN
        if too_large:
            raise InputError(
                f"the {format} file differs from PyTorch by {max(too_large):.1e}, more than {TOLERANCE:.0e}: "
                "it was removed; try another format"
            )
        if len(targets) > 1:  # the last is renamed first; a crash in between leaves none rather than two that differ
            targets[0].unlink(missing_ok=True)
    return differences


def export_files(path: str | Path, format: str) -> list[Path]:
    """Returns the files that an export to ``path`` writes: ``path`` and, for OpenVINO, the weights beside it."""
    return [Path(path), *([Path(path).with_suffix(".bin")] if format == "openvino" else [])]


def _check_model(model: object, batch_sizes: object) -> None:
    """Refuses a network whose image size is not known, and a comparison of nothing."""
    if not isinstance(model, nn.Module) or "image_size" not in getattr(model, "data_config", {}):
        raise InputError(
            f"model is of type {type(model).__name__}: expected the Embedder of create_embedder or load_embedder"
        )
    sizes = list(batch_sizes) if isinstance(batch_sizes, Iterable) else []
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise InputError(f"batch_sizes is {batch_sizes!r:.80}: expected positive integers, such as (1, 2, 5)")


def _check_weights(model: nn.Module, format: str) -> int:
    """Refuses weights that the format cannot hold, or that have no values; returns their size in bytes."""
    tensors = model.state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if format in EXPORT_EXTRAS:
        require(EXPORT_EXTRAS[format], f"exporting to {format}")
        if size >= MAX_ONNX_BYTES:
            raise InputError(f"the weights take {size / 2**30:.1f} GiB, an ONNX file at most 2 GiB: use torch-export")
    if any(tensor.is_meta for tensor in tensors):
        raise InputError("the model is on the meta device, which holds no weights: load them before the export")
    return size


def check_path(path: str | Path, format: str) -> None:
    """Checks that ``path`` can be the name of a file of this format.

    Raises:
        InputError: An unknown format, a folder, or the extension of another format.
    """
    if format not in EXTENSIONS:
        raise unknown("export format", format, EXTENSIONS)
    path, extension = Path(path), EXTENSIONS[format]
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the file to write, such as {path / 'model'}{extension}")
    if path.suffix in EXTENSIONS.values() and path.suffix != extension:
        raise InputError(f"{path} has the extension of another format than {format}, whose files end in {extension}")
    if format == "openvino" and path.suffix != extension:
        raise InputError(f"{path} does not end in {extension}: OpenVINO finds the weights by the same name in .bin")


def _to_onnx(model: nn.Module, files: Sequence[Path], image_size: int) -> OnnxEmbedder:
    (path,) = files
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


def _to_openvino(model: nn.Module, files: Sequence[Path], image_size: int) -> OpenVinoEmbedder:
    with TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        _to_onnx(model, [source], image_size)
        convert(source, *files)
    return OpenVinoEmbedder(*files)


def _to_program(model: nn.Module, files: Sequence[Path], image_size: int) -> Network:
    (path,) = files
    shapes = {"images": {0: torch.export.Dim("batch")}}
    content = io.BytesIO()  # PyTorch reports a full disk as a RuntimeError without its cause
    torch.export.save(torch.export.export(model, (_example(image_size),), dynamic_shapes=shapes), content)
    path.write_bytes(content.getbuffer())
    return torch.export.load(path).module()  # the file just written, not one from elsewhere


def _example(image_size: int) -> Tensor:
    """Returns a batch of two images: exporters would specialize the graph to a batch size of one."""
    return torch.zeros(2, 3, image_size, image_size)


# Format -> function that writes the files, and returns the network that they hold.
WRITERS: Mapping[str, Callable[[nn.Module, Sequence[Path], int], Network]] = {
    "onnx": _to_onnx,
    "openvino": _to_openvino,
    "torch-export": _to_program,
}
