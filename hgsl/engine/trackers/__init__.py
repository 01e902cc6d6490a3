"""Experiment trackers: where the numbers, tables and figures of a run are followed besides its folder."""

from collections.abc import Callable

from hgsl.engine.trackers.mlflow import MlflowTracker
from hgsl.engine.trackers.protocol import Tracker
from hgsl.engine.trackers.tensorboard import TensorBoardTracker
from hgsl.engine.trackers.trackio import TrackioTracker
from hgsl.engine.trackers.wandb import WandbTracker

__all__ = ["TRACKERS"]

TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}
