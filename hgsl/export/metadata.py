"""Metadata of an exported file: the content of the JSON file that specifies its use from any language."""

from collections.abc import Mapping
from typing import Any

from hgsl.common.transforms import is_squashed
from hgsl.export.measure import TOLERANCE
from hgsl.export.session import INPUT, OUTPUT
from hgsl.models import Embedder


def describe(
    model: Embedder, format: str, differences: Mapping[int, float], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the specification of input and output, the preprocessing, and the differences from PyTorch.

    Args:
        model: The exported model.
        format: Format of the file.
        differences: Batch size -> largest absolute difference from PyTorch.
        versions: Package -> version, of the packages that wrote the file.
    """
    config = model.data_config
    image_size = config["image_size"]
    resized = int(image_size / config["crop_pct"])
    return {
        "format": format,
        "input": {"name": INPUT, "dtype": "float32", "shape": ["batch", 3, image_size, image_size]},
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["batch", model.embedding_size],
            "norm": 1.0,
            "similarity": "dot product",
        },
        "preprocessing": {
            "color": "RGB, rotated by the EXIF orientation",
            "resize_shortest_side": resized,
            **({"then_resize_both_sides": resized} if is_squashed(config) else {}),
            "interpolation": config["interpolation"],
            "antialias": True,
            "center_crop": image_size,
            "divide_by": 255,
            "then_subtract": list(config["mean"]),
            "then_divide_by": list(config["std"]),
            "layout": "channels, rows, columns",
        },
        "parity": {
            "tolerance": TOLERANCE,
            "largest_difference": {str(k): v for k, v in differences.items()},
            **({"options": {"INFERENCE_PRECISION_HINT": "f32"}} if format == "openvino" else {}),
        },
        "architecture": model.architecture,
        "versions": dict(versions),
    }
