"""Evaluation of a model, or of embeddings: whitening, expansion, one search per gallery, calibration, report."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from hgsl.common.errors import InputError
from hgsl.engine.evaluation.arguments import check_arguments
from hgsl.engine.evaluation.data import EvalData, ImageSet
from hgsl.engine.evaluation.embedding import embed_data
from hgsl.engine.evaluation.evaluation import Evaluation, GalleryEvaluation
from hgsl.engine.evaluation.options import EvalOptions
from hgsl.evaluation import RetrievalTask, rank
from hgsl.evaluation.knn.vectors import integers, open_vectors
from hgsl.evaluation.labels import codes_of
from hgsl.evaluation.refine.expansion import augment_gallery, expand_queries
from hgsl.evaluation.refine.rerank import KReciprocal
from hgsl.evaluation.refine.whitening import fit_whitening
from hgsl.evaluation.show.report import hash_of_task
from hgsl.evaluation.threshold import Calibration, calibrate, stranger_scores, stranger_task

Refinement = Callable[[RetrievalTask], RetrievalTask]


def evaluate_model(
    model: nn.Module,
    dataset: Dataset[Any],
    options: EvalOptions | None = None,
    *,
    training: Dataset[Any] | None = None,
    validation: Dataset[Any] | None = None,
    name: str | None = None,
) -> Evaluation:
    """Embeds a data set, searches its queries in its gallery, and returns scores, neighbors and report.

    Under torchrun every process calls this: each embeds its share and gets the same result.

    Args:
        model: (B, 3, H, W) -> (B, D).
        dataset: ``dataset[i]`` is (image tensor, int label, int id). A ``RetrievalDataset`` also brings roles, groups,
            class names and the hash of its split; in any other, every image is searched among all others.
        options: The defaults are plain exact search.
        training: Images to fit whitening on, for ``options.whiten``.
        validation: Images of other classes to calibrate a threshold on, for ``options.no_match``.
        name: Row in tables; the class of the model by default.

    Raises:
        InputError: Nothing can be searched, an option needs a data set that is not given, or an argument has another
            form.
    """
    options = EvalOptions() if options is None else options
    check_arguments(model, options, {"dataset": dataset, "training": training, "validation": validation})
    data = embed_data(model, dataset, options, training=training, validation=validation, name=name)
    return evaluate(data, options)


def evaluate(data: EvalData, options: EvalOptions) -> Evaluation:
    """Evaluates embeddings; see :func:`evaluate_model`."""
    return search(*prepare(data, options), options)


def prepare(data: EvalData, options: EvalOptions) -> tuple[EvalData, ImageSet | None]:
    """Returns the data with whitened embeddings, and the validation images, if the options need them.

    Under torchrun every process calls this, since it may embed images; :func:`search` runs in one process.

    Raises:
        InputError: The options need training or validation images and the data has none.
    """
    if options.whiten is not None:
        if data.training is None:
            raise InputError(
                "whiten needs training images to fit on: give training, or for files --training-embeddings"
            )
        whitening = fit_whitening(data.training(), options.whiten or None)
        dimensions = whitening.projection.shape[1]
        data = data.with_embeddings(whitening.apply, f"PCA-whitening to {dimensions} dimensions")
    if options.no_match is None:
        return data, None
    if data.validation is None:
        raise InputError("no_match needs validation images: give validation, or for files --calibration-embeddings")
    return data, data.validation()


def search(data: EvalData, validation: ImageSet | None, options: EvalOptions) -> Evaluation:
    """Searches every gallery of prepared data once, and once more for the validation images, if there are any."""
    reorder = KReciprocal() if options.rerank else None
    augment, expand, steps = _expansions(options)
    if reorder is not None:
        steps.append(str(reorder))
    galleries = {}
    for name, task in data.tasks(options.metric).items():
        task = augment(task)
        ranking = rank(
            expand(task),
            options.ks,
            reorder=reorder,
            index=options.index,
            cluster=options.cluster,
            max_memory=options.max_memory,
            progress=options.progress,
        )
        calibration = None
        if validation is not None:
            calibration = _calibrate(expand(_strangers(task, validation)), options)
            data = data.with_note(calibration.warning)
        split_hash = data.metadata.get("split_hash") or hash_of_task(task)
        galleries[name] = GalleryEvaluation(ranking, split_hash, calibration)
    return Evaluation(replace(data, steps=[*data.steps, *steps]), options, galleries)


def _strangers(task: RetrievalTask, validation: ImageSet) -> RetrievalTask:
    vectors = open_vectors(validation.embeddings, "validation embeddings", unit=task.metric == "cosine")
    labels = codes_of(validation.labels, task.class_names)
    return stranger_task(task, vectors, integers(labels, "validation labels", len(vectors)))


def _calibrate(strangers: RetrievalTask, options: EvalOptions) -> Calibration:
    assert options.no_match is not None
    scores = stranger_scores(strangers, max_memory=options.max_memory)
    return calibrate(scores, strangers.query_labels, options.no_match, len(strangers.gallery))


def _expansions(options: EvalOptions) -> tuple[Refinement, Refinement, list[str]]:
    """Database augmentation, query expansion, and their descriptions for the report."""
    refinements: list[Refinement] = []
    steps = []
    for change, count, name in (
        (augment_gallery, options.augment_gallery, "database augmentation"),
        (expand_queries, options.query_expansion, "query expansion"),
    ):
        if count is None:
            refinements.append(lambda task: task)
            continue
        alpha, memory = options.expansion_alpha, options.max_memory
        refinements.append(partial(change, count=count, alpha=alpha, max_memory=memory, progress=options.progress))
        steps.append(f"{name} with {count} neighbors, alpha {alpha:g}")
    return refinements[0], refinements[1], steps
