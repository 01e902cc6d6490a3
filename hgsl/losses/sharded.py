"""The Hard Global Softmin Loss with its class centers divided among processes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.losses.checks import check_shapes, check_values, hard_set_size
from hgsl.losses.collectives import (
    Exchange,
    Group,
    agree_on_counts,
    all_reduce_sum,
    broadcast_from_main,
    gather,
    gather_rows,
    rank_and_world,
)
from hgsl.losses.decorrelation import draw_rows, pairs, sum_abs_dots, with_slopes
from hgsl.losses.functional import class_logits, scaled, working_dtype
from hgsl.losses.hard_set import candidates, largest
from hgsl.losses.hgsl import HardGlobalSoftminLoss, refuse_references, tuple_weights
from hgsl.losses.similarity import unit


class ShardedHardGlobalSoftminLoss(HardGlobalSoftminLoss):
    """Rank r owns the block of ``ceil(C / world)`` centers from class ``r ceil(C / world)`` on, in ``centers``.

    Each call gathers the embeddings of all processes. Every process finds the hard set among its own centers, the
    global one is chosen from these candidates, and gradients flow to the shard that owns a center and back to the
    embeddings. The value is the mean over the joint batch, the same on every process.

    Gradients of centers and alpha are those of the joint batch, so this module must not be wrapped in
    DistributedDataParallel. Those of the embeddings are multiplied by the number of processes, so that
    DistributedDataParallel around the network, which takes the mean, is exact. Batches may differ in size.

    A call, its backward, :meth:`state_dict`, :meth:`get_logits` and :meth:`all_rows` communicate: every process must
    make them.
    The state dict holds all centers, and loads into any number of processes and into ``HardGlobalSoftminLoss``.

    Args:
        num_classes: C, over all processes.
        embedding_size: D.
        *settings: as for :class:`HardGlobalSoftminLoss`.
        process_group: the processes that share the centers; None is the default group, or this process alone.
        **options: as for :class:`HardGlobalSoftminLoss`, but for ``both_sides``.

    Attributes:
        centers: this process's centers, possibly none on the last ranks.
        first_class: the class of its first row.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, *settings: Any, process_group: Group = None, **options: Any
    ) -> None:
        self.process_group = process_group
        rank, world = rank_and_world(process_group)
        self.classes_per_rank = -(-num_classes // world)
        self.first_class = min(rank * self.classes_per_rank, num_classes)
        super().__init__(num_classes, embedding_size, *settings, **options)
        if self.both_sides:
            raise InputError("both_sides needs all centers in one process: it does not go with sharded ones")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: None = None,
        ref_labels: None = None,
    ) -> Tensor:
        """Returns the loss of the joint batch; arguments as for :class:`HardGlobalSoftminLoss`, of this process.

        Raises:
            InputError: On every process, if one of them was given bad input. Rows are counted in the joint batch.
        """
        self._keep_unit()
        group = self.process_group
        weights = problem = None
        try:
            refuse_references(ref_emb, ref_labels)
            check_shapes(embeddings, labels, self.embedding_size)
            weights = tuple_weights(indices_tuple, len(labels))
        except InputError as error:
            problem = error
        counts = agree_on_counts(len(labels), problem, embeddings.device, group)

        dtype = working_dtype(embeddings, self.centers)
        with torch.autocast(embeddings.device.type, enabled=False):
            x, alpha = Exchange.apply(embeddings.to(dtype), self.alpha, counts, group)
            labels = gather_rows(labels, counts, group)
            weights = x.new_ones(counts[rank_and_world(group)[0]]) if weights is None else weights.to(dtype)
            weights = gather_rows(weights, counts, group)
            check_values(x, labels, self.num_classes, alpha)
            drawn = self._draw_rows()
            own, vectors = self._own_logits(unit(x), labels, alpha, drawn)
            loss = self._joint_loss(own, weights)
            if self.decorrelation:
                loss = loss + self.decorrelation * self._joint_decorrelation(vectors, drawn)
        return loss

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Returns ``z`` ``(B, C)`` of this process's embeddings to the centers of all, without gradient."""
        with torch.no_grad():
            return class_logits(embeddings, self.all_centers(), self.alpha, self.similarity)

    def all_centers(self) -> Tensor:
        """Returns the centers ``(C, D)`` of all processes, without gradient."""
        return self.all_rows(self.centers)

    def all_rows(self, rows: Tensor) -> Tensor:
        """Returns what every process has for its centers, such as an optimizer's moments: ``(C, ...)``."""
        stops = [
            min((r + 1) * self.classes_per_rank, self.num_classes) for r in range(rank_and_world(self.process_group)[1])
        ]
        counts = [max(0, stop - r * self.classes_per_rank) for r, stop in enumerate(stops)]
        return gather_rows(rows, counts, self.process_group)

    def own_rows(self, table: Tensor) -> Tensor:
        """Returns the rows of this process's classes of what has one for each of the C."""
        return table[self.first_class : self.first_class + len(self.centers)]

    def _draw_rows(self) -> Tensor:
        """Returns the rows that the regularizer compares, the same on every process."""
        count = self.num_classes if self.decorrelation else 0
        return broadcast_from_main(draw_rows(count, self.decorrelation_sample, self.centers.device), self.process_group)

    def _is_here(self, rows: Tensor) -> Tensor:
        return (rows >= self.first_class) & (rows < self.first_class + len(self.centers))

    def _own_logits(self, x: Tensor, labels: Tensor, alpha: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Scores the joint batch against this process's centers.

        Returns:
            ``(N, 1 + n)``: the true class if it is here, the nearest others here, ``-inf`` where there is none; and
            those of the ``drawn`` centers that are here, at norm 1.
        """
        k = hard_set_size(self.top_k, self.num_classes, self.hard_set)
        if not len(self.centers):
            missing = torch.ones_like(x[:, :1], dtype=torch.bool)
            return scaled(x[:, :1], missing, alpha, self.margin), x.new_empty(0, self.embedding_size)
        drawn = drawn[self._is_here(drawn)] - self.first_class
        settings = (self.similarity, self.chunk_size, self.sparse_grad, self.sparse_grad)
        scores, missing, vectors = candidates(x, self.centers, labels - self.first_class, k, drawn, *settings)
        logits = scaled(scores, missing, alpha, self.margin)
        return torch.cat([logits[:, :1], largest(logits[:, 1:], k)], dim=1), vectors

    def _joint_loss(self, own: Tensor, weights: Tensor) -> Tensor:
        """Chooses the hard set from the candidates of all processes, and returns the loss of the joint batch.

        The loss depends on logits that live on several processes. The slope of each, its softmax within the hard set
        less 1 for the true class, follows from gathered values, so that gradients need no further exchange.
        """
        rank, _ = rank_and_world(self.process_group)
        k = hard_set_size(self.top_k, self.num_classes, self.hard_set)
        padding = (0, 1 + min(k, self.classes_per_rank) - own.shape[1])
        every = torch.stack(gather(F.pad(own.detach(), padding, value=-torch.inf), self.process_group), dim=1)
        is_true = torch.zeros_like(every[0], dtype=torch.bool)  # (world, width)
        is_true[:, 0] = True
        is_true, shape = is_true.flatten(), every.shape
        every = every.flatten(1)  # (N, world * width)

        pool = every.masked_fill(is_true, -torch.inf) if self.hard_set == "negatives" else every
        chosen = torch.zeros_like(every, dtype=torch.bool)
        chosen.scatter_(1, pool.topk(min(k, pool.shape[1]), dim=1).indices, True)
        if self.hard_set == "negatives":
            chosen |= is_true
        hard = every.masked_fill(~chosen, -torch.inf)
        total = hard.logsumexp(dim=1, keepdim=True)  # (N, 1)
        slopes = (hard - total).exp() - (is_true & every.isfinite()).to(every.dtype)
        slopes = slopes.view(shape)[:, rank, : own.shape[1]] * weights[:, None] / len(own)
        value = (weights * (total.squeeze(1) - every[:, is_true].amax(dim=1))).mean()
        return with_slopes(value, own.masked_fill(own.isneginf(), 0), slopes)

    def _joint_decorrelation(self, vectors: Tensor, drawn: Tensor) -> Tensor:
        """Returns the regularizer over the ``drawn`` centers, of which ``vectors`` are here; gradient: their share."""
        here = self._is_here(drawn)
        every = vectors.new_zeros(len(drawn), self.embedding_size)
        every[here] = vectors.detach()
        share = sum_abs_dots(vectors, all_reduce_sum(every, self.process_group), drawn[here], drawn) / pairs(drawn)
        return all_reduce_sum(share, self.process_group) + (share - share.detach())

    def _new_centers(self) -> Tensor:
        # All processes usually share a seed, and would draw the same centers.
        seed = int(torch.randint(2**62, ())) + self.first_class
        rows = max(0, min(self.classes_per_rank, self.num_classes - self.first_class))
        return torch.empty(rows, self.embedding_size).normal_(generator=torch.Generator().manual_seed(seed))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}centers"] = self.all_centers()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        table = state_dict.get(f"{prefix}centers")
        if table is not None and table.shape == (self.num_classes, self.embedding_size):
            state_dict = {**state_dict, f"{prefix}centers": self.own_rows(table)}
        super()._load_from_state_dict(state_dict, prefix, *args)
