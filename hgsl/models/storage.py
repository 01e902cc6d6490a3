"""A trained model on disk: ``model.safetensors`` and, beside it, a JSON file that says how to build it.

That file is ``model.json`` in the folder of a run, and ``config.json`` in a folder made for others
(:mod:`hgsl.models.pretrained`). Both may come from strangers, so each value in them is checked before it is used.
"""

from pathlib import Path

from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.files import read_json, write_json
from hgsl.common.tensor_files import write_tensor_file
from hgsl.models.description import DATA_CONFIG, Description, checked, from_hub_config
from hgsl.models.embedder import Embedder, create_embedder
from hgsl.models.hub import fetch, hub_id_of
from hgsl.models.weights import read_tensors

WEIGHTS_NAME = "model.safetensors"
RUN_NAME, HUB_NAME = "model.json", "config.json"


def save_embedder(model: Embedder, folder: str | Path) -> None:
    """Writes ``model.safetensors`` and ``model.json`` into ``folder``, each atomically.

    Args:
        model: What :func:`create_embedder` returned, trained or not.
        folder: Made if it is missing.
    """
    save_weights(model, Path(folder) / WEIGHTS_NAME)
    write_json(Path(folder) / RUN_NAME, vars(describe(model)))


def describe(model: Embedder) -> Description:
    """Returns the description of a model, as its JSON file holds it."""
    return Description(dict(model.architecture), {key: model.data_config[key] for key in DATA_CONFIG})


def save_weights(model: Embedder, path: Path) -> None:
    """Writes the tensors of a model as safetensors, atomically."""
    write_tensor_file(path, model.state_dict(), {"format": "pt"})


def load_embedder(source: str | Path) -> Embedder:
    """Rebuilds a trained model from the folder of a run, from what ``save_pretrained`` wrote, or from the Hub.

    >>> model = load_embedder("runs/quickstart")                   # doctest: +SKIP
    >>> model = load_embedder("hf-hub:OWNER/NAME@v1")              # doctest: +SKIP

    Args:
        source: A folder; or ``OWNER/NAME`` of a model on the Hugging Face Hub, ``@REVISION`` after it if wanted, where
            there is no such folder. With ``hf-hub:`` before it no folder is looked for. Of a model on the Hub only
            ``config.json`` and ``model.safetensors`` are fetched, and nothing in them is executed.

    Returns:
        The model, in evaluation mode on the CPU; ``model.transform()`` prepares images for it.

    Raises:
        FileNotFoundError: The folder or one of its two files is missing.
        InputError: A file is damaged, holds values that make no model, the tensors are of another shape than the JSON
            says, or the Hub cannot be reached.
    """
    folder, hub_id = Path(source), hub_id_of(source)
    if hub_id is not None:
        folder = fetch(hub_id, (HUB_NAME, WEIGHTS_NAME))
    description = read_description(folder)
    tensors = read_tensors(folder / WEIGHTS_NAME)
    _check_projection(folder, description, tensors)
    model = create_embedder(weights="none", **description.architecture)
    _check_shapes(folder, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    model.data_config.update(description.data_config)
    return model.eval()


def read_description(folder: Path) -> Description:
    """Reads and checks ``model.json``, or ``config.json`` where there is none.

    Raises:
        FileNotFoundError: Neither is there.
        InputError: It is damaged, was not written by hgsl, or holds a value that makes no model.
    """
    for name, convert in ((RUN_NAME, checked), (HUB_NAME, from_hub_config)):
        if (folder / name).is_file():
            return convert(read_json(folder / name, "what hgsl wrote about a model"), folder / name)
    if not folder.is_dir():
        raise FileNotFoundError(f"no model at {folder}: expected a run folder, or OWNER/NAME of a model on the Hub")
    raise FileNotFoundError(f"no {RUN_NAME} in {folder}: expected a run folder that training has written")


def _check_projection(folder: Path, description: Description, tensors: dict[str, Tensor]) -> None:
    """The file's own size first: a size that only the JSON claims could ask for more memory than there is."""
    size, bias = description.architecture["embedding_size"], tensors.get("projection.bias")
    if size is not None:
        _compare(folder, "projection.bias", None if bias is None else tuple(bias.shape), (size,))


def _check_shapes(folder: Path, wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    for key in sorted(wanted.keys() | tensors.keys()):
        found = tuple(tensors[key].shape) if key in tensors else None
        _compare(folder, key, found, tuple(wanted[key].shape) if key in wanted else None)


def _compare(folder: Path, key: str, found: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> None:
    if found != expected:
        shapes = f"{'missing' if found is None else found}, expected {'none' if expected is None else expected}"
        raise InputError(f"{folder / WEIGHTS_NAME} does not fit the JSON beside it: {key!r} is {shapes}")
