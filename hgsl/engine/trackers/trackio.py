"""Trackio (extra ``trackio``): a local database unless ``TRACKIO_SPACE_ID`` names a Space."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgsl.common.extras import require
from hgsl.engine.trackers.protocol import Record, Scores, TrackedRun

PROJECT = "hgsl"  # where TRACKIO_PROJECT names none


class TrackioTracker:
    """A run of Trackio, which ``trackio show --project hgsl`` shows."""

    def start(self, run: TrackedRun) -> str | None:
        require("trackio", "run.trackers trackio")
        import trackio

        self._trackio: Any = trackio
        name = run.key or f"{run.folder.name}-{run.facts['start']['date']}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(project, name, space_id=os.environ.get("TRACKIO_SPACE_ID"), config=run.flat(), resume="allow")
        return name

    def log(self, records: Sequence[Record]) -> None:
        for step, values in records:
            self._trackio.log(dict(values), step=step)

    def artifact(self, path: Path) -> None:
        if path.suffix == ".png":
            self._trackio.log({path.stem: self._trackio.Image(str(path))})
        else:
            self._trackio.save(str(path))

    def finish(self, scores: Scores | None) -> None:
        for row, values in (scores or {}).items():
            self._trackio.log({f"{row}/{name}": value for name, value in values.items()})
        self._trackio.finish()
