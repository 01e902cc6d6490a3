"""The Hard Global Softmin Loss as a module that owns the class centres and the scale."""

import torch
from torch import Tensor, nn

from hgsl.losses import functional


class HardGlobalSoftminLoss(nn.Module):
    """Learns one centre a class, and compares each embedding with the K centres nearest to it.

    See :func:`hgsl.losses.functional.hard_global_softmin_loss` for the formula; the module adds
    ``decorrelation * mean over j != l of |w_j . w_l|``.

    Args:
        num_classes: C, the number of classes.
        embedding_size: D, the dimension of the embeddings.
        top_k: K, the size of the hard set; None takes every class.
        hard_set: ``"all"`` or ``"negatives"``.
        alpha: softness at the start, ``s = 10 / alpha``.
        learnable_scale: whether alpha is trained; give it a learning rate of its own (1e-5 in the published recipe).
        decorrelation: weight of the regulariser.

    Attributes:
        centers: the ``(C, D)`` parameter.
        alpha: the scalar parameter.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        top_k: int | None = None,
        hard_set: str = "all",
        alpha: float = 0.1,
        learnable_scale: bool = True,
        decorrelation: float = 0.1,
    ) -> None:
        super().__init__()
        functional.hard_set_size(top_k, num_classes, hard_set)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.top_k = top_k
        self.hard_set = hard_set
        self.decorrelation = decorrelation
        self.centers = nn.Parameter(functional.unit(torch.randn(num_classes, embedding_size)))
        self.alpha = nn.Parameter(torch.tensor(float(alpha)), requires_grad=learnable_scale)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Returns the scalar loss of embeddings ``(B, D)`` with labels ``(B,)``."""
        loss = functional.hard_global_softmin_loss(
            embeddings, self.centers, labels, self.alpha, self.top_k, self.hard_set
        )
        if self.decorrelation:
            loss = loss + self.decorrelation * functional.decorrelation(self.centers)
        return loss
