"""Image files and model in the parts of an evaluation, by which an index can be filled from them."""

from typing import Any

import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.data import Manifest
from hgsl.engine.evaluation.options import EvalOptions
from hgsl.evaluation.parts.part import Columns
from hgsl.models import Embedder
from hgsl.models.fingerprint import fingerprint_of


def file_columns(manifest: Manifest | None) -> Columns:
    """Path, size and modification time of each image, if all are files on this machine's disks.

    Raises:
        InputError: An image does not exist.
    """
    if manifest is None or manifest.render is not None or manifest.content is not None or manifest.addresses:
        return {}
    locations = [manifest.location(row) for row in range(len(manifest))]
    if any(isinstance(location, str) for location in locations):
        return {}
    try:
        status = [location.stat() for location in locations]  # type: ignore[union-attr]
    except FileNotFoundError as error:
        raise InputError(f"image {error.filename} does not exist") from None
    sizes, times = [state.st_size for state in status], [state.st_mtime_ns for state in status]
    return {"path": list(manifest.paths), "size": sizes, "mtime_ns": times}


def part_record(network: nn.Module, manifest: Manifest | None, options: EvalOptions) -> dict[str, Any]:
    """The model of the parts, with what distinguishes their vectors from those of an index, and the image folder."""
    model = fingerprint_of(network) if isinstance(network, Embedder) else type(network).__name__
    differences = [] if options.dtype == torch.float32 else [f"in {str(options.dtype).removeprefix('torch.')}"]
    if manifest is not None and manifest.crop_to_boxes:
        differences.append("cropped to boxes")
    root = "" if manifest is None else str(manifest.root)
    return {"model": ", ".join([model, *differences]), "root": root}
