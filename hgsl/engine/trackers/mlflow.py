"""MLflow (extra ``mlflow``): the local ``mlflow.db`` of its default unless ``MLFLOW_TRACKING_URI`` names a server."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgsl.common.extras import require
from hgsl.engine.trackers.protocol import Record, Scores, TrackedRun, score_table

EXPERIMENT = "hgsl"  # where MLFLOW_EXPERIMENT_NAME names none
# A server that is gone must not hold up a training for minutes, which MLflow's own limits would.
LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
LONGEST_VALUE = 5_000  # characters of a parameter
BATCH = 1_000  # metrics in a request


class MlflowTracker:
    """A run of MLflow: settings as parameters, numbers as metrics, files as artifacts."""

    def start(self, run: TrackedRun) -> str | None:
        require("mlflow", "run.trackers mlflow")
        for name, value in LIMITS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI"))
        if run.key:
            self._id = self._client.get_run(run.key).info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return self._id
        created = self._client.create_run(self._experiment(), run_name=run.folder.name)
        self._id = created.info.run_id
        params = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in run.flat().items()]
        for first in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[first : first + 100])
        return self._id

    def log(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_name(key), value, now, step) for step, values in records for key, value in values.items()]
        for first in range(0, len(metrics), BATCH):
            self._client.log_batch(self._id, metrics=metrics[first : first + BATCH])

    def artifact(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def finish(self, scores: Scores | None) -> None:
        for row, values in (scores or {}).items():
            self.log([(0, {f"{row}/{name}": value for name, value in values.items()})])
        if scores:
            self._client.log_text(self._id, score_table(scores), "scores.md")
        self._client.set_terminated(self._id, "KILLED" if scores is None else "FINISHED")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id if experiment else self._client.create_experiment(name))


def _name(key: str) -> str:
    """The name of a metric: ``recall@1`` holds a character that MLflow refuses."""
    return key.replace("@", "_at_")
