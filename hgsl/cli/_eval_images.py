"""What an evaluation measures: embeddings from files, or from a network and a data set."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image

from hgsl.common import ranks
from hgsl.common.device import pick_device
from hgsl.common.errors import InputError
from hgsl.config import Config
from hgsl.data import Manifest, RetrievalDataset, summary
from hgsl.engine.distributed import process_group
from hgsl.engine.parts.build import build_eval_set, build_manifest, build_model, move_to_device
from hgsl.engine.runtime import Runtime, build_runtime
from hgsl.evaluation import RetrievalTask, embed, load_array, make_task
from hgsl.evaluation.knn.vectors import Array
from hgsl.evaluation.refine.tta import AveragedViews
from hgsl.models import Embedder, load_embedder


@dataclass(frozen=True)
class ImageSet:
    """Embeddings with one label, id, group and role an image; None where there is none."""

    embeddings: Array
    labels: Array
    ids: Array | None = None
    groups: Array | None = None
    is_query: Array | None = None
    is_gallery: Array | None = None


@dataclass(frozen=True)
class Subject:
    """What is measured, and what is known about it.

    Attributes:
        name: Its row in tables.
        images: The queries, and the gallery unless there are others.
        galleries: Name -> gallery of its own.
        facts: Entries of the report: data set, protocol, split's hash, notes, ...
        steps: What is done to the embeddings after a plain forward pass, in words.
        training: Gives training embeddings, to fit on.
        validation: Gives validation images, to calibrate on.
        class_names: Label -> name.
        image_names: Id -> path.
        load_image: Id -> picture.
        device: Where to search.
    """

    name: str
    images: ImageSet
    galleries: Mapping[str, ImageSet] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[str] = ()
    training: Callable[[], Array] | None = None
    validation: Callable[[], ImageSet] | None = None
    class_names: Sequence[str] | None = None
    image_names: Mapping[int, str] | None = None
    load_image: Callable[[int], Image.Image] | None = None
    device: str = "cpu"

    def tasks(self, metric: str) -> dict[str, RetrievalTask]:
        """The retrieval task of each gallery, by the row it has in a table."""
        if not self.galleries:
            return {self.name: self.task(self.images, metric)}
        return {name: self.task(self.images, metric, gallery) for name, gallery in self.galleries.items()}

    def task(self, images: ImageSet, metric: str, gallery: ImageSet | None = None) -> RetrievalTask:
        """The task of searching images among themselves, by their roles, or in a gallery."""
        options: dict[str, Any] = {"metric": metric, "device": self.device}
        if gallery is None:
            return make_task(**vars(images), **options)
        return make_task(
            images.embeddings,
            images.labels,
            ids=images.ids if gallery.ids is not None else None,
            groups=images.groups,
            gallery_embeddings=gallery.embeddings,
            gallery_labels=gallery.labels,
            gallery_ids=gallery.ids,
            gallery_groups=gallery.groups,
            **options,
        )

    def with_note(self, note: str | None) -> "Subject":
        """The same with a note that every reader must see, if there is one."""
        return self if note is None else replace(self, facts={**self.facts, "notes": [*self.facts["notes"], note]})

    def with_embeddings(self, change: Callable[[Array], Array], step: str) -> "Subject":
        """The same images after a change to every embedding."""

        def changed(images: ImageSet) -> ImageSet:
            return replace(images, embeddings=change(images.embeddings))

        validation = self.validation
        return replace(
            self,
            images=changed(self.images),
            galleries={name: changed(gallery) for name, gallery in self.galleries.items()},
            steps=[*self.steps, step],
            validation=None if validation is None else lambda: changed(validation()),
        )


def search_device(name: str) -> str:
    """Where to search: on a CUDA device where there is one to use, else on the CPU."""
    device = pick_device(name)
    return str(device) if device.type == "cuda" else "cpu"


def from_files(config: Config, flags: Namespace) -> Subject:
    """The embeddings, labels, ids and groups that the flags name."""
    if flags.labels is None:
        raise InputError("--embeddings needs --labels: one integer an image, as .npy, .npz or .safetensors")
    images = _read(flags.embeddings, flags.labels, flags.ids, flags.groups)
    paths = flags.gallery_embeddings or []
    columns = [flags.gallery_labels, flags.gallery_ids, flags.gallery_groups]
    for name, column in zip(("labels", "ids", "groups"), columns, strict=True):
        if (column or name == "labels") and len(column or []) != len(paths):
            raise InputError(
                f"--gallery-{name}: {len(column or [])} files for {len(paths)} galleries, give one for each"
            )
    per_gallery = zip(*[column or [None] * len(paths) for column in columns], strict=True)
    galleries = {str(path): _read(path, *files) for path, files in zip(paths, per_gallery, strict=True)}
    calibration = flags.calibration_embeddings
    if calibration and not flags.calibration_labels:
        raise InputError("--calibration-embeddings needs --calibration-labels")
    return Subject(
        name=Path(flags.embeddings).stem,
        images=images,
        galleries=galleries,
        facts={"protocol": "embeddings", "embeddings": str(flags.embeddings), "notes": []},
        training=(lambda: load_array(flags.training_embeddings, "embeddings")) if flags.training_embeddings else None,
        validation=(lambda: _read(calibration, flags.calibration_labels)) if calibration else None,
        device=search_device(config.run.device),
    )


def _read(embeddings: str, labels: str, ids: str | None = None, groups: str | None = None) -> ImageSet:
    return ImageSet(
        load_array(embeddings, "embeddings"),
        load_array(labels, "labels"),
        None if ids is None else load_array(ids, "ids"),
        None if groups is None else load_array(groups, "groups"),
    )


def from_network(config: Config, flags: Namespace, stack: ExitStack) -> Subject:
    """The embeddings that a trained run, or a pretrained network, gives on the data set of the settings."""
    runtime = build_runtime(config)
    runtime = replace(runtime, device=stack.enter_context(process_group(runtime.device)))
    manifest = build_manifest(config.data)
    ranks.print_main(summary(manifest))
    if flags.checkpoint:
        model, name = move_to_device(load_embedder(flags.checkpoint), runtime), Path(flags.checkpoint).resolve().name
    else:
        torch.manual_seed(config.run.seed)  # for what has no pretrained weights
        model, name = build_model(config, runtime), config.model.backbone
    network, steps = _with_views(model, flags)

    def images(split: str, store: str | None = None) -> ImageSet:
        dataset = build_eval_set(config.data, manifest, model, split)
        identity = f"{steps} {model.data_config['image_size']}"
        return _embedded(network, dataset, config, runtime, store, identity, flags.ignore_same_group)

    part = manifest.subset("test")
    shown = RetrievalDataset(part)
    row = {image: number for number, image in enumerate(part.ids.tolist())}
    return Subject(
        name=name,
        images=images("test", flags.save_embeddings),
        facts={
            "dataset": manifest.name,
            "protocol": manifest.protocol,
            "split_hash": part.split_hash,
            "notes": list(part.notes),
            **({"checkpoint": flags.checkpoint} if flags.checkpoint else {"model": config.model.backbone}),
        },
        steps=steps,
        training=lambda: images("train").embeddings,
        validation=lambda: images("val"),
        class_names=shown.class_names,
        image_names=dict(zip(part.ids.tolist(), part.paths, strict=True)),
        load_image=lambda image: shown.image(row[image], 224),
        device=search_device(config.run.device),
    )


def _with_views(model: Embedder, flags: Namespace) -> tuple[torch.nn.Module, list[str]]:
    if not flags.flip and flags.crops == 1:
        return model, []
    views = AveragedViews(model, flip=flags.flip, crops=flags.crops)
    return views, [f"mean over views: {views.description}"]


def _embedded(
    network: torch.nn.Module,
    dataset: RetrievalDataset,
    config: Config,
    runtime: Runtime,
    store: str | None,
    identity: str,
    with_groups: bool,
) -> ImageSet:
    manifest: Manifest = dataset.manifest
    found = embed(
        network,
        dataset,
        batch_size=config.eval.batch_size,
        num_workers=runtime.workers,
        device=runtime.device,
        dtype=runtime.dtype,
        store=store,
        identity=f"{manifest.split_hash} {identity}",
    )
    if with_groups and manifest.groups is None:
        raise InputError(f"--ignore-same-group: {manifest.name} has no groups")
    return ImageSet(
        found.embeddings,
        found.labels,
        found.ids,
        np.asarray(manifest.groups) if with_groups else None,
        manifest.is_query,
        manifest.is_gallery,
    )
