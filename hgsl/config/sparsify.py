"""Continuous Sparsification."""

from dataclasses import dataclass, field
from typing import Literal

from hgsl.config.checks import refuse


@dataclass
class SparsifyConfig:
    """Continuous Sparsification: rounds of search, each of train.epochs, and then the ticket, trained as long."""

    task: Literal["retrieval", "classification"] = "retrieval"
    """retrieval trains an embedder with the loss; classification trains a classifier with the cross entropy."""
    rounds: int = 3
    """Rounds of the search; 0 trains the dense network in the same way, to compare with."""
    granularity: Literal["weight", "channel"] = "weight"
    """weight gives the sparser ticket; channel gives one whose closed channels are taken out, and so is faster."""
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
    rewind_epoch: int | None = 2
    """Epoch of the first round whose weights the ticket starts from; empty goes on from the end of the search."""
    mask_lr: float | None = None
    """Peak learning rate of the scores; empty means optim.lr. They have no weight decay."""
    prune_temperature: float | None = None
    """beta that the scores take into the next round; empty means final_temp, 1 is what the published code does."""
    curve_every: int = 1
    """Epochs between two scores of the curve."""
    dense_run: str | None = None
    """Run folder of the dense network (sparsify.rounds 0), whose scores stand in the table beside the ticket's."""

    def __post_init__(self) -> None:
        refuse(self.rounds < 0, f"sparsify.rounds cannot be negative, found {self.rounds}")
        refuse(self.curve_every < 1, f"sparsify.curve_every must be positive, found {self.curve_every}")
        refuse(self.lmbda < 0, f"sparsify.lmbda cannot be negative, found {self.lmbda}")
        for name in ("final_temp", "mask_lr", "prune_temperature"):
            value = getattr(self, name)
            refuse(value is not None and value <= 0, f"sparsify.{name} must be positive, found {value}")
