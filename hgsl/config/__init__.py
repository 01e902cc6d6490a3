"""The settings of a run: typed, checked against each other before anything is loaded.

The text under a field is what ``--help`` prints for it.
"""

from dataclasses import dataclass, field

from hgsl.config.checks import refuse
from hgsl.config.data import DataConfig, EvalConfig, RunConfig
from hgsl.config.model import ModelConfig
from hgsl.config.sparsify import SparsifyConfig
from hgsl.config.training import LossConfig, OptimConfig, TrainConfig

__all__ = [
    "Config",
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SearchConfig",
    "SparsifyConfig",
    "TrainConfig",
]


@dataclass
class Config:
    """Everything a run is made of; ``config.yaml`` in the run folder is this, resolved."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        has_validation = self.data.val_share > 0 or self.data.val_fold is not None
        refuse(
            self.train.select == "best" and not has_validation,
            "train.select 'best' needs validation classes: set data.val_share (such as 0.2) or data.val_fold",
        )


@dataclass
class SearchConfig(Config):
    """A run of tools/sparsify.py."""

    sparsify: SparsifyConfig = field(default_factory=SparsifyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        rewind = self.sparsify.rewind_epoch
        refuse(
            rewind is not None and not 0 <= rewind < max(1, self.train.epochs),
            f"sparsify.rewind_epoch {rewind} lies outside a round of train.epochs {self.train.epochs}",
        )
        refuse(
            (self.data.name == "cifar10") != (self.sparsify.task == "classification"),
            f"sparsify.task {self.sparsify.task!r} does not go with data.name {self.data.name!r}: "
            "cifar10 is for classification, all others are for retrieval",
        )
        refuse(self.train.select != "last", "a ticket is what the last epoch leaves: leave train.select at 'last'")
