"""PCA-whitening: decorrelated embeddings with equal variance in every direction, fitted on training images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.vectors import Array, Floats, Vectors, open_vectors

ROUNDING = 1e-13  # variances of unit rows below this are rounding errors


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ projection, scaled to unit length.

    Attributes:
        mean: (D,) float64.
        projection: (D, E) float64, the leading eigenvectors of the covariance over the roots of their eigenvalues.
    """

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]

    def apply(self, embeddings: Array) -> Floats:
        """Returns (N, E) float32 unit rows.

        Raises:
            InputError: The embeddings have another width than those it was fitted on.
        """
        vectors = open_vectors(embeddings)
        if vectors.width != len(self.mean):
            raise InputError(
                f"whitening was fitted on {len(self.mean)} dimensions, the embeddings have {vectors.width}"
            )
        whitened = np.empty((len(vectors), self.projection.shape[1]), dtype=np.float32)
        for chunk in vectors.chunks():
            rows = (vectors.rows(chunk) - self.mean) @ self.projection
            whitened[chunk] = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
        return whitened


def fit_whitening(
    embeddings: Array,
    dimensions: int | None = None,
    floor: float = 1e-6,
    *,
    shrinkage: float = 0.0,
    at_most: bool = False,
) -> Whitening:
    """Fits PCA-whitening, in float64, on unit rows.

    With the eigenvalues l_1 >= l_2 >= ... and eigenvectors v_i of the covariance of the rows x, their mean m, and the
    shrinkage g, y_i = v_i . (x - m) / sqrt((1 - g) l_i + g mean(l)); the mean is over all D directions. So g = 0
    gives every direction the same variance, and g = 1 is a rotation and a projection (PCA without whitening).

    Args:
        embeddings: (N, D) of training images; fitting on the evaluated images would leak them.
        dimensions: E, how many leading directions are kept; by default all that have variance.
        floor: Directions whose variance is below this share of the largest are dropped: dividing by it would
            amplify rounding noise.
        shrinkage: g, from 0 to 1.
        at_most: Whether to keep fewer than ``dimensions`` where the embeddings have variance in fewer directions.

    Raises:
        InputError: The embeddings are all the same, ``floor`` or ``shrinkage`` is out of range, or the embeddings have
            variance in fewer than ``dimensions`` directions without ``at_most``.
    """
    if not 0 <= floor < 1:
        raise InputError(f"floor is a share of the largest variance, from 0 to below 1, found {floor}")
    if not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage must lie from 0 to 1, found {shrinkage}")
    vectors = open_vectors(embeddings)
    mean, moment = _moments(vectors)
    values, directions = np.linalg.eigh(moment - np.outer(mean, mean))
    values, directions = values[::-1], directions[:, ::-1]
    if values[0] <= ROUNDING:
        raise InputError(
            f"whitening: {len(vectors)} identical embeddings have no directions to whiten, give embeddings of several "
            "images, or check the network that computed them"
        )
    usable = int((values > floor * values[0]).sum())
    if at_most and dimensions is not None:
        dimensions = min(dimensions, usable)
    if dimensions is not None and not 1 <= dimensions <= usable:
        raise InputError(
            f"dimensions: {len(vectors)} embeddings have variance in {usable} directions, cannot keep {dimensions}"
        )
    width = usable if dimensions is None else dimensions
    scale = (1 - shrinkage) * values[:width] + shrinkage * values.clip(min=0).mean()
    return Whitening(mean, directions[:, :width] / np.sqrt(scale))


def _moments(vectors: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The means of x and of x x^T."""
    total, squares = np.zeros(vectors.width), np.zeros((vectors.width, vectors.width))
    for chunk in vectors.chunks():
        rows = vectors.rows(chunk).astype(np.float64)
        total += rows.sum(axis=0)
        squares += rows.T @ rows
    return total / len(vectors), squares / len(vectors)
