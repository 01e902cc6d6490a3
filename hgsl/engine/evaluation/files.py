"""Evaluation data from files of embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hgsl.common.device import pick_device
from hgsl.common.eval_checks import check_embedding_files
from hgsl.engine.evaluation.data import EvalData, ImageSet
from hgsl.evaluation import load_array


@dataclass(frozen=True)
class EmbeddingFiles:
    """Paths of ``.npy``, ``.npz`` or ``.safetensors`` files: embeddings with their labels, ids and groups.

    Attributes:
        embeddings: Embeddings of the queries, and of the gallery unless it is separate, with ``labels``, ``ids`` and
            ``groups``.
        gallery_embeddings: One file per separate gallery; with ``gallery_labels``, ``gallery_ids``, ``gallery_groups``.
        training_embeddings: Embeddings that whitening is fitted on.
        calibration_embeddings: Embeddings that a threshold is calibrated on; with ``calibration_labels``.

    Raises:
        FileNotFoundError: A file does not exist.
        InputError: A file lacks its labels, or has another format.
    """

    embeddings: str
    labels: str | None = None
    ids: str | None = None
    groups: str | None = None
    gallery_embeddings: Sequence[str] = ()
    gallery_labels: Sequence[str] = ()
    gallery_ids: Sequence[str] = ()
    gallery_groups: Sequence[str] = ()
    training_embeddings: str | None = None
    calibration_embeddings: str | None = None
    calibration_labels: str | None = None

    def __post_init__(self) -> None:
        check_embedding_files(vars(self))


def search_device(name: str) -> torch.device:
    """The device of an exact search: the CUDA device of ``name``, else the CPU."""
    device = pick_device(name)
    return device if device.type == "cuda" else torch.device("cpu")


def load_files(files: EmbeddingFiles, device: torch.device | str = "cpu") -> EvalData:
    """Opens the files; embeddings stay memory-mapped if their format allows it.

    Args:
        files: The paths.
        device: Device of an exact search.
    """
    assert files.labels is not None  # checked by EmbeddingFiles
    columns: list[Sequence[str | None]] = [
        column or [None] * len(files.gallery_embeddings)
        for column in (files.gallery_labels, files.gallery_ids, files.gallery_groups)
    ]
    galleries = {
        str(path): _read(path, *others)
        for path, *others in zip(files.gallery_embeddings, *columns, strict=True)
    }  # fmt: skip
    training, calibration = files.training_embeddings, files.calibration_embeddings
    return EvalData(
        name=Path(files.embeddings).stem,
        images=_read(files.embeddings, files.labels, files.ids, files.groups),
        galleries=galleries,
        metadata={"protocol": "embeddings", "embeddings": str(files.embeddings), "notes": []},
        training=(lambda: load_array(training, "embeddings")) if training else None,
        validation=(lambda: _read(calibration, files.calibration_labels)) if calibration else None,
        device=device,
    )


def _read(embeddings: str, labels: str | None, ids: str | None = None, groups: str | None = None) -> ImageSet:
    assert labels is not None
    return ImageSet(
        load_array(embeddings, "embeddings"),
        load_array(labels, "labels"),
        None if ids is None else load_array(ids, "ids"),
        None if groups is None else load_array(groups, "groups"),
    )
