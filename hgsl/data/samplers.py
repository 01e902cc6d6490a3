"""Which rows make a batch: plans of a whole epoch, the same on every process, each of which takes its own share."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from hgsl.common.errors import InputError, unknown

Rows = NDArray[np.int64]


def random_plan(labels: Rows, batch_size: int, world_size: int, rng: np.random.Generator, per_class: int) -> Rows:
    """Every row at most once, in random order: (world_size, batches, batch_size); the incomplete rest is left out."""
    batches = len(labels) // (batch_size * world_size)
    order = rng.permutation(len(labels))[: batches * batch_size * world_size]
    return order.reshape(batches, world_size, batch_size).swapaxes(0, 1)


def m_per_class_plan(labels: Rows, batch_size: int, world_size: int, rng: np.random.Generator, per_class: int) -> Rows:
    """Batches of P different classes with ``per_class`` rows each: (world_size, batches, P * per_class).

    The shuffled rows of a class are cut into groups of ``per_class``; no row is in two groups, and what is left over
    waits for another epoch. Only a class with fewer rows than that repeats them, to fill its one group. As many
    batches are made as there can be: B of them, with B the largest number for which sum_c min(groups_c, B) >= B * P.
    Groups are dealt class by class, the g-th to batch g modulo B, so that no class meets itself in a batch.
    """
    classes = batch_size // per_class
    groups = []  # one (groups_c, per_class) array a class
    for rows in _rows_of_classes(labels):
        shuffled = rng.permutation(rows)
        count = max(len(rows) // per_class, 1)
        groups.append(np.resize(shuffled, count * per_class).reshape(count, per_class))
    counts = np.array([len(group) for group in groups])
    batches = _most_batches(counts, classes)
    batches -= batches % world_size
    order = rng.permutation(len(groups))
    dealt = np.concatenate([groups[c][:batches] for c in order])[: batches * classes]
    plan = dealt.reshape(classes, batches, per_class).swapaxes(0, 1).reshape(batches, batch_size)
    plan = rng.permutation(plan)
    return plan.reshape(batches // world_size, world_size, batch_size).swapaxes(0, 1)


def class_balanced_plan(
    labels: Rows, batch_size: int, world_size: int, rng: np.random.Generator, per_class: int
) -> Rows:
    """Every class equally often, whatever its size: (world_size, batches, batch_size), about as many rows as there are.

    The rows of a class are shared out among the processes, and each process passes through its own, shuffled anew in
    each pass. A class with fewer rows than processes is the one that several processes see.
    """
    batches = len(labels) // (batch_size * world_size)
    needed = batches * batch_size
    members = [rng.permutation(rows) for rows in _rows_of_classes(labels)]
    members = [members[c] for c in rng.permutation(len(members))]  # the last ones lack a row if needed % C
    quota = -(-needed // len(members))
    plan = []
    for rank in range(world_size):
        own = [rows[rank::world_size] if len(rows) > rank else rows for rows in members]
        drawn = np.stack([_passes(rows, quota, rng) for rows in own])  # (C, quota)
        plan.append(rng.permutation(drawn.T.ravel()[:needed]))
    return np.stack(plan).reshape(world_size, batches, batch_size)


SAMPLERS: dict[str, Callable[[Rows, int, int, np.random.Generator, int], Rows]] = {
    "class_balanced": class_balanced_plan,
    "m_per_class": m_per_class_plan,
    "random": random_plan,
}


def epoch_plan(
    kind: str,
    labels: ArrayLike,
    batch_size: int,
    *,
    per_class: int = 4,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Rows:
    """The batches of one process in one epoch, as rows of the data set: (batches, batch_size).

    It depends on its arguments alone, so that a run that goes on in the middle of an epoch finds the same batches.
    Processes get disjoint rows and equally many batches; another epoch is another shuffle.

    Args:
        kind: One of ``SAMPLERS``.
        labels: (N,) the class of each row.
        batch_size: Rows a batch of one process.
        per_class: Rows a class in a batch, for "m_per_class".
        seed: Of the run.
        epoch: From 0.
        rank: This process, from 0.
        world_size: How many processes there are.

    Raises:
        InputError: The kind is unknown, or these labels cannot fill one batch a process in this way.
    """
    if kind not in SAMPLERS:
        raise unknown("sampler", kind, SAMPLERS)
    rows = np.asarray(labels, np.int64)
    if not 0 <= rank < world_size:
        raise InputError(f"rank {rank} is none of {world_size} processes")
    if batch_size < 1 or len(rows) < batch_size * world_size:
        raise InputError(
            f"{len(rows)} images cannot fill a batch of {batch_size} on each of {world_size} processes: "
            "set a batch size from 1 to that number"
        )
    if kind == "m_per_class":
        classes = len(np.unique(rows))
        if per_class < 1 or batch_size % per_class or batch_size // per_class > classes:
            raise InputError(
                f"a batch of {batch_size} with {per_class} images a class needs {batch_size / max(per_class, 1):g} "
                f"classes, a whole number of at most {classes}: change batch_size or per_class"
            )
    plan = SAMPLERS[kind](rows, batch_size, world_size, np.random.default_rng([seed, epoch]), per_class)[rank]
    if not len(plan):
        raise InputError(
            f"the classes are too uneven for a batch of {batch_size} with {per_class} images a class "
            f"on each of {world_size} processes: lower batch_size"
        )
    return plan


class EpochBatches(Sampler[list[int]]):
    """A ``batch_sampler`` of a ``DataLoader`` over :func:`epoch_plan`.

    Call ``set_epoch(epoch)`` before each epoch, on every process. To go on in the middle of one, keep
    ``state_dict(done)`` with the number of batches that were trained on, and ``load_state_dict`` it.
    """

    def __init__(self, kind: str, labels: ArrayLike, batch_size: int, **options: Any) -> None:
        """Takes the arguments of :func:`epoch_plan` but for ``epoch``."""
        self.arguments = {"kind": kind, "labels": np.asarray(labels, np.int64), "batch_size": batch_size, **options}
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Plans an epoch, of which the first ``start`` batches are left out."""
        self.epoch, self.start = epoch, start
        self.plan = epoch_plan(**self.arguments, epoch=epoch)

    def state_dict(self, done: int) -> dict[str, int]:
        """Where this epoch stands after ``done`` of the batches of this iteration.

        The number comes from the caller, since a loader with workers asks for batches well ahead of the training.
        """
        return {"epoch": self.epoch, "start": self.start + done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes back to where :meth:`state_dict` was taken."""
        self.set_epoch(state["epoch"], state["start"])

    def __len__(self) -> int:
        return max(len(self.plan) - self.start, 0)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan[self.start :].tolist())


def _rows_of_classes(labels: Rows) -> list[Rows]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _most_batches(groups: Rows, classes: int) -> int:
    """The largest B with sum_c min(groups_c, B) >= B * classes: enough groups, and no class twice in a batch."""
    low, high = 0, int(groups.sum()) // classes
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(groups, middle).sum() >= middle * classes else (low, middle - 1)
    return low


def _passes(rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    """``count`` of ``rows``, all of them before any comes again."""
    return np.concatenate([rng.permutation(rows) for _ in range(-(-count // len(rows)))])[:count]
