"""Checks of the values of a loss's inputs: labels in range, finite embeddings, usable softness and centers.

Reading a value makes the host wait for the device. On a CPU that costs nothing, and every call is checked at once. On a
GPU a call is checked at once too, unless it runs within ``deferred_checks``.
"""

import math

import torch
from torch import Tensor

from hgsl.common.autograd import is_traced
from hgsl.common.device import widest_float
from hgsl.common.errors import InputError
from hgsl.losses.checks import check_number
from hgsl.losses.deferral import deferred_on
from hgsl.losses.scoring.similarity import NORM_RANGE

ALPHA_RANGE = (1e-6, 1e6)  # within it, loss and gradients stay finite in float32


def check_values(
    x: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int,
    alpha: float | Tensor,
    centers: Tensor | None = None,
    norms: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Checks that labels are in range, values are finite, and alpha is in ``ALPHA_RANGE``, at once or deferred.

    All extremes are copied to the CPU in one transfer. Skipped under ``torch.compile`` and ``torch.func``.

    Args:
        x: ``(B, D)``, the embeddings at norm 1.
        embeddings: ``(B, D)``.
        labels: ``(B,)``.
        num_classes: C.
        alpha: softness.
        centers: ``(C, D)``, checked row by row only if ``norms`` are outside ``NORM_RANGE``.
        norms: their norms, of all or only the extremes.

    Returns:
        ``x`` and ``labels`` to continue with. If the check is deferred, embeddings with a label out of range are NaN,
        and these labels are replaced by valid ones, since indexing with them would stop a GPU.

    Raises:
        InputError: A value is invalid, and the check is not deferred.
    """
    if is_traced():
        return x, labels
    extremes = _extremes(embeddings, labels, alpha, norms)
    pending = deferred_on(labels.device)
    if pending is not None:
        pending.add(extremes, num_classes, _find_error)
        in_range = labels.clamp(0, num_classes - 1)
        return x.masked_fill((in_range != labels)[:, None], torch.nan), in_range
    values = extremes.tolist()
    if values[0] < 0 or values[1] >= num_classes:
        wrong = labels[(labels < 0) | (labels >= num_classes)].unique().tolist()
        raise InputError(_label_error(first_five(wrong), num_classes))
    if not math.isfinite(values[2] + values[3]):
        rows = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise InputError(_embedding_error(f" in row {first_five(rows)}"))
    check_alpha(values[4])
    if centers is not None and not usual_norms(values[6:]):
        check_centers(centers)
    return x, labels


def check_alpha(alpha: float | Tensor) -> None:
    """Checks that a softness is one number, and one in ``ALPHA_RANGE`` unless it is a tensor, which is not read."""
    check_number("alpha", alpha)
    if not isinstance(alpha, Tensor) and not usual_alpha(alpha):
        raise InputError(_alpha_error(alpha))


def usual_alpha(alpha: float) -> bool:
    """Whether a softness lies within ``ALPHA_RANGE``, up to the rounding of float32."""
    return 0.999999 * ALPHA_RANGE[0] <= alpha <= 1.000001 * ALPHA_RANGE[1]


def usual_norms(norms: list[float]) -> bool:
    """Whether the smallest and the largest norm lie within ``NORM_RANGE``."""
    return NORM_RANGE[0] < norms[0] and norms[1] < NORM_RANGE[1]


def check_centers(centers: Tensor, first_class: int = 0) -> None:
    """Checks that centers are finite, and zero or of a norm in ``NORM_RANGE``.

    Args:
        centers: ``(C, D)``.
        first_class: the class of the first row.
    """
    norms = torch.linalg.vector_norm(centers.detach(), dim=1, dtype=torch.promote_types(centers.dtype, torch.float32))
    is_zero = (centers == 0).all(dim=1)
    wrong = ~(is_zero | ((norms > NORM_RANGE[0]) & (norms < NORM_RANGE[1])))
    if wrong.any():
        raise InputError(_center_error(f", in row {first_five((wrong.nonzero().flatten() + first_class).tolist())}"))


def first_five(values: list[int]) -> str:
    """Returns the first five of ``values``, and how many more there are.

    >>> first_five([1, 2, 3, 4, 5, 6, 7])
    '1, 2, 3, 4, 5 and 2 more'
    """
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def _extremes(embeddings: Tensor, labels: Tensor, alpha: float | Tensor, norms: Tensor | None) -> Tensor:
    """Returns ``(8,)``: minimum and maximum of labels, embeddings, alpha and norms of centers; NaN if any value is."""
    device, dtype = labels.device, torch.promote_types(embeddings.dtype, torch.float32)
    softness = alpha.detach() if isinstance(alpha, Tensor) else torch.full((), alpha, device=device)
    norms = torch.ones(1, device=device) if norms is None else norms.detach()
    floats = [*embeddings.detach().aminmax(), softness, softness, *norms.aminmax()]
    return torch.cat(
        [
            torch.stack(labels.aminmax()).to(widest_float(device)),
            torch.stack([value.to(device, dtype).reshape(()) for value in floats]).to(widest_float(device)),
        ]
    )


def _find_error(extremes: list[float], num_classes: int) -> str | None:
    """Returns what is wrong with the extremes of several calls, or None."""
    first_label, last_label, smallest, largest, lowest_alpha, highest_alpha, *norms = extremes
    if first_label < 0 or last_label >= num_classes:
        return _label_error(f"{first_label:.0f} to {last_label:.0f}", num_classes)
    if not math.isfinite(smallest + largest):
        return _embedding_error("")
    for alpha in (lowest_alpha, highest_alpha):
        if not usual_alpha(alpha):
            return _alpha_error(alpha)
    if norms[0] == 0:  # a zero center is valid
        norms[0] = 1.0
    return None if usual_norms(norms) else _center_error("")


def _label_error(labels: str, num_classes: int) -> str:
    return f"labels {labels} are out of range: there are {num_classes} classes, 0 to {num_classes - 1}"


def _embedding_error(rows: str) -> str:
    return f"embeddings hold NaN or infinity{rows}: the network has diverged; lower its learning rate"


def _alpha_error(alpha: float) -> str:
    return (
        f"alpha is {alpha:g}: it must lie in [{ALPHA_RANGE[0]:g}, {ALPHA_RANGE[1]:g}]; "
        "start higher, lower its learning rate, or fix it with learnable_scale=False"
    )


def _center_error(rows: str) -> str:
    return (
        f"centers are not finite, or of a norm outside {NORM_RANGE[0]:g} to {NORM_RANGE[1]:g}{rows}: if training has "
        "diverged, lower the learning rate of the centers; otherwise rescale the given centers"
    )
