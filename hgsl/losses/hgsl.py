"""The Hard Global Softmin Loss as a module that owns the class centers and the scale."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hgsl.common.autograd import is_traced
from hgsl.common.errors import InputError
from hgsl.losses.checks import check_batch, check_integer, check_number, check_settings, check_tensor, hard_set_size
from hgsl.losses.decorrelation import EXACT_UP_TO, SAMPLE
from hgsl.losses.functional import class_logits, hard_global_softmin_loss
from hgsl.losses.graphs import LossGraphs
from hgsl.losses.library_arguments import refuse_references, tuple_weights
from hgsl.losses.scoring.similarity import normalize_
from hgsl.losses.value_checks import check_alpha


class HardGlobalSoftminLoss(nn.Module):
    """Learns one center per class, and compares each embedding with the K centers nearest to it.

    The formula is that of :func:`hgsl.losses.functional.hard_global_softmin_loss`, computed in float32 or float64, also
    under autocast.

    The call signature is that of pytorch-metric-learning, and the loss works in that library's trainers, but not in its
    ``DistributedLossWrapper``, which accepts only subclasses of the library's base class. In distributed training, wrap
    this module in ``DistributedDataParallel`` (with ``sparse_grad=False``; every process holds all centers, and local
    batches of equal size give the gradient of the joint batch), or use
    :class:`hgsl.losses.ShardedHardGlobalSoftminLoss`.

    Args:
        num_classes: C, the number of classes.
        embedding_size: D, the dimension of the embeddings.
        top_k: K, the size of the hard set; None takes every class. See :meth:`set_top_k`.
        hard_set: ``"all"`` or ``"negatives"``.
        alpha: initial softness, ``s = 10 / alpha``.
        learnable_scale: whether alpha is trained; give it a learning rate of its own (1e-5 in the published recipe).
        decorrelation: weight of the regularizer.
        margin: subtracted from the similarity to the true class.
        similarity: ``"euclidean"`` (published) or ``"cosine"``.
        chunk_size: number of centers searched at a time; None chooses it, or scores every pair where that is cheaper.
        sparse_grad: gives the centers a sparse gradient and keeps them at unit norm, at a cost independent of C. The
            centers then need a separate optimizer: see :func:`hgsl.losses.sparse_optimizer`.
        decorrelation_sample: number of classes sampled in each call to estimate the regularizer; None uses every pair
            of up to 256 classes, and samples 128 classes if there are more.
        both_sides: weight of a second term, which compares each class center of the batch with the K images nearest to
            it; 0 in the published loss, 1 in this project's recipes. In distributed training, gather the embeddings
            first, or the comparison is within each local batch.
        cuda_graphs: whether calls on a GPU are captured as CUDA graphs, one for each shape of the batch, where their
            launches take longer than their arithmetic. The loss and its gradients are the same. A graph keeps its
            memory. Calls within another capture, those compiled or transformed by ``torch.func``, those with
            ``indices_tuple`` and those without gradient are ordinary.

    Attributes:
        centers: the ``(C, D)`` parameter. Its rows have norm 1 with ``sparse_grad``, and otherwise any norm.
        alpha: the scalar parameter.

    Raises:
        InputError: A setting is not as above.
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
        *,
        margin: float = 0.0,
        similarity: str = "euclidean",
        chunk_size: int | None = None,
        sparse_grad: bool = False,
        decorrelation_sample: int | None = None,
        both_sides: float = 0.0,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__()
        check_integer("num_classes", num_classes, 1)
        check_integer("embedding_size", embedding_size, 1)
        check_integer("decorrelation_sample", decorrelation_sample, 2, "None to have it chosen")
        check_number("alpha", alpha)
        check_alpha(float(alpha))
        check_settings(margin, similarity, chunk_size, decorrelation, both_sides)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.hard_set = hard_set
        self.set_top_k(top_k)
        self.decorrelation = decorrelation
        self.margin = margin
        self.similarity = similarity
        self.chunk_size = chunk_size
        self.sparse_grad = sparse_grad
        self.both_sides = both_sides
        self.cuda_graphs = cuda_graphs
        self._graphs = LossGraphs()
        if decorrelation_sample is None and num_classes > EXACT_UP_TO:
            decorrelation_sample = SAMPLE
        self.decorrelation_sample = decorrelation_sample
        self.centers = nn.Parameter(self._new_centers())
        self.alpha = nn.Parameter(torch.tensor(float(alpha)), requires_grad=learnable_scale)
        self.optimizer_attached = False  # set by hgsl.losses.attach_optimizer
        self._trained_unattached = False
        self._unit_version = -1  # the version of the tensor `centers` at which its rows had norm 1
        self.renormalize()
        if sparse_grad:
            self.register_load_state_dict_post_hook(_renormalize_loaded)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: None = None,
        ref_labels: None = None,
    ) -> Tensor:
        """Returns the scalar loss.

        Args:
            embeddings: ``(B, D)``, of any norm and floating dtype.
            labels: ``(B,)`` int64 in ``[0, C)``.
            indices_tuple: pairs or triplets of a pytorch-metric-learning miner; each embedding's loss is weighted by
                how often it occurs there, relative to the most frequent one.
            ref_emb: not supported, since embeddings are compared with centers only; must be None.
            ref_labels: not supported; must be None.

        Raises:
            InputError: An argument is not as above, alpha is out of range, a center is not finite, or the centers of
                a loss with ``sparse_grad`` were changed by an optimizer that is not attached.
        """
        refuse_references(ref_emb, ref_labels)
        check_batch(embeddings, labels, self.embedding_size)
        self._keep_unit()
        weights = tuple_weights(indices_tuple, len(labels))
        if self.cuda_graphs and weights is None and not is_traced():
            settings = self.top_k, self.hard_set, *self._settings().values()
            loss = self._graphs.loss(self, embeddings, labels, settings)
            if loss is not None:
                return loss
        return self.compute(embeddings, self.centers, self.alpha, labels, weights)

    def compute(
        self, embeddings: Tensor, centers: Tensor, alpha: Tensor, labels: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Returns the loss of a call without a CUDA graph, as a function of these centers and this alpha."""
        return hard_global_softmin_loss(
            embeddings,
            centers,
            labels,
            alpha,
            self.top_k,
            self.hard_set,
            weights=weights,
            **self._settings(),
        )

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Returns ``z`` ``(B, C)``, the scaled similarity to every center; its argmax is the predicted class."""
        return class_logits(embeddings, self.centers, self.alpha, self.similarity)

    def set_top_k(self, top_k: int | None) -> None:
        """Sets K from the next call on (None: all), for a schedule from all classes to fewer.

        Raises:
            InputError: K is below 1 or above the number of classes to choose from.
        """
        hard_set_size(top_k, self.num_classes, self.hard_set)
        self.top_k = top_k

    def set_centers(self, centers: Tensor) -> None:
        """Copies ``centers`` into the parameter and normalizes them.

        Args:
            centers: ``(C, D)``. Sharded centers are set by each process for its own classes alone: rows ``first_class``
                to ``first_class + len(loss_fn.centers)`` of the table, which ``loss_fn.local_rows(table)`` returns.

        Raises:
            InputError: They are no tensor, a value is not finite, or the shape differs; the message has both shapes, as
                in ``centers of shape (10, 64) cannot be set: expected finite values of shape (5, 64)``.
        """
        check_tensor("centers", centers)
        if centers.shape != self.centers.shape or not centers.isfinite().all():
            raise InputError(
                f"centers of shape {tuple(centers.shape)} cannot be set: "
                f"expected finite values of shape {tuple(self.centers.shape)}"
            )
        with torch.no_grad():
            self.centers.copy_(centers)
        self.renormalize()

    def renormalize(self, rows: Tensor | None = None) -> None:
        """Scales the centers in ``rows`` of the parameter (None: all), which may repeat, to norm 1, in place."""
        normalize_(self.centers, rows)
        self._unit_version = self.centers._version

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Of a copy: its tensors are new ones, and their versions do not tell a change since the last call.
        self._unit_version, self._trained_unattached = -1, False

    def extra_repr(self) -> str:
        """Returns the settings, shown in the ``repr`` of the module."""
        first = ("num_classes", "embedding_size", "top_k", "hard_set")
        others = ("decorrelation", "margin", "similarity", "both_sides", "chunk_size", "sparse_grad")
        alpha = "meta" if self.alpha.is_meta else f"{float(self.alpha.detach()):.4g}"
        learned = f"learnable_scale={self.alpha.requires_grad}"
        settings = [[f"{name}={getattr(self, name)!r}" for name in names] for names in (first, others)]
        return ", ".join([*settings[0], f"alpha={alpha}", learned, *settings[1]])

    def _settings(self) -> dict[str, Any]:
        names = ("margin", "similarity", "decorrelation", "decorrelation_sample", "chunk_size", "sparse_grad")
        return {name: getattr(self, name) for name in (*names, "both_sides")}

    def _new_centers(self) -> Tensor:
        return torch.empty(self.num_classes, self.embedding_size).normal_()

    def _keep_unit(self) -> None:
        # Attached optimizers normalize the rows they change; the tensor's version reveals other in-place changes.
        if not self.sparse_grad or torch.compiler.is_compiling():
            return
        if self.centers._version != self._unit_version:
            if self._trained_unattached and not self.optimizer_attached:
                raise InputError(
                    "the centers have changed since the last call, but no optimizer is attached (sparse_grad=True): "
                    "call hgsl.losses.attach_optimizer(loss_fn, optimizer) once, or set them with loss_fn.set_centers"
                )
            self.renormalize()
        self._trained_unattached = torch.is_grad_enabled() and not self.optimizer_attached


def _renormalize_loaded(loss_fn: HardGlobalSoftminLoss, _: object) -> None:  # not a lambda, which cannot be pickled
    loss_fn.renormalize()
