"""Callbacks of a training: a caller's code after steps, after each epoch and at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

from hgsl.common import ranks
from hgsl.common.errors import InputError

Record = tuple[int, Mapping[str, float]]  # step, numbers


class Callback:
    """Base class of callbacks, called in the first process with copies of the numbers; override what you need.

    An exception ends the training after its state is saved, so that ``resume=True`` continues it.
    """

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Called after a step, or with ``run.log_every`` N for N steps one after the other.

        Args:
            step: Number of the step, from 1.
            values: A record of ``metrics.jsonl``: ``loss``, ``grad_norm``, ``lr/backbone``, ...
        """

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:
        """Called after an epoch and the save of its state.

        Args:
            epoch: Number of the epoch, from 1.
            values: The mean ``loss`` of the epoch, and what was measured after it, such as ``val/map@r``.
        """

    def on_end(self, report: dict[str, Any]) -> None:
        """Called with the content of ``report.json``, after it is written."""


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Checks that each is a :class:`Callback`.

    Raises:
        InputError: One is not.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise InputError(
                f"callbacks: expected objects of a subclass of hgsl.Callback, found {type(callback).__name__}"
            )


def call_callbacks(
    callbacks: Sequence[Callback], records: Sequence[Record], epoch: int | None, values: Mapping[str, float]
) -> Exception | None:
    """Calls ``on_step`` for every record, then ``on_epoch`` at the end of an epoch, in the first process.

    Args:
        callbacks: The callbacks, the same number in every process.
        records: Steps and their numbers.
        epoch: The epoch that has ended, from 1, or None.
        values: The numbers of this epoch.

    Returns:
        The exception that a callback raised, or None; every process gets one if the first does.
    """
    if not callbacks:
        return None
    error = _call(callbacks, records, epoch, values) if ranks.is_main() else None
    if ranks.all_gather_object(error is not None)[0] and error is None:
        return RuntimeError("a callback of the first process failed")
    return error


def _call(
    callbacks: Sequence[Callback], records: Sequence[Record], epoch: int | None, values: Mapping[str, float]
) -> Exception | None:
    for callback in callbacks:
        moment = "before its first step"
        try:
            for step, numbers in records:
                moment = f"on_step {step}"
                callback.on_step(step, dict(numbers))
            if epoch is not None:
                moment = f"on_epoch {epoch}"
                callback.on_epoch(epoch, dict(values))
        except Exception as error:
            error.add_note(
                f"{type(callback).__qualname__}.{moment} ended the training; its state is saved, and resume=True "
                "(--resume) continues it"
            )
            return error
    return None
