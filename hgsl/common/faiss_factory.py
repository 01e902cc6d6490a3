"""FAISS factory strings, such as ``IVF4096,Flat nprobe=32``: a factory, then optionally search parameters.

This module does not import torch, so that a wrong string is reported before the libraries are loaded.
"""

import re
from typing import Any

from hgsl.common.errors import InputError

FLAT = "Flat"
# Their lengths suit every product quantizer of up to 16 parts, and those of a power of two.
TRIAL_WIDTHS = (5040, 4096)
MAX_CELLS = 1 << 20  # of an index that is built only to check the string: FAISS allocates each cell


def check_factory(factory: str, metric: str, width: int | None = None, count: int | None = None) -> None:
    """Checks that FAISS can build the index of a factory string, without training it.

    Args:
        factory: The string.
        metric: ``cosine``, ``inner_product`` or ``l2``.
        width: D of the vectors; None if it is not yet known.
        count: Number of vectors; None if it is not yet known.

    Raises:
        InputError: FAISS cannot parse the string or its parameters, has no such index for the metric or for ``width``,
            ``count`` vectors are too few for its cells, or it would search none of them.
    """
    if not isinstance(factory, str):
        raise InputError(f"a FAISS factory is a text such as 'IVF256,Flat nprobe=16', found {factory!r}")
    if factory == FLAT:
        return
    cells = _cells(factory)
    if count is not None and cells > count:
        raise InputError(f"the index {factory!r} cannot be built for {count} vectors: it has {cells} cells")
    if cells > MAX_CELLS and count is None:
        return  # checked when the number of vectors is known
    reasons = [_problem(factory, metric, trial) for trial in ([width] if width else TRIAL_WIDTHS)]
    if all(reasons):
        raise InputError(f"FAISS cannot build the index {factory!r}: {reasons[0]}")


def metric_of(name: str) -> int:
    """Returns FAISS's number of a metric; vectors of unit length make the cosine an inner product."""
    import faiss

    return int(faiss.METRIC_L2 if name == "l2" else faiss.METRIC_INNER_PRODUCT)


def set_parameters(index: Any, parameters: str) -> None:
    """Sets search parameters of a FAISS index, such as ``nprobe=32``; FAISS raises a RuntimeError for unknown ones."""
    import faiss

    if parameters:
        space: Any = faiss.ParameterSpace()
        space.set_index_parameters(index, parameters)


def reason_of(error: RuntimeError) -> str:
    """Returns the last line of an error of FAISS, without the place in its source."""
    return re.sub(r"^Error in .* at \S+:\d+: (Error: '.*' failed: )?", "", str(error).strip().splitlines()[-1])


def _cells(factory: str) -> int:
    """The number of cells that a string asks for, 0 if it names none."""
    inverted = [int(number) for number in re.findall(r"\bIVF(\d{1,18})", factory)]
    products = [1 << (2 * min(int(bits), 30)) for bits in re.findall(r"\bIMI2x(\d{1,4})", factory)]
    return max([0, *inverted, *products])


def _problem(factory: str, metric: str, width: int) -> str | None:
    """Why FAISS cannot build the index for vectors of ``width``, or None."""
    import faiss

    name, _, parameters = factory.partition(" ")
    try:
        index: Any = faiss.index_factory(width, name, metric_of(metric))
        set_parameters(index, parameters)
    except RuntimeError as error:
        return reason_of(error)
    inverted = faiss.try_extract_index_ivf(index)
    if inverted and not inverted.nlist:
        return "it has no cells"
    if inverted and not 0 < inverted.nprobe < 1 << 32:  # unsigned: -1 is very large
        return "it would search no cell, nprobe must be at least 1"
    return None
