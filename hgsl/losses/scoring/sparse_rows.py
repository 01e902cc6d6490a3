"""Sparse gradients of the rows of a table."""

import warnings
from functools import cache

import torch
from torch import Tensor


def sparse_rows(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """Returns the sparse ``(C, D)`` tensor with ``values`` ``(n, D)`` in ``rows`` ``(n,)``, which may repeat.

    The rows are not validated, which would wait for a GPU.
    """
    _use_up_warning()
    return torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=False)


@cache
def _use_up_warning() -> None:
    """Triggers, unseen, the warning that checks are implicitly disabled, which PyTorch shows once in a process.

    PyTorch 2.11 shows it even where ``check_invariants`` is given, and later versions in a sparse step of Adagrad.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse invariant checks")
        torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0), (1,))
