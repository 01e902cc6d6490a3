"""Center side of the loss: each class center of a batch compared with the images nearest to it."""

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
    """Compares each class center of the batch with the images of its class and the K nearest images of other classes.

    With ``z_ij`` as in :func:`hgsl.losses.functional.hard_global_softmin_loss`, the classes J of the batch, and the
    images ``P_j`` of class j::

        L = mean over j in J of [ logsumexp over P_j and N_j of z_ij  -  logsumexp over P_j of z_ij ]

    where ``N_j`` are the K images of other classes with the largest ``z_ij``.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm.
        labels: ``(B,)`` int64 in ``[0, C)``.
        scale: ``s = 10 / alpha``.
        top_k: K; None, or a K above the number of images, uses every image.
        margin: subtracted from the similarity of a center to images of its own class.
        similarity: ``"euclidean"`` or ``"cosine"``.
        sparse_grad: makes the gradient of ``centers`` sparse.

    Returns:
        The loss, a scalar.
    """
    w = unit(F.embedding(labels, centers, sparse=sparse_grad).to(x.dtype))  # (B, D), the center of each image's class
    same_class = labels[:, None] == labels  # (B, B)
    z = scale * (matrix_similarity(w, x, similarity) - margin * same_class.to(x.dtype))
    positive = z.masked_fill(~same_class, -torch.inf).logsumexp(dim=1, keepdim=True)
    negative = largest(z.masked_fill(same_class, -torch.inf), top_k or len(labels))
    losses = torch.cat([positive, negative], dim=1).logsumexp(dim=1) - positive[:, 0]
    weights = 1 / same_class.sum(dim=1, dtype=x.dtype)  # each class counts once
    return (losses * weights).sum() / weights.sum()
