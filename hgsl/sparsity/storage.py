"""Files of sparse weights: a tensor with many zeros takes one bit per entry, plus its nonzero values.

The format is safetensors. A tensor NAME of n entries is stored unpacked; or packed, as ``NAME/bits``, ceil(n / 8) bytes
with entry i at bit i % 8 of byte i // 8, and ``NAME/values``, the entries whose bit is set, in order. The metadata
holds the shapes of the packed tensors. Minus zero is stored as a value, so that tensors are restored bit for bit.
"""

import copy
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hgsl.common.errors import InputError, first_line
from hgsl.common.modules import evaluation_mode
from hgsl.common.suggestions import similar
from hgsl.common.tensor_files import read_tensor_file, write_tensor_file
from hgsl.sparsity.channels.equivalence import tensors_in
from hgsl.sparsity.channels.resize import shrink_to
from hgsl.sparsity.channels.trace import example_input
from hgsl.sparsity.compatibility import check_network

FORMAT = "hgsl-sparse-1"
_BITS, _VALUES = "/bits", "/values"
_INTEGER_OF_SIZE = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def save(model: nn.Module, path: str | Path) -> None:
    """Writes the state dict of ``model`` with one bit per zero.

    Args:
        model: A plain network, as ``masks.finalize()`` and ``compact`` return it.
        path: File to write, atomically.
    """
    check_network(model)
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().cpu().contiguous().flatten()
        is_value = _is_value(flat)
        packed_bytes = (flat.numel() + 7) // 8 + int(is_value.sum()) * flat.element_size()
        if packed_bytes < flat.numel() * flat.element_size():
            shapes[name] = list(tensor.shape)
            stored[name + _BITS] = torch.from_numpy(np.packbits(is_value.numpy(), bitorder="little"))
            stored[name + _VALUES] = flat[is_value]
        else:
            stored[name] = flat.reshape(tensor.shape).clone()  # a copy: safetensors refuses shared memory
    write_tensor_file(Path(path), stored, {FORMAT: json.dumps(shapes)})


def load(model: nn.Module, path: str | Path, *, shrink: bool = False, example: Tensor | None = None) -> None:
    """Loads a file that ``save`` wrote into ``model``, in place; on an error the model is unchanged.

    Args:
        model: A network of the architecture that was saved.
        path: File to read.
        shrink: Whether the file may hold a compacted network, to whose sizes ``model`` is then cut. A copy is cut
            first, which must accept ``example`` and return outputs of the same shapes as ``model``.
        example: An input for this check, ``(B, ...)``; None is a batch of images of the model's input size.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged, contradicts its header, or has another architecture.
    """
    check_network(model)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: expected one that hgsl.sparsity.save wrote")
    tensors = _read(Path(path))
    state = model.state_dict()
    _check_architecture(Path(path), tensors, state, shrink)
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(sizes[name] != tuple(tensor.shape) for name, tensor in state.items()):
        _check_sizes(Path(path), model, sizes, example_input(model, example))
        shrink_to(model, sizes)
    model.load_state_dict(tensors)


def _is_value(flat: Tensor) -> Tensor:
    """Returns which entries are stored: all but those with zero bits, so minus zero and NaN are values."""
    if flat.dtype == torch.bool or flat.is_complex():
        return torch.ones(flat.shape, dtype=torch.bool)
    return flat.view(_INTEGER_OF_SIZE[flat.element_size()]) != 0


