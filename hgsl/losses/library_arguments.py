"""Arguments of the call signature of pytorch-metric-learning: a miner's tuple, and references, which are refused."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.losses.checks import check_tensor


def refuse_references(ref_emb: Tensor | None, ref_labels: Tensor | None) -> None:
    """Raises if reference embeddings are given, as pytorch-metric-learning's losses with class weights do."""
    if ref_emb is not None or ref_labels is not None:
        raise InputError("ref_emb and ref_labels are not supported: embeddings are compared with class centers only")


def tuple_weights(indices_tuple: Sequence[Tensor] | None, batch_size: int) -> Tensor | None:
    """Returns ``(B,)`` weights in [0, 1]: how often each embedding occurs in a miner's tuple, divided by the maximum.

    Raises:
        InputError: The tuple holds anything other than indices into the batch.
    """
    if indices_tuple is None:
        return None
    if not isinstance(indices_tuple, Sequence):
        raise InputError(f"indices_tuple: expected a tuple of tensors, found {type(indices_tuple).__name__}")
    for part in indices_tuple:
        check_tensor("indices_tuple", part)
    if not sum(part.numel() for part in indices_tuple):
        return None
    indices = torch.cat([part.flatten() for part in indices_tuple])
    if indices.is_floating_point() or indices.dtype == torch.bool:
        raise InputError(f"indices_tuple holds {indices.dtype}: expected integers, the indices of a miner")
    lowest, highest = torch.stack(indices.aminmax()).tolist()
    if lowest < 0 or highest >= batch_size:
        wrong = highest if lowest >= 0 else lowest
        raise InputError(
            f"indices_tuple names embedding {wrong}, but the batch has {batch_size}: expected 0 to {batch_size - 1}"
        )
    counts = indices.bincount(minlength=batch_size)
    return counts / counts.max()
