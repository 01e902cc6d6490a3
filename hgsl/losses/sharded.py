"""The Hard Global Softmin Loss with its class centers sharded over processes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hgsl.common.autograd import with_gradient
from hgsl.common.collectives import (
    GatherRows,
    Group,
    agree_on_counts,
    all_reduce_sum,
    broadcast_from_main,
    gather,
    gather_rows,
    rank_and_world,
)
from hgsl.common.errors import InputError
from hgsl.losses.checks import check_batch, hard_set_size
from hgsl.losses.decorrelation import count_pairs, sampled_rows, sum_abs_dots
from hgsl.losses.functional import class_logits, working_dtype
from hgsl.losses.hard_set import largest, nearest_classes, scaled, score_classes, true_class_first
from hgsl.losses.hgsl import HardGlobalSoftminLoss
from hgsl.losses.library_arguments import refuse_references, tuple_weights
from hgsl.losses.scoring.dense_scores import dense_scores
from hgsl.losses.scoring.similarity import unit_of_any_norm
from hgsl.losses.value_checks import check_centers, check_values, usual_norms


class ShardedHardGlobalSoftminLoss(HardGlobalSoftminLoss):
    """Hard Global Softmin Loss with its class centers sharded over the processes of a group.

    Rank r holds ``ceil(C / world)`` centers, from class ``r ceil(C / world)`` on. Each call gathers the embeddings of
    all processes. Every process selects the hard set within its shard, the global hard set is chosen from these
    candidates, and gradients flow to the shard that holds a center and back to the embeddings. The value is the mean
    over the joint batch, the same on every process.

    Gradients of centers and alpha are those of the joint batch, so this module must not be wrapped in
    DistributedDataParallel. Those of the embeddings are multiplied by the number of processes, so that
    DistributedDataParallel around the network, which takes the mean, is exact. Batches may differ in size.

    Forward, backward, :meth:`state_dict`, :meth:`get_logits` and :meth:`all_rows` are collective: every process must
    call them. There is no second derivative.

    The state dict holds all centers, and loads into any number of processes and into ``HardGlobalSoftminLoss``.

    Args:
        num_classes: C, over all processes.
        embedding_size: D.
        *settings: as for :class:`HardGlobalSoftminLoss`.
        process_group: the processes that share the centers; None is the default group, or this process alone.
        **options: as for :class:`HardGlobalSoftminLoss`, except ``both_sides``.

    Attributes:
        centers: the shard of this process, possibly empty on the last ranks.
        first_class: the class of the first row of ``centers``.
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
            raise InputError("both_sides needs all centers in one process: set it to 0 for sharded centers")

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
            InputError: On every process, if the input of one is invalid; rows are those of the joint batch.
        """
        self._keep_unit()
        weights = problem = None
        try:
            refuse_references(ref_emb, ref_labels)
            check_batch(embeddings, labels, self.embedding_size)
            weights = tuple_weights(indices_tuple, len(labels))
        except InputError as error:
            problem = error
        counts = agree_on_counts(0 if problem else len(labels), problem, self.centers.device, self.process_group)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._joint_batch(embeddings, labels, weights, counts)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Returns ``z`` ``(B, C)`` of this process's embeddings and the centers of all processes, without gradient."""
        with torch.no_grad():
            return class_logits(embeddings, self.all_centers(), self.alpha, self.similarity)

    def all_centers(self) -> Tensor:
        """Returns the centers ``(C, D)`` of all processes, without gradient."""
        return self.all_rows(self.centers)

    def all_rows(self, rows: Tensor) -> Tensor:
        """Gathers the ``rows`` that every process has for its centers, such as an optimizer's moments: ``(C, ...)``."""
        stops = [
            min((r + 1) * self.classes_per_rank, self.num_classes) for r in range(rank_and_world(self.process_group)[1])
        ]
        counts = [max(0, stop - r * self.classes_per_rank) for r, stop in enumerate(stops)]
        return gather_rows(rows, counts, self.process_group)

    def local_rows(self, table: Tensor) -> Tensor:
        """Returns the rows of this process's classes from a table ``(C, ...)``."""
        return table[self.first_class : self.first_class + len(self.centers)]

    def _joint_batch(self, embeddings: Tensor, labels: Tensor, weights: Tensor | None, counts: list[int]) -> Tensor:
        """Gathers the joint batch of N rows, scores it against every shard, and combines the scores into the loss."""
        group, (rank, world) = self.process_group, rank_and_world(self.process_group)
        x, alpha = GatherRows.apply(
            embeddings.to(working_dtype(embeddings, self.centers)), self.alpha, counts, group, world
        )
        labels = gather_rows(labels, counts, group)
        weights = gather_rows(x.new_ones(counts[rank]) if weights is None else weights.to(x.dtype), counts, group)
        x, labels = check_values(unit_of_any_norm(x), x, labels, self.num_classes, alpha)
        sampled = self._sampled_rows()
        logits, vectors = self._local_logits(x, labels, alpha, sampled)
        loss = self._joint_loss(logits, weights)
        if self.decorrelation:
            loss = loss + self.decorrelation * self._joint_decorrelation(vectors, sampled)
        return loss

    def _sampled_rows(self) -> Tensor:
        """Returns the rows that the regularizer compares, the same on every process."""
        count = self.num_classes if self.decorrelation else 0
        rows = sampled_rows(count, self.decorrelation_sample, self.centers.device)
        return broadcast_from_main(rows, self.process_group)

    def _is_local(self, rows: Tensor) -> Tensor:
        return (rows >= self.first_class) & (rows < self.first_class + len(self.centers))

    def _local_logits(self, x: Tensor, labels: Tensor, alpha: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """Scores the joint batch against this process's centers.

        Returns:
            The logits ``(N, 1 + n)``, first of the true class if it is local, then of the nearest other local classes,
            ``-inf`` where there is none; the local ones of the ``sampled`` centers, at norm 1.
        """
        if not len(self.centers):
            self._check_centers(x.new_ones(2))
            excluded = torch.ones_like(x[:, :1], dtype=torch.bool)
            return scaled(x[:, :1], excluded, alpha, self.margin), x.new_empty(0, self.embedding_size)
        k = hard_set_size(self.top_k, self.num_classes, self.hard_set)
        labels, sampled = labels - self.first_class, sampled[self._is_local(sampled)] - self.first_class
        nearest, norms = nearest_classes(x, self.centers, labels, k, self.chunk_size)
        self._check_centers(norms)
        if nearest is None:
            scores, vectors = dense_scores(x, self.centers, norms, sampled, self.similarity, self.sparse_grad)
            scores, excluded = true_class_first(scores, labels)
        else:
            scores, excluded, vectors = score_classes(
                x, self.centers, labels, nearest, sampled, self.similarity, self.sparse_grad
            )
        logits = scaled(scores, excluded, alpha, self.margin)
        return torch.cat([logits[:, :1], largest(logits[:, 1:], k)], dim=1), vectors

    def _check_centers(self, norms: Tensor) -> None:
        """Raises on all processes if a center of any is invalid; ``norms`` ``(n,)`` include the local extremes."""
        extremes = torch.stack(gather(torch.stack(norms.aminmax()), self.process_group))  # (world, 2)
        if usual_norms([float(extremes[:, 0].amin()), float(extremes[:, 1].amax())]):
            return
        problem = None
        try:
            check_centers(self.centers, self.first_class)
        except InputError as error:
            problem = error
        agree_on_counts(0, problem, norms.device, self.process_group)

    def _joint_loss(self, local: Tensor, weights: Tensor) -> Tensor:
        """Chooses the hard set from the candidates of all processes, and returns the loss of the joint batch.

        The logits are distributed over the processes. The gradient of the local ones follows from the gathered values,
        without further communication.

        Args:
            local: ``(N, 1 + n)``, the logits of :meth:`_local_logits`.
            weights: ``(N,)``.
        """
        rank, _ = rank_and_world(self.process_group)
        k = hard_set_size(self.top_k, self.num_classes, self.hard_set)
        width = 1 + min(k, self.classes_per_rank)
        padded = F.pad(local.detach(), (0, width - local.shape[1]), value=-torch.inf)
        logits = torch.stack(gather(padded, self.process_group), dim=1)  # (N, world, width)
        is_true = torch.zeros_like(logits[0], dtype=torch.bool)  # (world, width)
        is_true[:, 0] = True

        losses, gradients = _losses_and_gradients(logits.flatten(1), is_true.flatten(), k, self.hard_set)
        gradient = gradients.view(logits.shape)[:, rank, : local.shape[1]] * weights[:, None] / len(local)
        return with_gradient((weights * losses).mean(), local.masked_fill(local.isneginf(), 0), gradient)

    def _joint_decorrelation(self, vectors: Tensor, sampled: Tensor) -> Tensor:
        """Returns the regularizer over the ``sampled`` centers, with the gradient of the local ones, ``vectors``."""
        is_local = self._is_local(sampled)
        gathered = vectors.new_zeros(len(sampled), self.embedding_size)
        gathered[is_local] = vectors.detach()
        gathered = all_reduce_sum(gathered, self.process_group)
        total, gradient = sum_abs_dots(vectors, gathered, sampled[is_local], sampled)
        share = with_gradient(total, vectors, gradient) / count_pairs(sampled)
        return all_reduce_sum(share, self.process_group) + (share - share.detach())

    def _new_centers(self) -> Tensor:
        # Processes usually share a seed, and would all draw the same centers.
        seed = int(torch.randint(2**62, ())) + self.first_class
        rows = max(0, min(self.classes_per_rank, self.num_classes - self.first_class))
        return torch.empty(rows, self.embedding_size).normal_(generator=torch.Generator().manual_seed(seed))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}centers"] = self.all_centers()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        table = state_dict.get(f"{prefix}centers")
        if table is not None and table.shape == (self.num_classes, self.embedding_size):
            state_dict = {**state_dict, f"{prefix}centers": self.local_rows(table)}
        super()._load_from_state_dict(state_dict, prefix, *args)


def _losses_and_gradients(logits: Tensor, is_true: Tensor, k: int, hard_set: str) -> tuple[Tensor, Tensor]:
    """Returns the loss of each embedding and its gradient: the softmax over the hard set minus the one-hot true class.

    Args:
        logits: ``(N, m)``, ``-inf`` for excluded entries.
        is_true: ``(m,)``, the entries that hold the true class, of which one is finite in each row.
        k: K.
        hard_set: ``"all"`` or ``"negatives"``.

    Returns:
        ``(N,)`` and ``(N, m)``.
    """
    others = logits.masked_fill(is_true, -torch.inf) if hard_set == "negatives" else logits
    is_hard = torch.zeros_like(logits, dtype=torch.bool)
    is_hard.scatter_(1, others.topk(min(k, others.shape[1]), dim=1).indices, True)
    if hard_set == "negatives":
        is_hard |= is_true
    hard = logits.masked_fill(~is_hard, -torch.inf)
    logsumexp = hard.logsumexp(dim=1, keepdim=True)  # (N, 1)
    gradients = (hard - logsumexp).exp() - (is_true & logits.isfinite()).to(logits.dtype)
    return logsumexp.squeeze(1) - logits[:, is_true].amax(dim=1), gradients
