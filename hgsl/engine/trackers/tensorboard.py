"""TensorBoard: event files in the folder ``tensorboard`` of the run."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import yaml

from hgsl.engine.folder.run_folder import BOARD
from hgsl.engine.trackers.protocol import Record, Scores, TrackedRun, score_table


class TensorBoardTracker:
    """Scalars of every step; the settings and the scores as text, the curves as an image."""

    def start(self, run: TrackedRun) -> str | None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._writer = SummaryWriter(str(run.folder / BOARD), purge_step=run.step + 1)
        self._step = run.step
        if not run.step:
            for name, content in (("config", run.config), ("facts", run.facts)):
                text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
                self._writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()))
        return None

    def log(self, records: Sequence[Record]) -> None:
        for step, values in records:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._step = step
        self._writer.flush()

    def artifact(self, path: Path) -> None:
        if path.suffix == ".png":
            self._writer.add_image(path.stem, matplotlib.image.imread(path), self._step, dataformats="HWC")

    def finish(self, scores: Scores | None) -> None:
        if scores:
            self._writer.add_text("scores", score_table(scores), self._step)
        self._writer.close()
