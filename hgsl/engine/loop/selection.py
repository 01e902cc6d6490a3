"""Which epoch's model a run keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hgsl.common import ranks
from hgsl.engine.folder.checkpoint import load_state, save_state
from hgsl.engine.folder.run_folder import BEST
from hgsl.engine.loop.loop import TrainState

CRITERION = "map@r"


class BestEpoch:
    """Measures every epoch on the images that choose, and keeps the weights of the best one on disk.

    Args:
        state: ``state.best`` holds epoch and score of the best so far.
        score: () -> the report's numbers of the present model on those images.
        folder: The run folder.
    """

    def __init__(self, state: TrainState, score: Callable[[], dict[str, Any]], folder: Path) -> None:
        self.state, self.score, self.path = state, score, folder / BEST

    def __call__(self, epoch: int) -> dict[str, float]:
        scores = self.score()
        if not self.state.best or scores[CRITERION] > self.state.best["score"]:
            self.state.best = {"epoch": epoch + 1, "score": scores[CRITERION]}
            if ranks.is_main():
                save_state(self.path, self.state.final_model.state_dict())
        ranks.print_main(f"epoch {epoch + 1}: MAP@R {100 * scores[CRITERION]:.2f} on the images that choose the epoch")
        return {"val/recall@1": scores["recall@1"], "val/map@r": scores[CRITERION]}

    def restore(self) -> None:
        """Puts the best epoch's weights into the model that is evaluated and saved."""
        self.state.final_model.load_state_dict(load_state(self.path))
