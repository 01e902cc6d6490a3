"""Selection of the epoch whose model a run keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from hgsl.common import ranks
from hgsl.engine.folder.checkpoint import load_state, save_state
from hgsl.engine.folder.run_folder import BEST
from hgsl.engine.loop.train_state import TrainState

CRITERION = "map@r"


class BestEpoch:
    """Evaluates every epoch on the selection images, and keeps the weights of the best one on disk.

    Args:
        score: Model -> its scores on these images.
        folder: The run folder.
    """

    def __init__(self, score: Callable[[nn.Module], dict[str, Any]], folder: Path) -> None:
        self.score, self.path = score, folder / BEST

    def __call__(self, epoch: int, state: TrainState) -> dict[str, float]:
        """Evaluates ``state.final_model``, and stores epoch and score of the best one in ``state.best``."""
        scores = self.score(state.final_model)
        if not state.best or scores[CRITERION] > state.best["score"]:
            state.best = {"epoch": epoch + 1, "score": scores[CRITERION]}
            if ranks.is_main():
                save_state(self.path, state.final_model.state_dict())
        ranks.print_main(f"epoch {epoch + 1}: MAP@R {100 * scores[CRITERION]:.2f} on the images that select the epoch")
        return {"val/recall@1": scores["recall@1"], "val/map@r": scores[CRITERION]}

    def restore(self, state: TrainState) -> None:
        """Loads the best epoch's weights into the model that is evaluated and saved."""
        state.final_model.load_state_dict(load_state(self.path))
