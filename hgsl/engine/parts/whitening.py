"""Fit of the whitening that is saved with a model."""

from typing import Any

import torch
from torch import nn

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.config import EvalConfig
from hgsl.engine.runtime import Runtime
from hgsl.evaluation import embed
from hgsl.evaluation.refine.whitening import fit_whitening
from hgsl.models import Embedder


def add_whitening(model: Embedder, view: nn.Module, images: Any, settings: EvalConfig, runtime: Runtime) -> None:
    """Fits mean removal or PCA-whitening on the embeddings of training images, and adds it to ``model``.

    Where the embeddings have no variance, or in fewer directions than the settings ask for, the model is trained
    nevertheless: whitening keeps the directions that there are, and a note says so.

    Args:
        model: The trained model.
        view: The part of it that embeds ``images``.
        images: Training images as in an evaluation.
        settings: ``whiten`` and ``shrinkage``.
        runtime: Device and precision.
    """
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
