"""Evaluation data from a model and its data set."""

from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from hgsl.common.errors import InputError
from hgsl.data import Manifest, RetrievalDataset
from hgsl.engine.evaluation.data import EvalData, ImageSet
from hgsl.engine.evaluation.files import search_device
from hgsl.engine.evaluation.options import EvalOptions
from hgsl.engine.evaluation.parts import file_columns, part_record
from hgsl.engine.loop.stop import Diverged
from hgsl.evaluation import embed
from hgsl.evaluation.heatmaps import explain_pair, show_heat
from hgsl.evaluation.knn.vectors import Array
from hgsl.evaluation.parts.dataset import embed_on_cluster
from hgsl.evaluation.refine.tta import AveragedViews

THUMBNAIL_SIDE = 224


def embed_data(
    model: nn.Module,
    dataset: Dataset[Any],
    options: EvalOptions,
    *,
    training: Dataset[Any] | None = None,
    validation: Dataset[Any] | None = None,
    name: str | None = None,
) -> EvalData:
    """Embeds ``dataset`` now, and the other data sets when they are needed.

    The arguments are those of ``evaluate_model``. Under torchrun every process calls this.

    Raises:
        InputError: The data set has no groups to ignore, or all embeddings are zero, such as those of a network whose
            masks are all closed.
        Diverged: It returns numbers that are not finite.
    """
    network: nn.Module = model
    steps = []
    if options.flip or options.crops != 1:
        views = AveragedViews(model, flip=options.flip, crops=options.crops)
        network, steps = views, [f"mean over views: {views.description}"]

    def embedded(images: Dataset[Any], store: Any = None) -> ImageSet:
        return _embedded(network, images, options, store, f"{steps} {_image_size(model)}")

    def training_embeddings(images: Dataset[Any]) -> Array:
        return embedded(images).embeddings

    manifest: Manifest | None = getattr(dataset, "manifest", None)
    return EvalData(
        name=name or type(model).__name__,
        images=embedded(dataset, options.store),
        metadata=_metadata(dataset, manifest),
        steps=steps,
        training=None if training is None else lambda: training_embeddings(training),
        validation=None if validation is None else lambda: embedded(validation),
        class_names=None if manifest is None else manifest.class_names,
        image_names=None if manifest is None else dict(zip(manifest.ids.tolist(), manifest.paths, strict=True)),
        load_image=None if manifest is None else _image_loader(manifest),
        categories={} if manifest is None else manifest.categories,
        explain=None if manifest is None else _explainer(model, manifest),
        device=search_device(str(options.device or "cpu")),
    )


def _embedded(network: nn.Module, dataset: Dataset[Any], options: EvalOptions, store: Any, identity: str) -> ImageSet:
    manifest: Manifest | None = getattr(dataset, "manifest", None)
    if options.ignore_same_group and (manifest is None or manifest.groups is None):
        name = type(dataset).__name__ if manifest is None else manifest.name
        raise InputError(f"ignore_same_group: {name} has no groups")
    common: Any = {
        "batch_size": options.batch_size,
        "num_workers": options.num_workers if manifest is None or isinstance(dataset, RetrievalDataset) else 0,
        "dtype": options.dtype,
        "progress": options.progress,
        "identity": identity if manifest is None else f"{manifest.split_hash} {identity}",
    }
    if options.ray is not None and store is not None:
        files, record = file_columns(manifest), part_record(network, manifest, options)
        result = embed_on_cluster(network, dataset, options.ray, store, **common, files=files, record=record)
    else:
        result = embed(network, dataset, device=options.device, store=store, **common)
    embeddings, labels, ids = result
    _check_embeddings(embeddings)
    if manifest is None:
        return ImageSet(embeddings, labels, ids)
    groups = manifest.groups if options.ignore_same_group else None
    # The manifest's labels are the same in every split; those of the data set are contiguous within it.
    return ImageSet(embeddings, manifest.labels, ids, groups, manifest.is_query, manifest.is_gallery)


def _check_embeddings(embeddings: np.ndarray) -> None:
    if not np.isfinite(embeddings).all():
        raise Diverged(
            "the network's embeddings are not finite, its training has diverged: start again with --overwrite, a lower "
            "optim.lr or optim.centers_lr, or run.precision float32"
        )
    if not embeddings.any():
        raise InputError(
            "every embedding is zero: if the masks have closed the network, lower sparsify.lmbda or sparsify.mask_lr"
        )


def _metadata(dataset: Dataset[Any], manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"dataset": type(dataset).__name__, "protocol": "every image among all others", "notes": []}
    return {
        "dataset": manifest.name,
        "protocol": manifest.protocol,
        "split_hash": manifest.split_hash,
        "notes": list(manifest.notes),
    }


def _image_size(model: nn.Module) -> Any:
    return getattr(model, "data_config", {}).get("image_size")


def _image_loader(manifest: Manifest) -> Any:
    images = RetrievalDataset(manifest)
    row = {image: number for number, image in enumerate(manifest.ids.tolist())}
    return lambda image: images.image(row[image], THUMBNAIL_SIDE)


def _explainer(model: nn.Module, manifest: Manifest) -> Any:
    images = RetrievalDataset(manifest)
    row = {image: number for number, image in enumerate(manifest.ids.tolist())}

    def explain(one: int, other: int) -> Any:
        pair = [images.image(row[image]) for image in (one, other)]
        heat = explain_pair(model, *pair)
        return tuple(show_heat(model, *shown) for shown in zip(pair, (heat.one, heat.other), strict=True))

    return explain
