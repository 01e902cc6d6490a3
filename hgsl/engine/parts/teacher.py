"""The teacher of a distillation: a frozen network, and its embeddings of whole or of augmented training images."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.extras import missing
from hgsl.common.files import read_json
from hgsl.common.fingerprint import fingerprint
from hgsl.common.model_source import FOLDER_PREFIX, HUB_NAME, hub_id_of, is_timm_name
from hgsl.common.split_record import read_split_record
from hgsl.config import Config
from hgsl.data import Manifest
from hgsl.data.overview import first_names
from hgsl.data.run_split import file_fingerprints, shared_images
from hgsl.data.unlabeled import list_unlabeled
from hgsl.engine.parts.build import build_eval_set, move_to_device
from hgsl.engine.parts.cached_embeddings import embed_once
from hgsl.engine.parts.feature_matching import FeatureMatching
from hgsl.engine.runtime import Runtime
from hgsl.models import Embedder, create_embedder, load_embedder
from hgsl.models.storage.hub import fetch
from hgsl.models.weights import PACKAGED


class Teacher:
    """The embeddings of a frozen network for the images of a run: computed once for each whole image, or in each step.

    Args:
        config: The settings; ``loss.teacher`` names the network.
        manifest: All images of the run.
        runtime: Device and precision.
        normalization: Data config of the model, whose ``mean`` and ``std`` its images have.

    Attributes:
        embedding_size: D' of the network.
        id: Fingerprint of the network and its preprocessing.
        features: The comparison of the blocks of model and teacher, if there is one.
        unlabeled: The images of ``loss.teacher_images``, whose ids follow those of the run's images; None without them.

    Raises:
        InputError: The network cannot be loaded or was trained on images that the run holds out, or these are among the
            unlabeled ones.
        FileNotFoundError: There is no such folder.
    """

    def __init__(self, config: Config, manifest: Manifest, runtime: Runtime, normalization: Mapping[str, Any]) -> None:
        assert config.loss.teacher is not None
        self.config, self.manifest, self.runtime = config, manifest, runtime
        self._normalization, self._augmented = normalization, config.loss.teacher_input == "augmented"
        held_out = manifest.take(np.flatnonzero(manifest.split != "train"))
        _check_split(config.loss.teacher, manifest, held_out)
        self._first_unlabeled = int(manifest.ids.max()) + 1
        self.unlabeled = self._list_unlabeled(held_out)
        model = load_teacher(config.loss.teacher)
        self.embedding_size = model.embedding_size
        self.id = fingerprint(model, json.dumps([model.architecture, model.data_config], sort_keys=True, default=str))
        ranks.print_main(
            f"teacher {config.loss.teacher}: {model.architecture['backbone']}, {model.embedding_size}-d, "
            f"at {model.data_config['image_size']} pixels"
        )
        self.features: FeatureMatching | None = None
        self._model: Embedder | None = model
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []  # ids, order, vectors

    def match_features(self, model: Embedder) -> FeatureMatching | None:
        """Returns the comparison of the blocks of ``model`` with those of the teacher, if the settings ask for it."""
        if self.config.loss.teacher_features > 0:
            assert self._model is not None
            self.features = FeatureMatching(model.backbone, self._model.backbone)
        return self.features

    def prepare(self) -> None:
        """Computes the embeddings of whole images, or reads those of an earlier run, and frees the network; collective.

        For augmented images the network stays on the device.

        Raises:
            InputError: Some are not finite.
        """
        if self._model is None:
            return
        model, data = move_to_device(self._model, self.runtime), self.config.data
        if self._augmented:
            return
        parts = [build_eval_set(data, self.manifest, model, "train")]
        if self.unlabeled:
            parts.append(build_eval_set(data, self.unlabeled, model, "all"))
        for images in parts:
            batch_size = self.config.eval.batch_size
            vectors = embed_once(model, model, images, "teachers", self.runtime, batch_size, views=True).embeddings
            if not np.isfinite(vectors).all():
                raise InputError(
                    f"loss.teacher {self.config.loss.teacher} embeds some images as NaN or infinity: try run.precision "
                    "float32"
                )
            self._parts.append((images.ids, np.argsort(images.ids), vectors))
        self._model = None

    def __call__(self, ids: Tensor, images: Tensor) -> Tensor:
        """Returns the embeddings (B, D') of a batch, on the device of the run.

        Args:
            ids: Ids of the images.
            images: The images ``(B, 3, H, W)`` as the model takes them, which matter for ``augmented`` alone.
        """
        return self._of_augmented(images) if self._augmented else self._of_whole(ids)

    @torch.no_grad()
    def _of_augmented(self, images: Tensor) -> Tensor:
        """The embeddings of the images as they are, without the further views of an evaluation."""
        model = self._model
        assert model is not None
        images = self.runtime.prepare(images, model.prefers_channels_last(self.runtime.device))
        with self.runtime.autocast():
            return model.combine([model.head(model.pooled(self._converted(images)))])

    def _converted(self, images: Tensor) -> Tensor:
        """Images as the teacher takes them: normalized by its mean and deviation, for a transformer of its size."""
        assert self._model is not None
        expected = self._model.data_config
        if any(tuple(expected[name]) != tuple(self._normalization[name]) for name in ("mean", "std")):
            (mean, std), (teacher_mean, teacher_std) = (
                [images.new_tensor(config[name]).view(3, 1, 1) for name in ("mean", "std")]
                for config in (self._normalization, expected)
            )
            images = (images * std + mean - teacher_mean) / teacher_std
        side = expected["image_size"]
        if self._model.is_convolutional or images.shape[-1] == side:
            return images
        return F.interpolate(images, (side, side), mode="bicubic", antialias=True)

    def _of_whole(self, ids: Tensor) -> Tensor:
        wanted = ids.cpu().numpy()
        result = np.full((len(wanted), self.embedding_size), np.nan, np.float32)
        for part_ids, order, vectors in self._parts:
            rows = order[np.searchsorted(part_ids, wanted, sorter=order).clip(max=len(order) - 1)]
            present = part_ids[rows] == wanted
            result[present] = vectors[rows[present]]
        return torch.from_numpy(result).to(self.runtime.device, non_blocking=True)

    def count_unlabeled(self, ids: Tensor) -> int:
        """Returns the number of images without labels in a batch, which are its last ones."""
        return int((ids >= self._first_unlabeled).sum())

    def _list_unlabeled(self, held_out: Manifest) -> Manifest | None:
        folder = self.config.loss.teacher_images
        if folder is None:
            return None
        try:
            images = list_unlabeled(Path(folder).expanduser())
        except (InputError, FileNotFoundError) as error:
            raise type(error)(f"loss.teacher_images: {error}") from None
        if shared := len({*file_fingerprints(held_out)} & {*file_fingerprints(images)} - {""}):
            raise InputError(
                f"loss.teacher_images: {shared:,} of the {len(held_out):,} images that this run holds out for "
                f"evaluation are in {folder}: remove them from that folder"
            )
        ranks.print_main(f"{len(images):,} unlabeled images in {folder}")
        return replace(images, ids=images.ids + self._first_unlabeled)


def load_teacher(source: str) -> Embedder:
    """Loads a network in evaluation mode from a run folder, the Hub or timm.

    Args:
        source: A folder; ``OWNER/NAME`` or ``hf-hub:OWNER/NAME`` of a model of hgsl or timm on the Hub;
            ``local-dir:FOLDER`` of one that timm saved; or the name of a timm model, with its pretrained weights:
            packaged ones where these are installed, otherwise downloaded.

    Raises:
        InputError: It cannot be loaded; the message names the setting.
        FileNotFoundError: There is no such folder.
    """
    try:
        if source.startswith(FOLDER_PREFIX):
            model = create_embedder(source)
        elif is_timm_name(source):
            model = create_embedder(source, weights="packaged" if _is_packaged(source) else "timm")
        elif (hub_id := hub_id_of(source)) and "hgsl" not in read_json(fetch(hub_id, (HUB_NAME,)) / HUB_NAME):
            model = create_embedder(f"hf-hub:{hub_id}")
        else:
            model = load_embedder(source)
    except (InputError, FileNotFoundError) as error:
        raise type(error)(f"loss.teacher: {error}") from None
    return model.eval().requires_grad_(False)


def _is_packaged(name: str) -> bool:
    if name not in PACKAGED:
        return False
    extra = PACKAGED[name][2]
    return extra is None or not missing(extra)


def _check_split(source: str, manifest: Manifest, held_out: Manifest) -> None:
    """Checks that a teacher that is a run was not trained on images that this run holds out.

    Raises:
        InputError: It was; the scores would not be those of unseen classes.
    """
    record = None if ":" in source or not Path(source).expanduser().is_dir() else read_split_record(source)
    if record is None:
        return
    if images := shared_images(record, held_out, "train"):
        raise InputError(
            f"loss.teacher {source} was trained on {images:,} of the {len(held_out):,} images that this run holds out "
            "for evaluation: train a teacher on the split of this run, with the same data settings"
        )
    unseen = _class_names(held_out) - _class_names(manifest.subset("train"))
    if shared := sorted(unseen & record.trained_classes):
        ranks.print_main(
            f"note: loss.teacher {source} was trained on other images of {len(shared):,} of {len(unseen):,} classes "
            f"that are held out ({first_names(shared, 3)}), so the scores are not those of unseen classes"
        )


def _class_names(manifest: Manifest) -> set[str]:
    return {manifest.class_names[label] for label in np.unique(manifest.labels)}
