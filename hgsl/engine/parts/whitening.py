"""Fit of the whitening that is saved with a model."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.config import EvalConfig
from hgsl.engine.runtime import Runtime
from hgsl.evaluation import embed
from hgsl.evaluation.refine.whitening import fit_whitening
from hgsl.models import Embedder

MEAN_IMAGES = 1000  # evenly spaced training images, which give the mean to a few thousandths


def add_whitening(model: Embedder, view: nn.Module, images: Any, settings: EvalConfig, runtime: Runtime) -> None:
    """Fits mean removal or PCA-whitening on the embeddings of training images, and adds it to ``model``.

    A mean is that of at most ``MEAN_IMAGES`` images. Where the embeddings have no variance, or in fewer directions than
    the settings ask for, the model is kept: whitening keeps the directions that there are, and a note says so.

    Args:
        model: The trained model.
        view: The part of it that embeds ``images``.
        images: Training images as in an evaluation.
        settings: ``whiten`` and ``shrinkage``.
        runtime: Device and precision.
    """
    if settings.whiten == "mean" and len(images) > MEAN_IMAGES:
        images = Subset(images, np.linspace(0, len(images) - 1, MEAN_IMAGES).astype(np.int64).tolist())
    vectors = embed(
        view,
        images,
        batch_size=settings.batch_size,
        num_workers=runtime.workers,
        device=runtime.device,
        dtype=runtime.dtype,
    ).embeddings
    if settings.whiten == "mean":
        model.set_whitening(torch.from_numpy(vectors.mean(axis=0, dtype="float64")))
        return
    assert isinstance(settings.whiten, int)
    dimensions = min(settings.whiten or vectors.shape[1], vectors.shape[1])
    try:
        fit = fit_whitening(vectors, dimensions or None, shrinkage=settings.shrinkage, at_most=True)
    except InputError as error:  # after hours of training, keep the model
        ranks.print_main(f"note: no whitening: {error}")
        return
    if fit.projection.shape[1] < settings.whiten:
        ranks.print_main(
            f"note: whitening to {fit.projection.shape[1]} of {settings.whiten} dimensions: the training "
            "embeddings have variance in no more directions"
        )
    model.set_whitening(torch.from_numpy(fit.mean), torch.from_numpy(fit.projection.copy()))
