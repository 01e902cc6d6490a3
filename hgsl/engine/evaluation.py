"""Retrieval scores of a model on a split: the end of training and the evaluation command are this one function."""

from typing import Any

import numpy as np
from torch import nn

from hgsl.common.errors import InputError
from hgsl.config import EvalConfig
from hgsl.data import Manifest, RetrievalDataset
from hgsl.engine.loop.stop import Diverged
from hgsl.engine.parts.head import PooledSet
from hgsl.engine.runtime import Runtime
from hgsl.evaluation import Ranking, RetrievalResult, embed, make_task, rank


def evaluate(
    model: nn.Module, dataset: RetrievalDataset | PooledSet, settings: EvalConfig, runtime: Runtime
) -> dict[str, Any]:
    """Embeds ``dataset``, searches every query among the gallery and returns the report's numbers.

    The dictionary has the scores in [0, 1] (``recall@1``, ``r_precision``, ``map@r``, ...), the counts, the protocol,
    the split's hash, and the notes that a reader must know (such as a crop to boxes).
    """
    return report_of(measure(model, dataset, settings, runtime).result, dataset.manifest)


def measure(model: nn.Module, dataset: RetrievalDataset | PooledSet, settings: EvalConfig, runtime: Runtime) -> Ranking:
    """Returns the ranking of the data set's queries in its gallery.

    Raises:
        InputError: The network gives nothing but zeros, as one does that its masks have closed.
        Diverged: It gives numbers that are not finite.
    """
    found = embed(
        model,
        dataset,
        batch_size=settings.batch_size,
        num_workers=runtime.workers if isinstance(dataset, RetrievalDataset) else 0,
        device=runtime.device,
        dtype=runtime.dtype,
    )
    if not np.isfinite(found.embeddings).all():
        raise Diverged(
            "the network's embeddings are not finite, its training has diverged: start again with --overwrite, a lower "
            "optim.lr or optim.centers_lr, or run.precision float32"
        )
    if not found.embeddings.any():
        raise InputError(
            "every embedding is zero, the network lets nothing through: if its masks have closed it, lower "
            "sparsify.lmbda or sparsify.mask_lr"
        )
    task = make_task(
        found.embeddings,
        found.labels,
        ids=found.ids,
        is_query=dataset.manifest.is_query,
        is_gallery=dataset.manifest.is_gallery,
    )
    return rank(task, settings.ks)


def report_of(result: RetrievalResult, manifest: Manifest) -> dict[str, Any]:
    """The numbers of a report: see :func:`evaluate`."""
    return {
        **result.to_dict(),
        "dataset": manifest.name,
        "protocol": manifest.protocol,
        "split_hash": manifest.split_hash,
        "notes": list(manifest.notes),
    }
