"""Sparse weights on disk: for each tensor with many zeros one bit a weight and the values that are not zero.

The file is a safetensors file. A tensor NAME of n entries is there as it is; or as ``NAME/bits``, ceil(n / 8) bytes
with entry i at bit i % 8 of byte i // 8, and ``NAME/values``, the entries whose bit is set, in order. The header lists
the shapes of the latter. Minus zero counts as a value, so that what is read is what was written, bit for bit.
"""

import copy
import difflib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hgsl.common.errors import InputError, first_line
from hgsl.common.files import atomic_path
from hgsl.common.modules import evaluation_mode
from hgsl.sparsity.channels.trace import example_input
from hgsl.sparsity.compact import shrink_to, tensors_in

FORMAT = "hgsl-sparse-1"
_BITS, _VALUES = "/bits", "/values"
_SAME_SIZE = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def save(model: nn.Module, path: str | Path) -> None:
    """Writes the state dict of ``model`` so that zeros take one bit each.

    Args:
        model: A plain network: what ``masks.finalize()`` or ``compact`` returned.
        path: File to write; it is there whole or not at all.
    """
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().cpu().contiguous().flatten()
        kept = _is_value(flat)
        packed_bytes = (flat.numel() + 7) // 8 + int(kept.sum()) * flat.element_size()
        if packed_bytes < flat.numel() * flat.element_size():
            shapes[name] = list(tensor.shape)
            stored[name + _BITS] = torch.from_numpy(np.packbits(kept.numpy(), bitorder="little"))
            stored[name + _VALUES] = flat[kept]
        else:
            stored[name] = flat.reshape(tensor.shape).clone()  # a copy, for safetensors takes no shared memory
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata={FORMAT: json.dumps(shapes)})


def load(model: nn.Module, path: str | Path, *, shrink: bool = False, example: Tensor | None = None) -> None:
    """Reads into ``model``, in place, what ``save`` wrote; nothing is changed if anything is wrong.

    Args:
        model: A network of the architecture that was saved.
        path: File to read.
        shrink: Whether the file may hold a compacted version, to whose sizes ``model`` is then cut. A copy is cut
            first: it must take ``example`` and give outputs of the shapes that ``model`` gives.
        example: An input for that, ``(B, ...)``; None makes images of the model's own size.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged, contradicts its header, or is of another architecture.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: expected one that hgsl.sparsity.save wrote")
    tensors = _read(Path(path))
    wanted = model.state_dict()
    _compare(Path(path), tensors, wanted, shrink)
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(sizes[name] != tuple(tensor.shape) for name, tensor in wanted.items()):
        _try_sizes(Path(path), model, sizes, example_input(model, example))
        shrink_to(model, sizes)
    model.load_state_dict(tensors)


def _is_value(flat: Tensor) -> Tensor:
    """Which entries are not plain zero, by their bits: minus zero and NaN are values too."""
    if flat.dtype == torch.bool or flat.is_complex():
        return torch.ones(flat.shape, dtype=torch.bool)
    return flat.view(_SAME_SIZE[flat.element_size()]) != 0


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        shapes = json.loads(header.get(FORMAT, "null"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no sparse weights file ({first_line(error)}): it is damaged, or of another kind"
        ) from None
    if not isinstance(shapes, dict):
        raise InputError(
            f"{path} is no sparse weights file: its header has no {FORMAT!r}, which hgsl.sparsity.save writes"
        )
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name in stored:
            raise InputError(f"{path}: the header does not fit {name!r}: it is there twice, packed and as it is")
        tensors[name] = _unpack(path, name, shape, stored.pop(name + _BITS, None), stored.pop(name + _VALUES, None))
    return tensors | stored


def _unpack(path: Path, name: str, shape: object, bits: Tensor | None, values: Tensor | None) -> Tensor:
    where = f"{path}: the header does not fit {name!r}"
    if bits is None or values is None or bits.dtype != torch.uint8 or bits.ndim != 1 or values.ndim != 1:
        raise InputError(f"{where}: its bits or values are missing or malformed")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise InputError(f"{where}: {shape!r} is no shape")
    count = prod(shape)
    if (count + 7) // 8 != bits.numel():
        raise InputError(
            f"{where}: shape {tuple(shape)} has {count} entries, and there are bits for {bits.numel() * 8}"
        )
    kept = torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little").astype(bool))
    if int(kept.sum()) != values.numel() or kept[count:].any():
        raise InputError(f"{where}: {int(kept.sum())} bits are set, and there are {values.numel()} values")
    flat = torch.zeros(count, dtype=values.dtype)
    flat[kept[:count]] = values
    return flat.reshape(shape)


def _try_sizes(path: Path, model: nn.Module, sizes: Mapping[str, tuple[int, ...]], example: Tensor) -> None:
    """Refuses sizes that do not fit each other, or cut what the network returns, as another head would."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | _NormBase | _ConvNd) and not getattr(layer, "transposed", False):
            own = [f"{name}.{tensor}".lstrip(".") for tensor in ("weight", "bias", "running_mean", "running_var")]
            rows = {tensor: sizes[tensor][0] for tensor in own if tensor in sizes}
            if len(set(rows.values())) > 1:  # a single row would be broadcast in silence
                raise InputError(f"{path} contradicts itself: its tensors of one layer differ in length: {rows}")
    small = copy.deepcopy(model)
    shrink_to(small, sizes)
    here = _output_shapes(
        model, example, f"{type(model).__name__} cannot try the sizes of {path}: pass an example that it takes"
    )
    there = _output_shapes(small, example, f"{path} is no compacted version of this {type(model).__name__}")
    if here != there:
        raise InputError(
            f"{path} is of another architecture: with its sizes the outputs have the shapes {there}, the model's {here}"
        )


def _output_shapes(network: nn.Module, example: Tensor, trouble: str) -> list[tuple[int, ...]]:
    try:
        with torch.no_grad(), evaluation_mode(network):
            return [tuple(tensor.shape) for tensor in tensors_in(network(example))]
    except Exception as error:  # whatever a forward raises
        shape = tuple(example.shape)
        raise InputError(f"{trouble}; it fails for one of shape {shape} ({first_line(error)})") from error


def _compare(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], shrink: bool) -> None:
    """Refuses tensors that are not the model's, by the first that differs."""
    for name in sorted(found.keys() ^ wanted.keys()):
        other = wanted if name in found else found
        close = difflib.get_close_matches(name, other, n=3)
        hint = f" (nearest: {', '.join(close)})" if close else ""
        who = "the file has it, the model has not" if name in found else "the model has it, the file has not"
        raise InputError(f"{path} is of another architecture: {name!r}, {who}{hint}")
    for name, tensor in found.items():
        here, there = tuple(wanted[name].shape), tuple(tensor.shape)
        smaller = len(here) == len(there) and all(a >= b for a, b in zip(here, there, strict=True))
        if here != there and not (shrink and smaller):
            hint = "; for a compacted network pass shrink=True" if smaller and not shrink else ""
            raise InputError(f"{path} is of another architecture: {name!r} is {there} there and {here} here{hint}")
        if tensor.dtype != wanted[name].dtype:
            raise InputError(
                f"{path}: {name!r} is {tensor.dtype}, the model's is {wanted[name].dtype}: convert the model first"
            )
