"""Settings of Continuous Sparsification: masks during training, and the search for a ticket."""

from dataclasses import dataclass, field
from typing import Literal

from hgsl.config.checks import check_finite, refuse


@dataclass
class MaskConfig:
    """Masks on the backbone during training (Continuous Sparsification in one round, without a rewind)."""

    granularity: Literal["none", "weight", "channel"] = "none"
    """Unit of the masks: none, single weights (sparsest), or channels, which can be removed from the network."""
    mask_initial_value: float = 0.0
    """Initial score s0, from -10 to 10: below 0 ends sparser, above 0 denser."""
    include: list[str] = field(default_factory=list)
    """Patterns of the layers to mask, such as backbone.blocks.*; empty means all convolutions and linear layers."""
    exclude: list[str] = field(default_factory=list)
    """Patterns of layers that are not masked."""
    final_temp: float = 200.0
    """Temperature beta at the end of a round, which starts at 1."""
    lmbda: float = 1e-8
    """Weight lambda of the penalty, the sum of the masks, in the loss; with a target, its first value."""
    penalty: Literal["weights", "operations", "time"] = "weights"
    """Quantity that the penalty counts: remaining weights, as published; multiplications per image; or, for channels,
    the time that each layer takes on this device, measured at the start, in a search with eval.batch_size images."""
    target: float | None = None
    """Share of that quantity that the ticket is to keep, such as 0.6; lambda is then adapted in every step."""
    mask_lr: float | None = None
    """Peak learning rate of the scores, which have no weight decay; empty means optim.lr."""

    def __post_init__(self) -> None:
        check_finite("sparsify", self)
        refuse(
            not -10 <= self.mask_initial_value <= 10,
            f"sparsify.mask_initial_value must be from -10 to 10, found {self.mask_initial_value}",
        )
        refuse(self.lmbda < 0, f"sparsify.lmbda cannot be negative, found {self.lmbda}")
        refuse(
            self.target is not None and not 0 < self.target < 1,
            f"sparsify.target is a share between 0 and 1, such as 0.6, found {self.target}",
        )
        refuse(
            self.target is not None and self.lmbda == 0,
            "sparsify.target adapts sparsify.lmbda, whose first value is 0: set it to a small one, such as 1e-5",
        )
        refuse(
            self.penalty == "time" and self.granularity == "weight",
            "sparsify.penalty time: closed weights take as long as open ones: set sparsify.granularity channel",
        )
        for name in ("final_temp", "mask_lr"):
            _check_positive(name, getattr(self, name))


@dataclass
class SparsifyConfig(MaskConfig):
    """Search for a ticket: rounds of train.epochs each, then training of the ticket."""

    granularity: Literal["none", "weight", "channel"] = "weight"
    """Unit of the masks: single weights (sparsest), or channels, whose removal makes the ticket faster."""
    method: Literal["continuous", "reconstruction"] = "continuous"
    """Search: continuous trains masks along with the weights (Continuous Sparsification); reconstruction closes
    weights or channels down to the target after one pass over training images, and refits what remains."""
    task: Literal["retrieval", "classification"] = "retrieval"
    """Task: retrieval trains an embedder with the loss, classification a classifier with cross entropy."""
    rounds: int = 3
    """Rounds of the search; 0 trains the dense network for comparison."""
    rewind_epoch: int | None = 2
    """Epoch of the first round to whose weights the ticket is rewound; empty keeps the weights of the last round."""
    ticket_epochs: int | None = None
    """Epochs of the ticket after the search; empty means train.epochs, as those of a round."""
    prune_temperature: float | None = None
    """Temperature beta in the pruning between rounds; empty means final_temp, 1 reproduces the published code."""
    curve_every: int = 1
    """Epochs between two evaluations for the curve."""
    dense_run: str | None = None
    """Run folder of the dense network (sparsify.rounds 0), whose scores are shown beside those of the ticket."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.granularity == "none", "sparsify.granularity 'none' searches nothing: choose weight or channel")
        refuse(self.rounds < 0, f"sparsify.rounds cannot be negative, found {self.rounds}")
        refuse(
            self.ticket_epochs is not None and self.ticket_epochs < 1,
            f"sparsify.ticket_epochs must be positive or empty, found {self.ticket_epochs}",
        )
        reconstruction = self.method == "reconstruction" and self.rounds > 0
        refuse(
            reconstruction and self.target is None,
            "sparsify.method reconstruction closes weights or channels down to a share: set sparsify.target, such as "
            "0.6",
        )
        refuse(
            reconstruction and self.granularity == "channel" and self.penalty == "weights",
            "sparsify.method reconstruction removes channels for the cost that they save: set sparsify.penalty "
            "operations or time",
        )
        refuse(
            reconstruction and self.rewind_epoch is not None,
            "sparsify.method reconstruction has no epochs to rewind to: set sparsify.rewind_epoch null",
        )
        refuse(self.curve_every < 1, f"sparsify.curve_every must be positive, found {self.curve_every}")
        _check_positive("prune_temperature", self.prune_temperature)


def _check_positive(name: str, value: float | None) -> None:
    refuse(value is not None and value <= 0, f"sparsify.{name} must be positive, found {value}")
