"""Export of trained embedders to other runtimes, verified against PyTorch."""

from hgsl.export.formats import EXTENSIONS, export_files, export_model
from hgsl.export.measure import TOLERANCE, latencies, parity
from hgsl.export.metadata import describe
from hgsl.export.openvino import OpenVinoEmbedder
from hgsl.export.quantization import quantize, quantize_static
from hgsl.export.session import OnnxEmbedder

__all__ = [
    "EXTENSIONS",
    "TOLERANCE",
    "OnnxEmbedder",
    "OpenVinoEmbedder",
    "describe",
    "export_files",
    "export_model",
    "latencies",
    "parity",
    "quantize",
    "quantize_static",
]
