"""The Hard Global Softmin Loss as pure functions of embeddings, class centers and labels."""

import torch
from torch import Tensor

from hgsl.common.autograd import is_traced
from hgsl.losses.both_sides import center_side_loss
from hgsl.losses.checks import (
    check_batch,
    check_center_shape,
    check_devices,
    check_embeddings,
    check_number,
    check_settings,
    check_similarity,
    hard_set_size,
)
from hgsl.losses.decorrelation import mean_abs_dots, sampled_rows
from hgsl.losses.dense import DenseOptions, dense_losses
from hgsl.losses.hard_set import DENSE_UP_TO, class_losses, nearest_classes, score_classes
from hgsl.losses.scoring.similarity import matrix_similarity, unit, unit_of_any_norm
from hgsl.losses.value_checks import check_alpha, check_values


def hard_global_softmin_loss(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    alpha: float | Tensor = 0.1,
    top_k: int | None = None,
    hard_set: str = "all",
    *,
    margin: float = 0.0,
    similarity: str = "euclidean",
    weights: Tensor | None = None,
    decorrelation: float = 0.0,
    decorrelation_sample: int | None = None,
    chunk_size: int | None = None,
    sparse_grad: bool = False,
    both_sides: float = 0.0,
) -> Tensor:
    """Returns the Hard Global Softmin Loss of embeddings, given the center of their class and the K nearest centers.

    With unit embeddings ``x_i`` and unit centers ``w_j`` (both are normalized here, with gradient)::

        d_ij = sqrt(|x_i - w_j|^2 + 1e-6)      z_ij = s (1 - d_ij - margin [j = y_i])      s = 10 / alpha
        L    = mean_i [ logsumexp over H_i of z_ij  -  z_iy ]  +  decorrelation * mean over j != l of |w_j . w_l|

    Only K + 1 centers per embedding matter. If K is much smaller than C, they are found by a chunked search without
    gradient, and no ``(B, C)`` matrix is allocated; the result is the same.

    Args:
        embeddings: ``(B, D)``, of any norm and floating dtype.
        centers: ``(C, D)``, one row per class, zero or of a norm between 1e-12 and 1e18.
        labels: ``(B,)`` int64 in ``[0, C)``.
        alpha: softness; ``s = 10 / alpha``. A tensor receives a gradient.
        top_k: K, the size of ``H_i``; None takes every class.
        hard_set: ``"all"``: ``H_i`` is the K largest ``z_ij`` over all classes, and need not contain the true class.
            ``"negatives"``: ``H_i`` is the true class and the K largest over the other classes.
        margin: subtracted from the similarity to the true class before ``H_i`` is chosen, in both terms.
        similarity: ``"euclidean"`` as above, or ``"cosine"``: ``z_ij = s (x_i . w_j - margin [j = y_i])``.
        weights: ``(B,)``, multiplied with the losses of the embeddings before the mean; None is 1 for each.
        decorrelation: weight of the regularizer, which drives the centers toward orthogonality.
        decorrelation_sample: number of classes sampled, by torch's global generator, for an unbiased estimate of the
            regularizer; None uses every pair.
        chunk_size: number of centers searched at a time; None chooses it, or scores every pair where that is cheaper.
        sparse_grad: makes the gradient of ``centers`` sparse.
        both_sides: weight of :func:`hgsl.losses.both_sides.center_side_loss`, which compares each class center of the
            batch with its K nearest images; 0 in the published loss. ``weights`` do not apply to it.

    Returns:
        The loss, a scalar: float32, or float64 if an input is.

    Raises:
        InputError: A shape, dtype, label, embedding, center or setting is not as above.

    Source: "Improved fine-grained object retrieval with Hard Global Softmin Loss objective", Signal Processing: Image
    Communication, 2021, https://doi.org/10.1016/j.image.2021.116515; code at https://github.com/RiyaoDong/HGSL.
    """
    check_center_shape(centers)
    check_batch(embeddings, labels, centers.shape[1], weights)
    check_devices(embeddings=embeddings, labels=labels, centers=centers)
    check_number("alpha", alpha)
    check_settings(margin, similarity, chunk_size, decorrelation, both_sides)
    k, largest_k = (hard_set_size(size, len(centers), hard_set) for size in (top_k, None))
    alpha = alpha.reshape(()) if isinstance(alpha, Tensor) else alpha
    with torch.autocast(embeddings.device.type, enabled=False):
        x = unit_of_any_norm(embeddings.to(working_dtype(embeddings, centers)))  # (B, D)
        sampled = sampled_rows(len(centers) if decorrelation else 0, decorrelation_sample, x.device)
        dense_up_to = 0 if sparse_grad else DENSE_UP_TO.get(x.device.type, 0)
        nearest, norms = nearest_classes(x, centers, labels, k, chunk_size, dense_up_to)  # (B, K), or None for all
        x, labels = check_values(x, embeddings, labels, len(centers), alpha, centers, norms)

        hard_k = k if k < largest_k else None
        if nearest is None and not is_traced():  # a compiler fuses plain operations itself
            options = DenseOptions(hard_k, hard_set, margin, similarity, sparse_grad)
            losses, w = dense_losses(x, centers, labels, alpha, norms, sampled, options)
        else:
            scores, excluded, w = score_classes(x, centers, labels, nearest, sampled, similarity, sparse_grad)
            losses = class_losses(scores, excluded, alpha, margin, hard_k, hard_set)
        loss = losses.mean() if weights is None else (losses * weights).mean()
        if both_sides:
            loss = loss + both_sides * center_side_loss(
                x, centers, labels, 10 / alpha, top_k, margin=margin, similarity=similarity, sparse_grad=sparse_grad
            )
        if decorrelation:
            loss = loss + decorrelation * mean_abs_dots(w, sampled)
        return loss


def class_logits(
    embeddings: Tensor, centers: Tensor, alpha: float | Tensor = 0.1, similarity: str = "euclidean"
) -> Tensor:
    """Returns ``z`` ``(B, C)``, scaled similarities of embeddings ``(B, D)`` to centers ``(C, D)``, without margin."""
    check_center_shape(centers)
    check_embeddings(embeddings, centers.shape[1])
    check_devices(embeddings=embeddings, centers=centers)
    check_alpha(alpha)
    check_similarity(similarity)
    dtype = working_dtype(embeddings, centers)
    with torch.autocast(embeddings.device.type, enabled=False):
        x, w = unit_of_any_norm(embeddings.to(dtype)), unit(centers.to(dtype))
        return 10 / alpha * matrix_similarity(x, w, similarity)


def working_dtype(embeddings: Tensor, centers: Tensor) -> torch.dtype:
    """Returns the dtype of the computation: float64 if either input is float64, else float32."""
    return torch.promote_types(torch.promote_types(embeddings.dtype, centers.dtype), torch.float32)
