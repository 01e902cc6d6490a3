"""8-bit ONNX files: of the weights alone, or of weights and activations calibrated on images."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from hgsl.common.device import cpu_has_int8
from hgsl.common.errors import InputError, first_line
from hgsl.common.extras import require
from hgsl.common.files import atomic_path
from hgsl.export.quiet import quiet
from hgsl.export.session import INPUT

PERCENTILE = 99.99  # of an activation's values within its range: a few outliers would cost all others their digits
NO_HISTOGRAM = "Too many bins for data range"  # NumPy's error where the values of an activation hardly vary
# Relu and Clip are fused with the convolution before them, whose range is then that of their output, from 0 on.
OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "GlobalAveragePool")


def quantize(source: str | Path, path: str | Path) -> None:
    """Writes the ONNX file ``source`` with 8-bit weights; activations are quantized in the range of each batch.

    The file is a quarter of the size, but was slower on every processor that it was measured on. Embeddings change, so
    measure speed and scores before use.

    Raises:
        InputError: The extra is missing.
        OSError: The path cannot be written, or the disk is full.
    """
    require("export", "8-bit quantization")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with atomic_path(path) as temporary, quiet():
        # Unsigned: ONNX Runtime's CPU kernels have no convolution with signed 8-bit weights.
        quantize_dynamic(str(source), str(temporary), weight_type=QuantType.QUInt8, per_channel=True)


def quantize_static(source: str | Path, path: str | Path, images: Sequence[Tensor]) -> None:
    """Writes the ONNX file ``source`` with 8-bit weights, one scale per channel, and calibrated 8-bit activations.

    The range of an activation holds 99.99% of its values on ``images``, or all if one hardly varies. Weights have 7
    bits if this processor has no 8-bit dot products (VNNI), as others overflow there. Embeddings change, so measure
    speed and scores before use.

    Args:
        source: An exported embedder.
        path: The file to write.
        images: Batches (B, 3, H, W) float32, preprocessed as in an evaluation; a hundred images of the kind that will
            be searched are enough.

    Raises:
        InputError: The extra is missing, there are no images, or an activation on them is not finite.
        OSError: The path cannot be written, or the disk is full.
    """
    require("export", "8-bit quantization")
    if not len(images):
        raise InputError("images: there are none to calibrate the activations on, give a hundred or so")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quant_pre_process
    from onnxruntime.quantization import quantize_static as quantize_file

    with atomic_path(path) as temporary, TemporaryDirectory() as folder, quiet():
        fused = f"{folder}/fused.onnx"  # batch norms within convolutions, as the runtime fuses them itself
        quant_pre_process(str(source), fused, skip_symbolic_shape=True)
        _share_weights(fused)
        settings: dict[str, Any] = {
            "quant_format": QuantFormat.QDQ,
            "op_types_to_quantize": list(OPERATORS),
            "per_channel": True,
            "reduce_range": not cpu_has_int8(),
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QInt8,
            # One batch at a time, so that the activations of one are held in memory.
            "extra_options": {"CalibPercentile": PERCENTILE, "CalibStridedMinMax": 1},
        }
        for method in (CalibrationMethod.Percentile, CalibrationMethod.MinMax):
            try:
                quantize_file(fused, str(temporary), _Images(images), calibrate_method=method, **settings)
                return
            except ValueError as error:
                if method is CalibrationMethod.MinMax or NO_HISTOGRAM not in str(error):
                    raise InputError(
                        f"{source} cannot be calibrated on these images: {first_line(error)}; are the images, and the "
                        "activations of the network on them, finite?"
                    ) from error


def _share_weights(path: str) -> None:
    """Stores equal weights once: fusing gives every view of the image (mirror image, scales) a copy of them.

    Biases stay apart, because their scale is that of the activations that they are added to.
    """
    import onnx

    network = onnx.load(path)
    weights = [tensor for tensor in network.graph.initializer if len(tensor.dims) > 1]
    first: dict[tuple[Any, ...], str] = {}
    names = {w.name: first.setdefault((*w.dims, onnx.numpy_helper.to_array(w).tobytes()), w.name) for w in weights}
    for node in network.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for tensor in weights:
        if names[tensor.name] != tensor.name:
            network.graph.initializer.remove(tensor)
    onnx.save(network, path)


class _Images:
    """Batches as ONNX Runtime's calibration reads them: within a range, one dictionary of inputs each, then None."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rows = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, object] | None:
        row = next(self._rows, None)
        return None if row is None else {INPUT: self._batches[row].cpu().contiguous().numpy()}
