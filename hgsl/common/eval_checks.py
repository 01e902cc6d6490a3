"""Checks of the options and the files of an evaluation, which import neither torch nor FAISS."""

import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from hgsl.common.array_files import check_array_file
from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError, unknown
from hgsl.common.faiss_factory import FLAT, check_factory
from hgsl.common.whole_numbers import check_whole_number

METRICS = ("cosine", "inner_product", "l2")
CROPS = (1, 5)
# Formats that every supported version of matplotlib writes, whose import takes most of a second.
FIGURE_SUFFIXES = {"eps", "jpeg", "jpg", "pdf", "pgf", "png", "ps", "raw", "rgba", "svg", "svgz", "tif", "tiff", "webp"}
STORE_RECORD = "extraction.json"  # of a folder of stored embeddings
# Option -> its least value; None stands for "not at all" in the optional ones.
MINIMA = {
    **{"max_memory": 1, "batch_size": 1, "num_workers": 0, "whiten": 0, "augment_gallery": 1},
    **{"query_expansion": 1, "expansion_alpha": 0, "bootstrap": 0},
}
OPTIONAL = ("whiten", "augment_gallery", "query_expansion")
SWITCHES = ("flip", "ignore_same_group", "rerank", "cluster", "progress")


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the arguments of :class:`hgsl.engine.evaluation.EvalOptions`; those that are absent have their default.

    Raises:
        InputError: A value is out of range, or two contradict each other.
    """
    if "ks" in options:
        checked_ks(options["ks"])
    metric = options.get("metric", "cosine")
    check_metric(metric)
    check_factory(options.get("index", FLAT), metric)
    check_crops(options.get("crops", 1))
    for name in MINIMA:
        if name in options and (options[name] is not None or name not in OPTIONAL):
            _check_number(name, options[name])
    for name in SWITCHES:
        if not isinstance(options.get(name, False), bool):
            raise InputError(f"{name} must be True or False, found {options[name]!r}")
    if options.get("bootstrap") == 1:
        raise InputError("bootstrap needs at least 2 samples, found 1: give 1000, or 0 for no intervals")
    no_match = options.get("no_match")
    if no_match is not None and not 0 <= no_match < 1:
        raise InputError(f"no_match is a false-accept rate from 0 to below 1, found {no_match}")
    for name in ("augment_gallery", "query_expansion", "rerank"):
        if options.get(name) and metric != "cosine":
            raise InputError(f"{name} works with cosine similarities, but metric is {metric!r}: leave one out")


def checked_ks(ks: int | Iterable[int]) -> tuple[int, ...]:
    """Returns one K or several as a sorted tuple without repetitions.

    Raises:
        InputError: There is none, or one is not an integer of at least 1.
    """
    values = list(ks) if isinstance(ks, Iterable) else [ks]
    for k in values:
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
            raise InputError(f"ks: each K must be an integer of at least 1, found {k!r}")
    if not values:
        raise InputError("ks: give at least one K")
    return tuple(sorted({int(k) for k in values}))


def check_metric(metric: str) -> None:
    """Raises an InputError unless ``metric`` is a known one."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)


def check_crops(crops: int) -> None:
    """Raises an InputError unless ``crops`` is 1 or 5."""
    if crops not in CROPS:
        raise InputError(f"crops must be 1 (the whole image) or 5 (center and corners), found {crops}")


def check_embedding_files(files: Mapping[str, Any]) -> None:
    """Checks the arguments of :class:`hgsl.engine.evaluation.files.EmbeddingFiles`; no file is read.

    Raises:
        FileNotFoundError: A file does not exist.
        InputError: A file lacks its labels, or has another format.
    """
    if files.get("labels") is None:
        raise InputError("--embeddings needs --labels: one label per image, as .npy, .npz or .safetensors")
    count = len(files.get("gallery_embeddings") or ())
    for name in ("labels", "ids", "groups"):
        given = files.get(f"gallery_{name}") or ()
        if (given or name == "labels") and len(given) != count:
            raise InputError(f"--gallery-{name}: {len(given)} files for {count} galleries, give one for each")
    for name, other in (("embeddings", "labels"), ("labels", "embeddings")):
        if files.get(f"calibration_{name}") and not files.get(f"calibration_{other}"):
            raise InputError(f"--calibration-{name} needs --calibration-{other}")
    for value in files.values():
        for path in [value] if isinstance(value, str | os.PathLike) else value or ():
            check_array_file(path)


def check_output_files(paths: Mapping[str, str]) -> None:
    """Checks that each file, by the name of its flag, can be written in the format of its suffix.

    Raises:
        InputError: A path is a folder, or its suffix names no format.
        OSError: A path cannot be written.
    """
    for name, path in paths.items():
        if Path(path).is_dir():
            raise InputError(f"--{name} {path} is a folder: name a file in it")
        suffix = Path(path).suffix.lower().lstrip(".")
        if name in FORMATS and suffix not in FORMATS[name]():
            raise InputError(
                f"--{name} {path}: a file of suffix {Path(path).suffix!r} cannot be written, use one such as "
                f"{Path(path).stem}.png"
            )
        check_writable(path)


def check_store(folder: str | os.PathLike[str]) -> None:
    """Checks that ``folder`` is missing or empty or stores embeddings, and can be written.

    Raises:
        InputError: It holds other files.
        OSError: It is a file, or cannot be written.
    """
    path = Path(folder)
    if path.exists() and not (path / STORE_RECORD).is_file() and any(path.iterdir()):
        raise InputError(f"{path}: holds other files: name an empty folder for the embeddings")
    check_writable(folder)


def _check_number(name: str, value: Any) -> None:
    minimum = MINIMA[name]
    if name != "expansion_alpha":
        check_whole_number(name, value, minimum)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} must be a number of at least {minimum}, found {value!r}")
    elif not value >= minimum:
        raise InputError(f"{name} must be at least {minimum}, found {value}")
    if value == float("inf"):
        raise InputError(f"{name} must be finite, found {value}")


def _image_suffixes() -> set[str]:
    from PIL import Image

    Image.init()
    return {suffix.lstrip(".") for suffix, name in Image.registered_extensions().items() if name in Image.SAVE}


FORMATS = {"sheet": _image_suffixes, "curves": lambda: FIGURE_SUFFIXES, "plot": lambda: FIGURE_SUFFIXES}
