"""Saving and loading of embedders: ``model.safetensors``, and beside it a JSON file with the description of the model.

The description is ``model.json`` in a run folder, and ``config.json`` in a folder made for the Hub
(:mod:`hgsl.models.storage.pretrained`). Both may be untrusted, so every value is validated before it is used.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.files import read_json, write_json
from hgsl.common.model_source import HUB_NAME, RUN_NAME, WEIGHTS_NAME, check_model_source, hub_id_of
from hgsl.common.paths import check_path
from hgsl.common.tensor_files import write_tensor_file
from hgsl.models.create import build_embedder
from hgsl.models.embedder import Embedder
from hgsl.models.storage.description import (
    Description,
    check_embedder,
    describe_model,
    from_hub_config,
    from_run_description,
)
from hgsl.models.storage.hub import fetch
from hgsl.models.weights import read_tensors

Shape = tuple[int, ...]


def save_embedder(model: Embedder, folder: str | Path) -> None:
    """Writes ``model.safetensors`` and ``model.json`` into ``folder``, each atomically.

    Args:
        model: Returned by :func:`create_embedder`, trained or not.
        folder: Created if it is missing.

    Raises:
        InputError: ``model`` is no embedder.
        OSError: The folder cannot be written, or the disk is full.
    """
    check_embedder(model)
    check_path("folder", folder)
    save_weights(model, Path(folder) / WEIGHTS_NAME)
    write_json(Path(folder) / RUN_NAME, asdict(describe_model(model)))


def save_weights(model: Embedder, path: Path) -> None:
    """Writes the state dict of a model as safetensors, atomically.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    write_tensor_file(path, model.state_dict(), {"format": "pt"})


def load_embedder(source: str | Path) -> Embedder:
    """Loads a trained model from a run folder, from a folder that ``save_pretrained`` wrote, or from the Hub.

    >>> model = load_embedder("runs/quickstart")                   # doctest: +SKIP
    >>> model = load_embedder("hf-hub:OWNER/NAME@v1")              # doctest: +SKIP
    >>> image = model.transform()(photo)                           # doctest: +SKIP

    Args:
        source: A folder; or ``OWNER/NAME``, ``OWNER/NAME@REVISION`` of a model on the Hugging Face Hub, unless there is
            a folder ``OWNER``. With the prefix ``hf-hub:`` it is always on the Hub. From the Hub only ``config.json``
            and ``model.safetensors`` are downloaded, and nothing in them is executed.

    Returns:
        The model, in evaluation mode on the CPU; ``model.transform()`` prepares images for it.

    Raises:
        FileNotFoundError: The folder or one of its two files is missing.
        InputError: ``source`` is no path, a file or a search index; a file is damaged, a value in the description is
            invalid, the tensors do not fit the description, or the Hub cannot be reached.
    """
    check_model_source(source)
    hub_id = hub_id_of(source)
    folder = Path(source).expanduser() if hub_id is None else fetch(hub_id, (HUB_NAME, WEIGHTS_NAME))
    description = read_description(folder)
    tensors = read_tensors(folder / WEIGHTS_NAME)
    _check_sizes(folder, description, tensors)
    model = build_embedder(**description.architecture, image_size=description.data_config["image_size"])
    _check_shapes(folder, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    model.data_config.update(description.data_config)
    return model.eval()


def read_description(folder: Path) -> Description:
    """Reads and validates ``model.json``, or ``config.json`` where the former is missing.

    Raises:
        InputError: It is damaged, was not written by this version of hgsl, or holds an invalid value.
    """
    name, convert = RUN_NAME, from_run_description
    if not (folder / name).is_file():
        name, convert = HUB_NAME, from_hub_config
    return convert(read_json(folder / name, "the description of a model"), folder / name)


def _check_sizes(folder: Path, description: Description, tensors: Mapping[str, Tensor]) -> None:
    """Compares embedding size and whitening with the weights: a model of forged sizes could exhaust memory."""
    size, bias = description.architecture["embedding_size"], tensors.get("projection.bias")
    if size is not None:
        _compare(folder, "projection.bias", None if bias is None else tuple(bias.shape), (size,))
    dimensions, matrix = description.architecture["whitening"], tensors.get("whitening.matrix")
    if isinstance(dimensions, int):
        expected = (dimensions if matrix is None else matrix.shape[0], dimensions)
        _compare(folder, "whitening.matrix", None if matrix is None else tuple(matrix.shape), expected)


def _check_shapes(folder: Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for key in sorted(expected.keys() | tensors.keys()):
        shape = tuple(tensors[key].shape) if key in tensors else None
        _compare(folder, key, shape, tuple(expected[key].shape) if key in expected else None)


def _compare(folder: Path, key: str, shape: Shape | None, expected: Shape | None) -> None:
    if shape != expected:
        shapes = f"{'missing' if shape is None else shape}, expected {'none' if expected is None else expected}"
        raise InputError(f"{folder / WEIGHTS_NAME} does not fit the JSON beside it: {key!r} is {shapes}")
