"""Settings of loss, optimizer and training loop."""

from dataclasses import dataclass, field
from typing import Any, Literal

from hgsl.config.checks import check_finite, refuse

FEW_CLASSES = 12  # below, "auto" takes random centers and a smaller alpha (docs/recipe.md)


@dataclass
class LossConfig:
    """The Hard Global Softmin Loss, another loss of this package, or one of pytorch-metric-learning by class name."""

    name: str = "HardGlobalSoftminLoss"
    """A loss of hgsl.losses.LOSSES, or a class of pytorch_metric_learning.losses, such as ProxyAnchorLoss."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of a loss other than HardGlobalSoftminLoss, to which top_k and the settings after it do not apply;
    num_classes and embedding_size are passed automatically."""
    miner: str | None = None
    """A class of pytorch_metric_learning.miners, such as TripletMarginMiner, for losses over pairs and triplets."""
    miner_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the miner."""
    memory: int = 0
    """Size of the cross-batch memory (embeddings of earlier steps, with which a loss over pairs also compares); 0 for
    none."""
    weight: float = 1.0
    """Weight of the loss of the labels, beside that of a teacher; 0 learns from the teacher alone."""
    top_k: int | None = None
    """Size K of the hard set: only the K nearest class centers count; empty means all (global softmin)."""
    hard_set: Literal["all", "negatives"] = "all"
    """Members of the hard set: all (the K nearest centers, as published) or negatives (the center of the true class and
    the K nearest others)."""
    alpha: float | Literal["auto"] = 0.1
    """Softness: the scale of the distances is 10 / alpha; auto is 0.4 for fewer than 12 classes and 1 otherwise."""
    learnable_scale: bool = True
    """Whether alpha is learned."""
    decorrelation: float = 0.1
    """Weight of the regularizer that makes class centers closer to orthogonal."""
    margin: float = 0.0
    """Margin, subtracted from the similarity to the true class."""
    both_sides: float = 0.0
    """Weight of a second term, which compares each class center of the batch with the K images nearest to it; 0 as
    published. With several processes, their embeddings are gathered for it."""
    similarity: Literal["euclidean", "cosine"] = "euclidean"
    """Similarity of embedding and center: minus the distance, as published, or the cosine."""
    top_k_schedule: dict[int, int | None] = field(default_factory=dict)
    """Schedule of K, first epoch -> K, such as {0: null, 5: 10}; replaces top_k."""
    sharded: bool = False
    """With several processes, whether each holds a shard of the centers instead of all of them."""
    sparse_centers: bool | None = None
    """Whether centers get a sparse gradient and plain SGD at optim.centers_lr, so that no gradient or moment of their
    full size is held; empty means from 100,000 classes on. Several processes then need loss.sharded."""
    centers: Literal["random", "class_means", "auto"] = "random"
    """Initial class centers of HardGlobalSoftminLoss: random, as published, or the mean embedding of each class's
    images, which costs one pass over the training images; auto takes the means from 12 classes on."""
    teacher: str | None = None
    """Teacher for distillation: a run folder, OWNER/NAME on the Hub, local-dir:FOLDER or a timm name, whose embeddings
    of the training images guide the model beside the loss."""
    teacher_images: str | None = None
    """Folder of further images, without labels, at any depth: each step also takes a batch of them, on which the model
    follows the teacher alone."""
    teacher_input: Literal["whole", "augmented"] = "whole"
    """What the teacher embeds: the whole image, once and without augmentation, or in each step the augmented crops that
    the model is trained on, which costs a forward pass and follows the teacher far more closely (for tickets)."""
    teacher_kind: Literal["embedding", "similarities"] = "embedding"
    """What is learned from the teacher: each embedding (through a linear projection where the sizes differ), or the
    similarities among the images of a (micro-)batch."""
    teacher_weight: float = 10.0
    """Weight of the distillation term."""
    teacher_features: float = 0.0
    """Weight of the distance between the outputs of each block of model and teacher, which are of one architecture, as
    a ticket and its dense network; needs teacher_input augmented."""
    teacher_temperature: float = 0.1
    """Temperature of the similarities: at a lower one only the nearest images count."""

    def __post_init__(self) -> None:
        check_finite("loss", self)
        refuse(self.top_k is not None and self.top_k < 1, f"loss.top_k must be positive or empty, found {self.top_k}")
        refuse(self.alpha != "auto" and self.alpha <= 0, f"loss.alpha must be positive, found {self.alpha}")
        refuse(
            bool(self.top_k_schedule) and self.top_k is not None,
            "loss.top_k_schedule replaces loss.top_k: leave one of them empty",
        )
        default = self.name == "HardGlobalSoftminLoss"
        refuse(default and bool(self.options), f"loss.options are for other losses than {self.name}: set loss.name")
        refuse(default and bool(self.miner or self.memory), "loss.miner and loss.memory belong to losses over pairs")
        for name in ("sharded", "sparse_centers", "top_k_schedule"):
            refuse(
                not default and bool(getattr(self, name)),
                f"loss.{name} belongs to HardGlobalSoftminLoss, but loss.name is {self.name!r}: leave it out",
            )
        refuse(self.miner is None and bool(self.miner_options), "loss.miner_options need loss.miner")
        refuse(self.memory < 0, f"loss.memory cannot be negative, found {self.memory}")
        refuse(self.weight < 0, f"loss.weight cannot be negative, found {self.weight}")
        refuse(
            self.weight == 0 and self.teacher is None,
            "loss.weight 0 leaves a teacher alone to learn from, but loss.teacher is empty: set one of them",
        )
        refuse(self.decorrelation < 0, f"loss.decorrelation cannot be negative, found {self.decorrelation}")
        refuse(self.margin < 0, f"loss.margin cannot be negative, found {self.margin}")
        refuse(self.both_sides < 0, f"loss.both_sides cannot be negative, found {self.both_sides}")
        refuse(self.teacher_features < 0, f"loss.teacher_features cannot be negative, found {self.teacher_features}")
        refuse(
            self.teacher_features > 0 and self.teacher_input == "whole",
            "loss.teacher_features compares the blocks on the images of a step: set loss.teacher_input augmented",
        )
        for name in ("teacher_weight", "teacher_temperature"):
            value = getattr(self, name)
            refuse(value <= 0, f"loss.{name} must be positive, found {value}")
        refuse(self.teacher == "", "loss.teacher is an empty text: leave it out, or name a run folder or model")
        refuse(self.sharded and self.both_sides > 0, "loss.both_sides needs all centers: set loss.sharded to false")
        refuse(
            self.hard_set == "negatives" and self.top_k is None and not self.top_k_schedule,
            "loss.hard_set 'negatives' needs loss.top_k or loss.top_k_schedule: with all centers, it equals 'all'",
        )


@dataclass
class OptimConfig:
    """Optimizer, parameter groups and learning-rate schedule."""

    name: str = "adamw"
    """Optimizer: adamw, sgd, or one of timm: adabelief, adafactor, adam, adamax, adamp, adan, adopt, lamb, laprop,
    lars, lion, mars, nadam, nadamw, novograd, radam, rmsprop or sgdp, each with learning rates of its own size."""
    lr: float = 3e-4
    """Peak learning rate of the backbone."""
    projection_lr: float = 3e-3
    """Peak learning rate of pooling and projection."""
    centers_lr: float = 1e-2
    """Peak learning rate of the class centers."""
    scale_lr: float = 1e-5
    """Peak learning rate of the loss's alpha."""
    layer_decay: float | None = None
    """Factor of the learning rate from each layer of the backbone to the one before it, such as 0.75."""
    weight_decay: float = 1e-4
    """Weight decay of backbone and projection; centers and alpha have none, and with layer_decay neither have the norms
    and biases of the backbone."""
    momentum: float | None = None
    """Momentum of sgd, 0.9 if empty."""
    nesterov: bool = False
    """Whether sgd uses Nesterov momentum."""
    schedule: str = "cosine"
    """Learning-rate schedule after the warm-up: cosine, step or constant."""
    warmup: float = 0.1
    """Share of all steps over which the rate rises linearly from nearly zero."""
    step_epochs: list[int] = field(default_factory=list)
    """Epochs after which the schedule step multiplies the rate by step_factor."""
    step_factor: float = 0.1
    """Factor of the schedule step."""
    clip: float | None = 5.0
    """Gradient clipping: the largest norm of all gradients together; empty does not clip."""
    fused: bool | None = None
    """Whether adamw and sgd run as one fused kernel, which also skips a step whose gradient is not finite on the device
    (see run.log_every). Empty is true on a GPU."""

    def __post_init__(self) -> None:
        check_finite("optim", self)
        for name in ("lr", "projection_lr", "centers_lr", "scale_lr", "weight_decay"):
            value = getattr(self, name)
            refuse(value < 0, f"optim.{name} cannot be negative, found {value}")
        refuse(
            self.layer_decay is not None and not 0 < self.layer_decay <= 1,
            f"optim.layer_decay must be above 0 and at most 1, such as 0.75, or empty, found {self.layer_decay}",
        )
        refuse(
            not 0 < self.step_factor <= 1,
            f"optim.step_factor must be above 0 and at most 1, such as 0.1, found {self.step_factor}",
        )
        refuse(
            not 0 <= self.warmup < 1, f"optim.warmup is a share of all steps, from 0 to below 1, found {self.warmup}"
        )
        refuse(
            self.name != "sgd" and self.momentum is not None,
            f"optim.momentum belongs to sgd, but optim.name is {self.name}: leave it empty or choose sgd",
        )
        refuse(
            self.momentum is not None and not 0 <= self.momentum < 1,
            f"optim.momentum must lie from 0 to below 1, or be empty, found {self.momentum}",
        )
        refuse(
            self.name != "sgd" and self.nesterov,
            f"optim.nesterov belongs to sgd, but optim.name is {self.name}: leave it out or choose sgd",
        )
        refuse(
            self.nesterov and self.momentum == 0, "optim.nesterov needs a momentum above 0: leave one of the two out"
        )
        refuse(
            self.schedule == "step" and not self.step_epochs,
            "optim.schedule 'step' needs optim.step_epochs, such as [10, 20]",
        )
        refuse(
            self.schedule != "step" and bool(self.step_epochs),
            f"optim.step_epochs are given, but optim.schedule is {self.schedule!r}: choose 'step' or leave them out",
        )
        refuse(
            self.fused is not None and self.name not in ("adamw", "sgd"),
            f"optim.fused is for adamw and sgd, but optim.name is {self.name}: leave it out",
        )
        refuse(self.clip is not None and self.clip <= 0, f"optim.clip must be positive or empty, found {self.clip}")


