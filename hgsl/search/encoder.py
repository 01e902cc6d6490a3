"""The model of an index with its preprocessing: the same for indexed images and for queries."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.images import read_image
from hgsl.common.locations import Location
from hgsl.evaluation.extract import forward
from hgsl.evaluation.knn.vectors import Floats
from hgsl.models import Embedder
from hgsl.models.fingerprint import fingerprint_of

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # in the errors of CUDA and of the CPU allocator


class OutOfMemory(InputError):
    """A batch that does not fit in the memory of the device."""


class Encoder:
    """A model on a device; it computes in float32, so that vectors from different devices can be compared.

    Args:
        model: The model, whose ``transform`` prepares the images.
        device: Device of the computation.

    Attributes:
        dimensions: D.
        side: The shortest side, in pixels, to which an image is resized; a larger JPEG need not be decoded in full.
        fingerprint: Equal for two encoders if and only if weights and preprocessing are.
    """

    def __init__(self, model: Embedder, device: torch.device) -> None:
        self.model = model.eval()
        self.device = device
        self.dimensions = model.embedding_size
        self.transform = model.transform()
        self.side = self.transform.resize.side
        self.fingerprint = fingerprint_of(model)
        if model.prefers_channels_last(device):
            model.to(memory_format=torch.channels_last)
        model.to(device)

    def read(self, location: Location) -> Tensor:
        """Reads an image file as model input, (3, S, S).

        Raises:
            InputError: It is missing, not an image, or damaged.
        """
        return self.transform(read_image(location, self.side))

    def prepare(self, image: Image.Image) -> Tensor:
        """Converts an upright RGB image to model input, (3, S, S)."""
        return self.transform(image)

    def vectors(self, tensors: Sequence[Tensor]) -> Floats:
        """One forward pass: B tensors (3, S, S) -> (B, D) float32 of unit norm.

        Raises:
            OutOfMemory: The batch does not fit on the device.
        """
        try:
            with torch.inference_mode():
                return forward(self.model, torch.stack(list(tensors)).to(self.device)).numpy()
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not any(phrase in str(error) for phrase in OUT_OF_MEMORY):
                raise
            raise OutOfMemory(
                f"not enough memory on {self.device} for {len(tensors)} images at a time: use a smaller --batch-size"
            ) from None

    def description(self) -> dict[str, Any]:
        """Fingerprint, architecture and preprocessing, with tuples as lists, as they are read back from JSON."""
        content = {
            "fingerprint": self.fingerprint,
            "architecture": self.model.architecture,
            "data_config": self.model.data_config,
        }
        as_json: dict[str, Any] = json.loads(json.dumps(content))
        return as_json
