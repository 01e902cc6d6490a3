"""Mean removal and PCA-whitening of embeddings as a part of the model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 1e-6  # distance to the mean below which a vector is rounding noise


class Whitening(nn.Module):
    """Removes a mean from unit vectors and projects them: (B, D) -> (B, E), unit norm.

    With ``matrix``, y = (x - mean) @ matrix; without, y = x - mean and E = D. The result is y / |y|. A vector x within
    1e-6 of the mean has no direction: y is then x @ matrix, or x. The fit is
    :func:`hgsl.evaluation.refine.whitening.fit_whitening`.

    Args:
        width: D.
        dimensions: E; None removes the mean alone.

    Attributes:
        mean: Buffer (D,).
        matrix: Buffer (D, E), or None.
    """

    mean: Tensor
    matrix: Tensor | None

    def __init__(self, width: int, dimensions: int | None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", None if dimensions is None else torch.zeros(width, dimensions))

    def forward(self, embeddings: Tensor) -> Tensor:
        if torch.is_autocast_enabled(embeddings.device.type):
            with torch.autocast(embeddings.device.type, enabled=False):
                return self._float32(embeddings.float())
        return self._float32(embeddings)

    def _float32(self, embeddings: Tensor) -> Tensor:
        centered = embeddings - self.mean
        is_mean = centered.norm(dim=1, keepdim=True) < SMALLEST
        values = torch.where(is_mean, embeddings, centered)
        if self.matrix is not None:
            values = values @ self.matrix
        return F.normalize(values, dim=1)