@dataclass
class TrainConfig:
    """Training loop."""

    mode: Literal["full", "head"] = "full"
    """Training mode: full trains the network; head runs the frozen backbone once per image, without augmentation, and
    trains projection and class centers on the cached features: seconds instead of minutes."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 32
    """Images per step, all processes and micro-batches together."""
    accumulate: int = 1
    """Micro-batches per step: more need less memory and give the same gradient, except for batch norm, losses over
    pairs and loss.both_sides, which are computed on one micro-batch at a time."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999, which is evaluated and saved instead."""
    select: Literal["last", "best", "best_on_test"] = "last"
    """Epoch whose model is kept: the last, the best on the validation classes (data.val_share or val_fold), or, as in
    much published code, the best on test, which biases the test score upward; reports note it."""
    patience: int | None = None
    """Early stopping, with select best: evaluations (every eval.every epochs) without a better MAP@R of the validation
    images after which training ends; empty trains all epochs. The learning-rate schedule is that of all epochs."""
    save_every: int = 200
    """Steps between two saves of the state that --resume continues from; the end of an epoch always saves."""
    keep: int = 1
    """Number of saved states to keep: the newest is state.safetensors, earlier ones are in states/, named by their
    step; --resume continues from one of these if it is copied over state.safetensors."""

    def __post_init__(self) -> None:
        check_finite("train", self)
        for name in ("epochs", "batch_size", "accumulate", "save_every", "keep"):
            value = getattr(self, name)
            minimum = 0 if name == "epochs" else 1
            refuse(value < minimum, f"train.{name} must be at least {minimum}, found {value}")
        refuse(self.ema is not None and not 0 < self.ema < 1, f"train.ema must lie between 0 and 1, found {self.ema}")
        refuse(
            self.patience is not None and self.patience < 1, f"train.patience must be positive, found {self.patience}"
        )
        refuse(
            self.patience is not None and self.select != "best",
            f"train.patience stops after the best epoch on validation images, but train.select is {self.select!r}: set "
            "it to best, and data.val_share such as 0.2 if the data has no validation images",
        )
        refuse(
            self.batch_size % self.accumulate != 0,
            f"train.batch_size {self.batch_size} is not a multiple of train.accumulate {self.accumulate}: "
            "each micro-batch has batch_size / accumulate images",
        )
