"""From photos to vectors: one way for the photos of an index and for everything that is asked of it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hgsl.common.fingerprint import fingerprint
from hgsl.data.files.images import read_image
from hgsl.evaluation.extract import forward
from hgsl.evaluation.knn.vectors import Floats
from hgsl.models import Embedder


class Encoder:
    """A model with its preprocessing, on a device; it computes in float32, so that every machine gives the same.

    Args:
        model: In evaluation mode.
        device: Where the model computes.

    Attributes:
        side: The shortest side, in pixels, to which a photo is resized; a larger JPEG need not be decoded in full.
        fingerprint: The same for two encoders if, and only if, weights and preprocessing are the same.
    """

    def __init__(self, model: Embedder, device: torch.device) -> None:
        self.model = model.eval()
        self.device = device
        self.transform = model.transform()
        self.side = self.transform.resize.side
        self.fingerprint = _fingerprint(model)
        if model.is_convolutional:
            model.to(memory_format=torch.channels_last)
        model.to(device)

    def read(self, path: Path) -> Tensor:
        """A photo as the model wants it: file -> (3, S, S).

        Raises:
            InputError: It is missing, no image, or damaged.
        """
        return self.transform(read_image(path, self.side))

    def prepare(self, image: Image.Image) -> Tensor:
        """An upright RGB picture as the model wants it: -> (3, S, S)."""
        return self.transform(image)

    def vectors(self, tensors: Sequence[Tensor]) -> Floats:
        """One forward pass: B tensors (3, S, S) -> (B, D) float32 of unit norm."""
        with torch.inference_mode():
            return forward(self.model, torch.stack(list(tensors)).to(self.device)).numpy()


def _fingerprint(model: Embedder) -> str:
    settings = {"architecture": model.architecture, "data_config": model.data_config}
    return fingerprint(model, json.dumps(settings, sort_keys=True))[:16]
