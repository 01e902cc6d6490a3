"""Search of the nearest class centers on a GPU by Triton kernels that never write the matrix of all cosines.

The k nearest centers lie in the k groups of centers with the largest maxima. The maxima have an error of at most
``3 * 2^-16``, usually of ``10^-6``. A few more groups than k are therefore taken, and all their centers are scored in
float32. A center that is missed is at most this error nearer than the last one found; the error of a float32 product of
512 dimensions has a bound as large. Without Triton the plain search runs.
"""

import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from hgsl.common.errors import first_line

FURTHER = 5  # groups beyond k
MOST = 64  # centers sought: more are sorted faster by the plain search
LEAST = 4096  # classes from which the search by groups is faster


def group_search_pays(x: Tensor, centers: Tensor, k: int) -> bool:
    """Whether Triton runs on this GPU, and the search by groups is the faster one."""
    return (
        x.device.type == "cuda"
        and x.dtype == centers.dtype == torch.float32
        and centers.is_contiguous()
        and k <= MOST
        and len(centers) >= LEAST
        and _kernels_run(x.device)
    )


def search_by_groups(x: Tensor, centers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Finds the ``k`` centers with the largest cosine to each embedding.

    Args:
        x: unit embeddings ``(B, D)`` float32.
        centers: ``(C, D)`` float32, contiguous.
        k: how many to find, at most C.

    Returns:
        Their rows ``(B, k)`` int64, best first; the smallest and the largest norm of all centers ``(2,)``.
    """
    from hgsl.losses.scoring.kernels import GROUP, cosines_of_groups, group_maxima

    maxima, norms = group_maxima(x.contiguous(), centers)
    groups = maxima.topk(min(k + FURTHER, maxima.shape[1]), dim=1, sorted=False).indices  # (B, m)
    positions = cosines_of_groups(x.contiguous(), centers, groups).topk(k, dim=1).indices
    rows = groups.gather(1, positions // GROUP) * GROUP + positions % GROUP
    return rows, torch.stack(norms.aminmax())


@cache
def _kernels_run(device: torch.device) -> bool:
    """Whether Triton is installed and compiles the kernels for this GPU, which must multiply bfloat16."""
    if find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    x = torch.eye(16, 32, device=device)
    try:
        rows, _ = search_by_groups(x, x, 1)
    except Exception as error:  # no compiler, or a version of Triton that differs
        warnings.warn(f"the plain search of centers runs, since Triton fails: {first_line(error)}", stacklevel=2)
        return False
    return rows.flatten().tolist() == list(range(16))
