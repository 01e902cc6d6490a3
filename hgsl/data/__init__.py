"""Data sets: adapters that read them into a manifest, protocols that split it, samplers, and a PyTorch ``Dataset``."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from hgsl.common.data_options import check_data_options
from hgsl.common.datasets import ROOT_HINT, datasets_dir, default_root
from hgsl.common.errors import unknown
from hgsl.common.paths import check_local
from hgsl.common.transforms import eval_transform, train_transform
from hgsl.data.adapters import DATASETS
from hgsl.data.dataset import RetrievalDataset
from hgsl.data.files.cache import default_cache_dir
from hgsl.data.manifest import Manifest
from hgsl.data.overview import summary, verify_files
from hgsl.data.protocols import PROTOCOLS, apply_protocol, cut_to_boxes, cut_validation
from hgsl.data.samplers import SAMPLERS, epoch_plan

__all__ = [
    "DATASETS",
    "PROTOCOLS",
    "SAMPLERS",
    "Manifest",
    "RetrievalDataset",
    "build_dataset",
    "check_options",
    "datasets_dir",
    "default_cache_dir",
    "default_root",
    "epoch_plan",
    "eval_transform",
    "list_images",
    "load_manifest",
    "summary",
    "train_transform",
    "verify_files",
]


def check_options(name: str, options: Mapping[str, Any], source: str = "") -> None:
    """Checks the name of a data set and its options before any file is read.

    Args:
        name: One of ``DATASETS``.
        options: Arguments of its adapter.
        source: Where the options were given, for the message, such as "data.options".

    Raises:
        InputError: There is no such data set, or it has no such option, or the value is of another type.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    adapter = DATASETS[name]
    hints = get_type_hints(adapter)
    types = {option: hints.get(option, object) for option in inspect.signature(adapter).parameters if option != "root"}
    check_data_options(name, options, types, source)


def load_manifest(
    name: str,
    root: str | Path | None = None,
    protocol: str = "zero-shot",
    *,
    test_share: float = 0.5,
    val_share: float = 0.0,
    val_fold: int | None = None,
    val_folds: int = 4,
    crop_to_boxes: bool = False,
    **options: Any,
) -> Manifest:
    """Lists and splits a data set; no image file is opened.

    Args:
        name: One of ``DATASETS``.
        root: Folder of the unpacked archive (for ``csv``, the table); None for ``datasets/NAME``.
        protocol: "zero-shot", "closed-set" or "query-gallery"; see :mod:`hgsl.data.protocols`.
        test_share: Share of the classes in the test split of zero-shot, if the source has no class-disjoint split;
            0 makes every image of any source a training image.
        val_share: Share of the training classes, taken from the last ones, to move to the split "val".
        val_fold: In place of ``val_share``, one of ``val_folds`` class-disjoint folds of the training classes.
        val_folds: Number of such folds.
        crop_to_boxes: Whether every image is cropped to its box; the notes of reports contain it.
        options: Arguments of the adapter, such as ``seed`` of ``folder`` or ``encoding`` of ``csv``.

    Raises:
        FileNotFoundError: The root or a list in it is missing.
        InputError: An argument or a list is invalid.
    """
    raw = list_images(name, root, **options)
    manifest = cut_validation(apply_protocol(raw, protocol, test_share), val_share, val_fold, val_folds)
    return cut_to_boxes(manifest) if crop_to_boxes else manifest


def list_images(name: str, root: str | Path | None = None, **options: Any) -> Manifest:
    """Lists a data set with no split but its own; see :func:`load_manifest`."""
    check_options(name, options)
    if root is not None:
        check_local(f"the root of {name}", root, ROOT_HINT)
    return DATASETS[name](default_root(name) if root is None else Path(root).expanduser(), **options)


def build_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    protocol: str = "zero-shot",
    transform: Callable[..., Any] | None = None,
    *,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> RetrievalDataset:
    """One split of a data set, ready for a ``DataLoader``.

    >>> train = build_dataset("folder", "my/photos", split="train")    # doctest: +SKIP
    >>> image, label, row_id = train[0]                                 # doctest: +SKIP

    Args:
        name: One of ``DATASETS``.
        root: See :func:`load_manifest`.
        split: "train", "val", "test" or "all".
        protocol: See :func:`load_manifest`.
        transform: Function from a PIL image to a tensor; None returns PIL images.
        cache_dir: Folder for a cache of resized images, or None; see :class:`RetrievalDataset`.
        options: See :func:`load_manifest`.

    Raises:
        FileNotFoundError: The root or a list in it is missing.
        InputError: An argument or a list is invalid, or the split is empty.
    """
    manifest = load_manifest(name, root, protocol, **options).subset(split)
    return RetrievalDataset(manifest, transform, None if cache_dir is None else Path(cache_dir).expanduser())
