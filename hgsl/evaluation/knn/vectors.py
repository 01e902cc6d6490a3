"""Matrices of embeddings that may be larger than memory: read by rows, as float32, optionally at unit length."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open

from hgsl.common.array_files import check_array_file
from hgsl.common.errors import InputError, first_line
from hgsl.common.threads import map_ahead

Array = ArrayLike | torch.Tensor
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

CHUNK_BYTES = 1 << 25  # bytes converted to float32 at a time
THREAD_BYTES = 1 << 23  # the same of each thread, where several measure rows
UNIT = 1e-5  # vectors of a length within this of 1 are not rescaled
SHORTEST = 1e-18  # length of a vector below which its squares lose digits in float32


@dataclass(frozen=True)
class Vectors:
    """The rows of a (N, D) matrix of any float dtype, in memory or mapped from a file.

    Attributes:
        data: The stored matrix; a torch tensor where NumPy has no such dtype (bfloat16).
        norms: (N,) divisors of the rows, or None to read the rows unchanged.
        longest: The largest length among the rows as they are read.
        chosen: Indices of the stored rows, or None for all; a choice copies nothing.
    """

    data: NDArray[Any] | torch.Tensor
    norms: Floats | None
    longest: float
    chosen: Ints | None = None

    def __len__(self) -> int:
        return len(self.data if self.chosen is None else self.chosen)

    @property
    def width(self) -> int:
        """D, the length of one vector."""
        return int(self.data.shape[1])

    @property
    def plain(self) -> bool:
        """Whether rows are read unchanged from a float32 array, so that reading all of them copies nothing."""
        return (
            self.norms is None
            and self.chosen is None
            and isinstance(self.data, np.ndarray)
            and self.data.dtype == np.float32
        )

    @property
    def readers(self) -> int:
        """How many threads read rows well at a time: one where PyTorch converts them, with threads of its own."""
        return torch.get_num_threads() if isinstance(self.data, np.ndarray) else 1

    def pick(self, index: Ints) -> "Vectors":
        """Returns the rows at ``index`` as a view, without a copy."""
        return replace(self, chosen=index if self.chosen is None else self.chosen[index])

    def rows(self, index: slice | Ints) -> Floats:
        """Returns the rows at ``index``, contiguous float32."""
        if self.chosen is not None:
            index = self.chosen[index]
        rows = _float32(self.data[index] if isinstance(self.data, np.ndarray) else self.data[_torch_index(index)])
        if self.norms is not None:
            rows = rows / self.norms[index, None]
        return rows

    def chunks(self, size: int | None = None) -> list[slice]:
        """Returns slices that cover all rows, by default of a few megabytes each."""
        size = size or max(1, CHUNK_BYTES // (4 * self.width))
        return [slice(start, min(start + size, len(self))) for start in range(0, len(self), size)]


def open_vectors(values: Array, name: str = "embeddings", *, unit: bool = True) -> Vectors:
    """Checks a matrix of embeddings and wraps it without a copy.

    Args:
        values: (N, D) floats, NumPy (also a memory map) or torch.
        name: Name of the argument in error messages.
        unit: Whether the rows are to be read at unit length.

    Raises:
        InputError: It is not a matrix of floats, or a row is not finite, or is zero where ``unit`` is set.
    """
    data = values.detach().cpu() if isinstance(values, torch.Tensor) else np.asarray(values)
    floating = data.is_floating_point() if isinstance(data, torch.Tensor) else data.dtype.kind == "f"
    if data.ndim != 2 or not floating or 0 in data.shape:
        raise InputError(f"{name}: expected a matrix (images, dimensions) of floats, found {data.dtype} {data.shape}")
    if isinstance(data, torch.Tensor) and data.dtype in (torch.float16, torch.float32, torch.float64):
        data = data.numpy()
    if isinstance(data, np.ndarray) and data.dtype == np.float32 and not data.flags.c_contiguous:
        data = np.ascontiguousarray(data)
    stored = Vectors(data, None, 1.0)
    pieces = stored.chunks(max(1, THREAD_BYTES // (4 * stored.width)))
    measured = map_ahead(lambda piece: lengths(stored.rows(piece)), pieces, min(stored.readers, len(pieces)))
    norms = np.concatenate(list(measured))
    wrong = np.flatnonzero(~np.isfinite(norms) | (unit & (norms < SHORTEST)))
    if len(wrong):
        raise InputError(f"{name}: row {wrong[0]} {_problem(stored, int(wrong[0]))} ({len(wrong)} such rows)")
    if unit and np.abs(norms - 1).max() > UNIT:
        return Vectors(data, norms, 1.0)
    return Vectors(data, None, float(norms.max()))


def lengths(rows: Floats) -> Floats:
    """Returns the length (B,) of each row."""
    return np.sqrt(np.einsum("nd,nd->n", rows, rows))


def integers(values: Array, name: str, count: int) -> Ints:
    """Checks a list of ``count`` integers, one per image, and returns it as int64.

    Raises:
        InputError: It has another length, shape or dtype, or a number is too large.
    """
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        expected = "integers or class names" if name.endswith("labels") else "integers"
        raise InputError(
            f"{name}: expected {count} {expected}, one per image, found {array.dtype} of shape {tuple(array.shape)}"
        )
    if array.dtype == np.uint64 and count and array.max() > np.iinfo(np.int64).max:
        raise InputError(
            f"{name}: {array.max()} does not fit into a signed 64-bit integer: give smaller numbers, such as those of "
            "np.unique(..., return_inverse=True)"
        )
    return array.astype(np.int64)


def load_array(path: str | os.PathLike[str], key: str) -> NDArray[Any] | torch.Tensor:
    """Opens one array of a ``.npy`` (memory-mapped), ``.npz`` or ``.safetensors`` (memory-mapped) file.

    Args:
        path: The file.
        key: The array's name in a file that holds several; a file that holds one array needs no such name.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file has another format, is damaged, holds pickled objects, or has no array of that name.
    """
    file = check_array_file(path)
    try:
        if file.suffix == ".npy":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):  # NumPy detects an archive by its content
                raise InputError(f"{file}: holds an archive, not an array: rename it to .npz")
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                array = archive[_name(file, key, archive.files)]
        else:
            with safe_open(file, framework="pt") as tensors:
                tensor = cast(torch.Tensor, tensors.get_tensor(_name(file, key, list(tensors.keys()))))
            array = tensor if tensor.dtype == torch.bfloat16 else tensor.numpy()
    except InputError:
        raise
    except Exception as error:  # each format raises other errors
        raise InputError(f"{file}: cannot be read as {file.suffix} ({first_line(error)})") from error
    if isinstance(array, np.ndarray) and array.dtype.kind == "V":
        raise InputError(f"{file}: its numbers have a dtype that NumPy lacks: store bfloat16 as .safetensors")
    return array


def _problem(stored: Vectors, row: int) -> str:
    """What is wrong with a row whose norm is zero or not finite in float32."""
    index = np.array([row])
    data = stored.data[index] if isinstance(stored.data, np.ndarray) else stored.data[_torch_index(index)]
    data = data.float().numpy() if isinstance(data, torch.Tensor) else data
    broken = "are the images too small for the network, or is the network broken?"
    if not np.isfinite(data).all():
        return f"is not finite: {broken}"
    if not data.any():
        return f"is zero: {broken}"
    largest = f"{np.abs(data).max():.3g}"
    return f"has values up to {largest}, whose squares are outside the range of float32: scale the embeddings"


def _name(file: Path, key: str, names: list[str]) -> str:
    if key in names:
        return key
    if len(names) == 1:
        return names[0]
    raise InputError(f"{file}: holds no array named {key!r} (it holds: {', '.join(sorted(names)) or 'nothing'})")


def _float32(rows: NDArray[Any] | torch.Tensor) -> Floats:
    if isinstance(rows, torch.Tensor):
        return rows.float().numpy()
    with np.errstate(over="ignore"):  # infinity is refused, with the value
        return np.ascontiguousarray(rows, dtype=np.float32)


def _torch_index(index: slice | Ints) -> slice | torch.Tensor:
    return index if isinstance(index, slice) else torch.from_numpy(index)
