"""Weights & Biases (extra ``wandb``): offline unless ``WANDB_MODE`` is set."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgsl.common.extras import require
from hgsl.engine.trackers.protocol import Record, Scores, TrackedRun, score_columns

PROJECT = "hgsl"  # where WANDB_PROJECT names none
FILES = "run_folder"  # beside the files of wandb, of which one is also called config.yaml


class WandbTracker:
    """A run of Weights & Biases, with its files in the folder ``wandb`` of the run folder."""

    def start(self, run: TrackedRun) -> str | None:
        require("wandb", "run.trackers wandb")
        import wandb

        self._wandb = wandb
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.folder.name,
            id=run.key,
            dir=run.folder,
            config={**run.config, "facts": dict(run.facts)},
            resume="allow",
            mode=mode,
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        return str(self._run.id)

    def log(self, records: Sequence[Record]) -> None:
        for step, values in records:
            self._run.log(dict(values), step=step)

    def artifact(self, path: Path) -> None:
        if path.suffix == ".html":
            self._run.log({path.stem: self._wandb.Html(path.read_text(encoding="utf-8"), inject=False)})
        elif path.suffix == ".png":
            self._run.log({path.stem: self._wandb.Image(str(path))})
        copy = Path(self._run.dir) / FILES / path.name  # as wandb would link to the original, which may move
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
        self._run.save(str(copy), base_path=self._run.dir, policy="end")

    def finish(self, scores: Scores | None) -> None:
        for row, values in (scores or {}).items():
            self._run.summary.update({f"{row}/{name}": value for name, value in values.items()})
        if scores:
            columns = score_columns(scores)
            data = [[row, *(values.get(name) for name in columns)] for row, values in scores.items()]
            self._run.log({"scores": self._wandb.Table(columns=["", *columns], data=data)})
        self._run.finish(exit_code=1 if scores is None else 0)
