"""Paths in the settings, checked before torch is imported."""

from pathlib import Path

from hgsl.common.datasets import ROOT_HINT, default_root
from hgsl.common.errors import InputError
from hgsl.common.model_source import FOLDER_PREFIX, check_backbone_source, check_model_source, is_timm_name
from hgsl.common.paths import check_local
from hgsl.config import Config, SparsifyConfig

WEIGHTS = ("timm", "packaged", "none")  # any other value is a file


def check_paths(config: Config) -> None:
    """Checks that the paths to read from exist.

    Raises:
        FileNotFoundError: The message names the setting, the path and the folder it is relative to.
    """
    check_data_root(config)
    if config.model.weights not in WEIGHTS and not Path(config.model.weights).expanduser().is_file():
        raise FileNotFoundError(
            f"no weights file {config.model.weights}{_folder_of(config.model.weights)}: "
            f"model.weights is {', '.join(WEIGHTS)} or an existing file"
        )
    if config.loss.teacher is not None:
        _check_teacher(config.loss.teacher)
        if config.loss.teacher_images is not None:
            _check_exists("loss.teacher_images", config.loss.teacher_images)
    if isinstance(config.sparsify, SparsifyConfig) and config.sparsify.rounds and config.sparsify.dense_run:
        _check_exists("sparsify.dense_run", config.sparsify.dense_run)


def check_data_root(config: Config) -> None:
    """Checks that the data set is there, and is a folder where one is needed.

    Raises:
        FileNotFoundError: It is not; the message names the setting and the path.
        InputError: It is a file, and the data set ``folder`` reads a folder; or the data set has no files at all.
    """
    name, root = config.data.name, config.data.root
    if root is not None:
        check_local("data.root", root, ROOT_HINT)
        _check_exists("data.root", root)
        if name == "synthetic":
            raise InputError(
                f"data.root {root} is not read by data.name synthetic, which draws its images: "
                "for images in class folders give --data.name folder, or --config folder"
            )
        if name == "folder" and not Path(root).expanduser().is_dir():
            raise InputError(f"data.root: {root} is a file: data.name folder reads a folder, data.name csv a table")
    elif name != "synthetic" and not default_root(name).exists():
        raise FileNotFoundError(
            f"data.root is not given, and its default for {name}, {default_root(name)}, does not exist: "
            "give --data.root"
        )


def _check_teacher(source: str) -> None:
    """Checks that the folder of a teacher holds a model, or the form of its name; timm's are checked by name."""
    try:
        if source.startswith(FOLDER_PREFIX):
            check_backbone_source(source)
        elif not is_timm_name(source):
            check_model_source(source)
    except (InputError, FileNotFoundError) as error:
        raise type(error)(f"loss.teacher: {error}") from None


def _check_exists(setting: str, path: str) -> None:
    if not Path(path).expanduser().exists():
        raise FileNotFoundError(f"{setting}: {path} does not exist{_folder_of(path)}")


def _folder_of(path: str) -> str:
    return "" if Path(path).expanduser().is_absolute() else f" in {Path.cwd()}"
