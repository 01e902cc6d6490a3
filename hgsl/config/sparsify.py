"""Continuous Sparsification: masks on the weights, and the search for a ticket."""

from dataclasses import dataclass, field
from typing import Literal

from hgsl.config.checks import refuse


@dataclass
class MaskConfig:
    """Masks that make the backbone sparse while it trains (Continuous Sparsification in one round, no rewind)."""

    granularity: Literal["none", "weight", "channel"] = "none"
    """none masks nothing; weight gives the sparser network, channel one whose closed channels can be taken out."""
    mask_initial_value: float = 0.0
    """s0, where each score starts: -0.1 ends sparser than 0.0, 0.1 less sparse."""
    include: list[str] = field(default_factory=list)
    """Patterns of the layers to mask, such as backbone.blocks.*; empty means all convolutions and linear layers."""
    exclude: list[str] = field(default_factory=list)
    """Patterns of layers to leave out."""
    final_temp: float = 200.0
    """beta at the end of a round; it starts at 1."""
    lmbda: float = 1e-8
    """Weight of the sum of the masks in the loss of the search."""
    penalty: Literal["weights", "operations"] = "weights"
    """What that sum counts: weights, as published, or operations, the multiplications an image costs, for speed."""
    mask_lr: float | None = None
    """Peak learning rate of the scores; empty means optim.lr. They have no weight decay."""

    def __post_init__(self) -> None:
        refuse(self.lmbda < 0, f"sparsify.lmbda cannot be negative, found {self.lmbda}")
        refuse(self.final_temp <= 0, f"sparsify.final_temp must be positive, found {self.final_temp}")
        refuse(
            self.mask_lr is not None and self.mask_lr <= 0, f"sparsify.mask_lr must be positive, found {self.mask_lr}"
        )


@dataclass
class SparsifyConfig(MaskConfig):
    """Continuous Sparsification: rounds of search, each of train.epochs, and then the ticket, trained as long."""

    granularity: Literal["none", "weight", "channel"] = "weight"
    """weight gives the sparser ticket; channel gives one whose closed channels are taken out, and so is faster."""
    task: Literal["retrieval", "classification"] = "retrieval"
    """retrieval trains an embedder with the loss; classification trains a classifier with the cross entropy."""
    rounds: int = 3
    """Rounds of the search; 0 trains the dense network in the same way, to compare with."""
    rewind_epoch: int | None = 2
    """Epoch of the first round whose weights the ticket starts from; empty goes on from the end of the search."""
    prune_temperature: float | None = None
    """beta that the scores take into the next round; empty means final_temp, 1 is what the published code does."""
    curve_every: int = 1
    """Epochs between two scores of the curve."""
    dense_run: str | None = None
    """Run folder of the dense network (sparsify.rounds 0), whose scores stand in the table beside the ticket's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.granularity == "none", "sparsify.granularity 'none' searches nothing: choose weight or channel")
        refuse(self.rounds < 0, f"sparsify.rounds cannot be negative, found {self.rounds}")
        refuse(self.curve_every < 1, f"sparsify.curve_every must be positive, found {self.curve_every}")
        value = self.prune_temperature
        refuse(value is not None and value <= 0, f"sparsify.prune_temperature must be positive, found {value}")
