"""From what is measured to its scores: whitening, expansion, search, re-ranking, calibration, as the flags ask."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jsonargparse import Namespace

from hgsl.cli._eval_images import ImageSet, Subject
from hgsl.cli._eval_outputs import Measured
from hgsl.common.errors import InputError
from hgsl.evaluation import RetrievalTask, rank
from hgsl.evaluation.refine.expansion import augment_gallery, expand_queries
from hgsl.evaluation.refine.rerank import KReciprocal
from hgsl.evaluation.refine.whitening import fit_whitening
from hgsl.evaluation.threshold import calibrate, measure


def whitened(subject: Subject, flags: Namespace) -> Subject:
    """The subject with PCA-whitened embeddings, if asked for."""
    if flags.whiten is None:
        return subject
    if subject.training is None:
        raise InputError("--whiten needs training images to fit on: give --training-embeddings")
    whitening = fit_whitening(subject.training(), flags.whiten or None)
    dimensions = whitening.projection.shape[1]
    return subject.with_embeddings(whitening.apply, f"PCA-whitening to {dimensions} dimensions")


def score(
    subject: Subject, validation: ImageSet | None, flags: Namespace, ks: Sequence[int]
) -> tuple[Subject, dict[str, Measured]]:
    """Searches every gallery; returns the subject, its steps completed, and the scores by gallery."""
    memory = int(flags.max_memory * 2**30)
    refine, steps = _refinement(flags, memory)
    reorder = KReciprocal() if flags.rerank else None
    if reorder is not None:
        steps = [*steps, str(reorder)]
    calibrated = None
    if validation is not None:
        held_out = refine(subject.task(validation, flags.metric))
        calibrated = calibrate(rank(held_out, 1, top=0, max_memory=memory).top_scores, flags.no_match)
    measured = {}
    for name, task in subject.tasks(flags.metric).items():
        task = refine(task)
        ranking = rank(
            task,
            ks,
            index=flags.index,
            cluster=flags.cluster,
            reorder=reorder,
            max_memory=memory,
            progress=True,
        )
        no_match: dict[str, Any] | None = None
        if calibrated is not None:
            here = measure(ranking.top_scores, calibrated.threshold)
            no_match = {**here.to_dict(), "metric": task.metric, "calibration": calibrated.to_dict()}
        measured[name] = Measured(task, ranking, no_match)
    return replace(subject, steps=[*subject.steps, *steps]), measured


def _refinement(flags: Namespace, memory: int) -> tuple[Callable[[RetrievalTask], RetrievalTask], list[str]]:
    """Database augmentation and query expansion, in this order, and their words for the report."""
    alpha = flags.expansion_alpha
    changes, steps = [], []
    for change, count, name in (
        (augment_gallery, flags.augment_gallery, "database augmentation"),
        (expand_queries, flags.query_expansion, "query expansion"),
    ):
        if count is not None:
            changes.append(partial(change, count=count, alpha=alpha, max_memory=memory, progress=True))
            steps.append(f"{name} with {count} neighbors, alpha {alpha:g}")

    def refine(task: RetrievalTask) -> RetrievalTask:
        for change in changes:
            task = change(task)
        return task

    return refine, steps
