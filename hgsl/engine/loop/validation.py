"""Validation during training: scores per epoch, the epoch whose model is kept, and early stopping."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hgsl.common import ranks
from hgsl.engine.folder.checkpoint import load_state, save_state
from hgsl.engine.folder.logging import VALIDATION_SCORES
from hgsl.engine.folder.run_folder import BEST
from hgsl.engine.loop.train_state import TrainState

CRITERION = "map@r"
CHOSEN_ON_TEST = "the epoch was chosen on these images, so the score is too high"  # train.select best_on_test


@dataclass(frozen=True)
class Validation:
    """Evaluates epochs on one split; keeps the weights of the best one on disk where the settings choose it.

    Attributes:
        score: Model -> its scores on the split; every process calls it.
        split: Name of the split in logs.
        folder: The run folder.
        every: Epochs between two evaluations; the last epoch is always evaluated.
        keeps_best: Whether the weights of the best epoch are kept, and ``TrainState.best`` follows it.
        patience: Evaluations without a better MAP@R after which training ends; None for all epochs.
    """

    score: Callable[[nn.Module], dict[str, Any]]
    split: str
    folder: Path
    every: int = 1
    keeps_best: bool = False
    patience: int | None = None

    def after_epoch(self, epoch: int, epochs: int, state: TrainState) -> dict[str, float]:
        """Returns the scores of ``state.final_model`` for the log, or {} after an epoch that is not evaluated.

        Args:
            epoch: Number of the epoch, from 1.
            epochs: Number of epochs of the run.
            state: Its ``best`` holds epoch and score of the best epoch, and the evaluations since.
        """
        if epoch % self.every and epoch != epochs:
            return {}
        scores = self.score(state.final_model)
        # Those of the first process, so that all of them choose the same epoch and stop after the same one.
        scores = ranks.all_gather_object({key: float(scores[key]) for key in VALIDATION_SCORES})[0]
        text = ", ".join(f"{heading} {100 * scores[key]:.2f}" for key, heading in VALIDATION_SCORES.items())
        if self.keeps_best:
            text += self._follow_best(epoch, scores[CRITERION], state)
        ranks.print_main(f"epoch {epoch}/{epochs}  {self.split}: {text}")
        return {f"{self.split}/{key}": value for key, value in scores.items()}

    def _follow_best(self, epoch: int, score: float, state: TrainState) -> str:
        best = state.best
        if not best or score > best["score"]:
            state.best = {"epoch": epoch, "score": score, "evaluations_since": 0}
            if ranks.is_main():
                save_state(self.folder / BEST, state.final_model.state_dict())
            return ", the best so far"
        state.best = {**best, "evaluations_since": best["evaluations_since"] + 1}
        return f", the best is {100 * best['score']:.2f} of epoch {best['epoch']}"

    def is_over(self, state: TrainState) -> bool:
        """Whether ``patience`` is exhausted."""
        return self.patience is not None and state.best.get("evaluations_since", 0) >= self.patience

    def restore_best(self, state: TrainState) -> None:
        """Loads the best epoch's weights into the model that is evaluated and saved."""
        if self.keeps_best:
            state.final_model.load_state_dict(load_state(self.folder / BEST))