def _read(path: Path) -> dict[str, Tensor]:
    try:
        stored, header = read_tensor_file(path)
        shapes = json.loads(header.get(FORMAT, "null"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a sparse weights file ({first_line(error)}): it is damaged, or of another format"
        ) from None
    if not isinstance(shapes, dict):
        raise InputError(
            f"{path} is not a sparse weights file: its header has no {FORMAT!r}, which hgsl.sparsity.save writes"
        )
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name in stored:
            raise InputError(f"{path}: the header does not fit {name!r}: it is stored twice, packed and unpacked")
        tensors[name] = _unpack(path, name, shape, stored.pop(name + _BITS, None), stored.pop(name + _VALUES, None))
    return tensors | stored


def _unpack(path: Path, name: str, shape: object, bits: Tensor | None, values: Tensor | None) -> Tensor:
    problem = f"{path}: the header does not fit {name!r}"
    if bits is None or values is None or bits.dtype != torch.uint8 or bits.ndim != 1 or values.ndim != 1:
        raise InputError(f"{problem}: its bits or values are missing or malformed")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise InputError(f"{problem}: {shape!r} is not a shape")
    count = prod(shape)
    if (count + 7) // 8 != bits.numel():
        raise InputError(
            f"{problem}: shape {tuple(shape)} has {count} entries, but there are bits for {bits.numel() * 8}"
        )
    is_value = torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little").astype(bool))
    if int(is_value.sum()) != values.numel() or is_value[count:].any():
        raise InputError(f"{problem}: {int(is_value.sum())} bits are set, but there are {values.numel()} values")
    flat = torch.zeros(count, dtype=values.dtype)
    flat[is_value[:count]] = values
    return flat.reshape(shape)


def _check_sizes(path: Path, model: nn.Module, sizes: Mapping[str, tuple[int, ...]], example: Tensor) -> None:
    """Refuses sizes that contradict each other or change the shape of the output, as another head would."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | _NormBase | _ConvNd) and not getattr(layer, "transposed", False):
            tensors = [f"{name}.{tensor}".lstrip(".") for tensor in ("weight", "bias", "running_mean", "running_var")]
            rows = {tensor: sizes[tensor][0] for tensor in tensors if tensor in sizes}
            if len(set(rows.values())) > 1:  # a single row would be broadcast
                raise InputError(f"{path} is inconsistent: the tensors of one layer differ in length: {rows}")
    small = copy.deepcopy(model)
    shrink_to(small, sizes)
    name = type(model).__name__
    expected = _output_shapes(model, example, f"{name} cannot be run to check {path}: pass an example that it takes")
    shapes = _output_shapes(small, example, f"{path} is not a compacted version of this {name}")
    if shapes != expected:
        raise InputError(
            f"{path} has another architecture: its sizes give outputs of shapes {shapes}, those of the model {expected}"
        )


def _output_shapes(network: nn.Module, example: Tensor, problem: str) -> list[tuple[int, ...]]:
    try:
        with torch.no_grad(), evaluation_mode(network):
            return [tuple(tensor.shape) for tensor in tensors_in(network(example))]
    except Exception as error:  # whatever a forward raises
        shape = tuple(example.shape)
        raise InputError(f"{problem}; an input of shape {shape} fails ({first_line(error)})") from error


def _check_architecture(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], shrink: bool) -> None:
    """Refuses tensors whose names, shapes or dtypes are not those of the model."""
    for name in sorted(tensors.keys() ^ state.keys()):
        others = state if name in tensors else tensors
        close = similar(name, others)
        hint = f" (similar: {', '.join(close)})" if close else ""
        where = "in the file but not in the model" if name in tensors else "in the model but not in the file"
        raise InputError(f"{path} has another architecture: {name!r} is {where}{hint}")
    for name, tensor in tensors.items():
        shape, expected = tuple(tensor.shape), tuple(state[name].shape)
        is_smaller = len(shape) == len(expected) and all(a <= b for a, b in zip(shape, expected, strict=True))
        if shape != expected and not (shrink and is_smaller):
            hint = "; for a compacted network pass shrink=True" if is_smaller and not shrink else ""
            raise InputError(
                f"{path} has another architecture: {name!r} is {shape} in the file and {expected} in the model{hint}"
            )
        if tensor.dtype != state[name].dtype:
            raise InputError(
                f"{path}: {name!r} is {tensor.dtype} in the file and {state[name].dtype} in the model: "
                "convert the model first"
            )
