"""The loss from the side of the class centers: each class of a batch against the images nearest to its center."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hgsl.losses.hard_set import largest
from hgsl.losses.scoring.similarity import matrix_similarity, unit


def center_side_loss(
    x: Tensor,
    centers: Tensor,
    labels: Tensor,
    scale: float | Tensor,
    top_k: int | None = None,
    *,
    margin: float = 0.0,
    similarity: str = "euclidean",
    sparse_grad: bool = False,
) -> Tensor:
    """Pulls the images of each class in the batch to its center, against the K nearest images of other classes.

    With ``z_ij`` as in :func:`hgsl.losses.functional.hard_global_softmin_loss`, the classes J of the batch, and the
    images ``P_j`` of class j::

        L = mean over j in J of [ logsumexp over P_j and N_j of z_ij  -  logsumexp over P_j of z_ij ]

    where ``N_j`` are the K images of other classes with the largest ``z_ij``.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm.
        labels: ``(B,)`` int64 in ``[0, C)``.
        scale: ``s = 10 / alpha``.
        top_k: K; None, or a number above that of the images, takes every image.
        margin: subtracted from the similarity of a center to images of its own class.
        similarity: ``"euclidean"`` or ``"cosine"``.
        sparse_grad: makes the gradient of ``centers`` sparse.

    Returns:
        The loss, a scalar.
    """
    w = unit(F.embedding(labels, centers, sparse=sparse_grad).to(x.dtype))  # (B, D): each class once per image of it
    same = labels[:, None] == labels  # (B, B): row i is the center of image i's class
    z = scale * (matrix_similarity(w, x, similarity) - margin * same.to(x.dtype))
    positive = z.masked_fill(~same, -torch.inf).logsumexp(dim=1, keepdim=True)
    negative = largest(z.masked_fill(same, -torch.inf), top_k or len(labels))
    losses = torch.cat([positive, negative], dim=1).logsumexp(dim=1) - positive[:, 0]
    weights = 1 / same.sum(dim=1, dtype=x.dtype)  # so that each class counts once
    return (losses * weights).sum() / weights.sum()
