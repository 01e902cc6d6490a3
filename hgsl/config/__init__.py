"""Settings of a run: typed, and checked against each other before anything is loaded.

The text under a field is what ``--help`` prints for it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from hgsl.config.checks import refuse
from hgsl.config.data import AugmentConfig, DataConfig, RunConfig
from hgsl.config.evaluation import EvalConfig
from hgsl.config.model import LoraConfig, ModelConfig
from hgsl.config.sparsify import MaskConfig, SparsifyConfig
from hgsl.config.training import LossConfig, OptimConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LoraConfig",
    "LossConfig",
    "MaskConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SparsifyConfig",
    "SparsifyRunConfig",
    "TrainConfig",
]

# Optimizers whose update of one element reads the whole parameter.
NOT_ELEMENTWISE = ("adafactor", "adamp", "lamb", "lars", "mars", "novograd", "sgdp")


@dataclass
class Config:
    """All settings of a run; ``config.yaml`` in the run folder holds them resolved."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sparsify: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        refuse(
            self.train.epochs == 0 and self.train.select != "last",
            f"train.select {self.train.select!r} has no epoch to choose from, as train.epochs is 0: use 'last'",
        )
        refuse(
            self.eval.every == 0 and self.train.select != "last",
            f"train.select {self.train.select!r} chooses among evaluated epochs, but eval.every is 0: set it to 1",
        )
        refuse(
            self.data.test_share == 0 and self.train.select == "best_on_test",
            "train.select 'best_on_test' needs test images, but data.test_share is 0: use 'last', or 'best' with "
            "data.val_share",
        )
        batch = self.train.batch_size // self.train.accumulate
        refuse(
            0 < self.loss.memory < batch,
            f"loss.memory {self.loss.memory} is less than the {batch} images of a (micro-)batch: set {batch} or more",
        )
        refuse(
            self.loss.sharded and self.optim.name in NOT_ELEMENTWISE,
            f"optim.name {self.optim.name!r} computes a norm or a mean over all class centers, of which each process "
            "holds a part with loss.sharded: use adamw, lion or nadamw, or leave out loss.sharded",
        )
        refuse(
            self.run.cuda_graphs != "off" and self.optim.fused is False,
            f"run.cuda_graphs {self.run.cuda_graphs} needs optim.fused true or empty: other optimizers cannot "
            "skip a step within a CUDA graph",
        )
        masked = self.sparsify.granularity != "none"
        refuse(
            masked and self.train.select != "last",
            f"masks are hard only after the last epoch, but train.select is {self.train.select!r}: use 'last'",
        )
        refuse(
            masked and self.train.ema is not None and not isinstance(self.sparsify, SparsifyConfig),
            "train.ema: weights under changing masks have no meaningful mean: leave it empty, or set "
            "sparsify.granularity none",
        )
        lora = self.model.lora.rank > 0
        refuse(lora and masked, "model.lora freezes the weights that sparsify masks: set model.lora.rank 0")
        refuse(lora and self.train.mode == "head", "train.mode 'head' trains no adapter: set model.lora.rank 0")
        refuse(
            self.loss.teacher_features > 0 and (self.run.compile or self.model.checkpointing),
            "loss.teacher_features reads the outputs of blocks, which run.compile and model.checkpointing hide: leave "
            "them out",
        )
        if self.train.mode == "head":
            self._check_head(masked)

    def to_yaml(self) -> str:
        """Returns the settings as the text of a config file, which ``--config`` reads."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True)

    def _check_head(self, masked: bool) -> None:
        """Refuses settings of backbone training: in head mode the backbone is frozen and runs once per image."""
        refuse(
            self.model.embedding_size is None,
            "train.mode 'head' trains the projection, but model.embedding_size is empty: set it, such as 512",
        )
        refuse(masked, "train.mode 'head' freezes the backbone: set sparsify.granularity none, or train.mode full")
        refuse(
            self.model.checkpointing,
            "train.mode 'head' stores no activations: leave out model.checkpointing, or set train.mode full",
        )
        refuse(
            self.loss.teacher_images is not None,
            "train.mode 'head' trains on features of the labeled images: leave out loss.teacher_images",
        )
        refuse(
            self.loss.teacher_input == "augmented",
            "train.mode 'head' trains on features without augmentation: leave loss.teacher_input at whole",
        )
        refuse(
            self.optim.layer_decay is not None,
            "optim.layer_decay is for the layers of the backbone, which train.mode 'head' freezes: leave it empty",
        )


@dataclass
class SparsifyRunConfig(Config):
    """Settings of a ticket search (``hgsl sparsify``)."""

    sparsify: SparsifyConfig = field(default_factory=SparsifyConfig)

    def __post_init__(self) -> None:
        refuse(
            self.train.mode == "head", "a search masks the backbone, which train.mode 'head' does not train: use full"
        )
        super().__post_init__()
        rewind = self.sparsify.rewind_epoch
        refuse(
            self.sparsify.rounds > 0 and rewind is not None and not 0 <= rewind < self.train.epochs,
            f"sparsify.rewind_epoch {rewind} lies outside a round of train.epochs {self.train.epochs}",
        )
        refuse(
            (self.data.name == "cifar10") != (self.sparsify.task == "classification"),
            f"sparsify.task {self.sparsify.task!r} does not go with data.name {self.data.name!r}: "
            "cifar10 is for classification, all others are for retrieval",
        )
        refuse(self.data.test_share == 0, "a search measures its tickets, but data.test_share is 0: set it above 0")
        refuse(
            self.eval.has_views() or self.eval.whiten is not None,
            "a search measures networks of one view: set eval.flip false, eval.scales [1.0] and eval.whiten null",
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
