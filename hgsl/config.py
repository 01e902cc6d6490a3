"""The settings of a training run: typed, checked against each other before anything is loaded.

The text under a field is what ``--help`` prints for it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise ValueError(message)


@dataclass
class RunConfig:
    """Where the run lives and on what it runs."""

    dir: str | None = None
    """Run folder; empty means runs/NAME_OF_THE_CONFIG_FILE."""
    seed: int = 0
    """Seed of the weights, the centres, the order of images and their augmentation."""
    device: str = "auto"
    """auto (the best one present), cuda, cuda:N, mps or cpu."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the network; auto is bfloat16 where the hardware has it, float16 on older GPUs, else float32."""
    threads: int | None = None
    """CPU threads of PyTorch in each process; empty leaves its own choice, the number of cores."""
    compile: bool = False
    """Whether torch.compile translates the network first: minutes at the start, faster steps afterwards."""
    deterministic: bool = False
    """On a GPU, whether only kernels that repeat their results to the bit may be used; a CPU run always repeats."""

    def __post_init__(self) -> None:
        _refuse(self.threads is not None and self.threads < 1, f"run.threads must be at least 1, found {self.threads}")


@dataclass
class DataConfig:
    """Which images, how they are split and how they reach the network."""

    name: str = "synthetic"
    """Dataset: synthetic, flowers17, folder, csv, ... (hgsl.data.DATASETS)."""
    root: str | None = None
    """Folder of the dataset (for csv: the table); empty means datasets/NAME of the installation."""
    protocol: str = "zero-shot"
    """zero-shot (classes of the search are never trained on), closed-set or query-gallery."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the dataset's adapter, such as {seed: 1} for folder (which classes are searched)."""
    test_share: float = 0.5
    """Datasets without an official split (folder): the share of the classes that is searched, not trained on."""
    image_size: int = 224
    """Side in pixels of the square image that the network sees."""
    crop_pct: float | None = None
    """Evaluation: share of the resized photo's side that the central crop keeps; empty means the backbone's own."""
    recipe: Literal["random_resized_crop", "resize_random_crop"] = "random_resized_crop"
    """Training crop: random_resized_crop, or resize_random_crop as published (Resize, RandomCrop, flip)."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """random_resized_crop: smallest and largest share of the image's area in a crop."""
    sampler: Literal["random", "m_per_class", "class_balanced"] = "random"
    """random: every image once an epoch; m_per_class: batches of a few classes with per_class images each;
    class_balanced: every class equally often."""
    per_class: int = 4
    """m_per_class: images of a class in a batch."""
    cache: Literal["none", "resized"] = "none"
    """resized keeps every image at the size the transform starts from, so that only the first epoch decodes files."""
    crop_to_boxes: bool = False
    """Whether images are cut to their boxes, where the data set has them; reports then say so."""
    val_share: float = 0.0
    """Share of the training classes that is kept out of training to choose the epoch (train.select: best)."""
    val_fold: int | None = None
    """Instead of val_share: which of four class-disjoint folds of the training classes, 0 to 3, is kept out."""
    workers: int | None = None
    """Processes that read and transform images; empty means one per core, at most 8."""

    def __post_init__(self) -> None:
        _refuse(self.image_size < 1, f"data.image_size must be positive, found {self.image_size}")
        _refuse(not 0 < self.test_share < 1, f"data.test_share must lie between 0 and 1, found {self.test_share}")
        _refuse(
            self.crop_pct is not None and not 0 < self.crop_pct <= 1,
            f"data.crop_pct must be above 0 and at most 1, or empty, found {self.crop_pct}",
        )
        low, high = self.crop_scale
        _refuse(not 0 < low <= high <= 1, f"data.crop_scale must be 0 < low <= high <= 1, found [{low}, {high}]")
        _refuse(
            self.val_fold is not None and self.val_share > 0,
            f"data.val_share {self.val_share} and data.val_fold {self.val_fold} both cut validation classes: give one",
        )
        _refuse(not 0 <= self.val_share < 1, f"data.val_share must lie from 0 to below 1, found {self.val_share}")
        _refuse(self.workers is not None and self.workers < 0, f"data.workers cannot be negative, found {self.workers}")


@dataclass
class ModelConfig:
    """The embedding model."""

    backbone: str = "tf_efficientnet_lite0"
    """Any timm model name."""
    pooling: Literal["avg", "max", "maxavg", "gem", "scda"] = "maxavg"
    """From the last features to one vector; maxavg is max and average pooling side by side, scda the same over the
    places whose activation is above the mean."""
    embedding_size: int | None = None
    """Dimensions of the embedding, reached by a linear projection; empty keeps the pooled features."""
    weights: str = "timm"
    """Backbone weights: timm (downloads), packaged (tf_efficientnet_lite0, no network), none, or a file."""
    output_stride: int | None = None
    """16 gives convolutional backbones a finer last feature map ("last stride 1"); empty keeps their own."""
    freeze: Literal["none", "batch_norm", "stem", "backbone"] = "none"
    """What does not train: nothing, the batch norms (statistics and affine), the first stage, the whole backbone."""
    sync_bn: bool = False
    """With several processes on GPUs, whether batch norms share their statistics."""
    checkpointing: bool = False
    """Whether activations are computed twice instead of kept: less memory, about a third more time."""

    def __post_init__(self) -> None:
        _refuse(
            self.weights == "packaged" and self.backbone != "tf_efficientnet_lite0",
            f"model.weights 'packaged' are those of tf_efficientnet_lite0, but model.backbone is {self.backbone!r}: "
            "change one of the two",
        )
        _refuse(
            self.embedding_size is not None and self.embedding_size < 1,
            f"model.embedding_size must be positive or empty, found {self.embedding_size}",
        )


@dataclass
class LossConfig:
    """The Hard Global Softmin Loss, or one of pytorch-metric-learning's by its class name."""

    name: str = "HardGlobalSoftminLoss"
    """HardGlobalSoftminLoss, or a class of pytorch_metric_learning.losses, such as ProxyAnchorLoss."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of another loss than HardGlobalSoftminLoss; num_classes and embedding_size are filled in."""
    miner: str | None = None
    """A class of pytorch_metric_learning.miners, such as TripletMarginMiner, for losses over pairs and triplets."""
    miner_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the miner."""
    memory: int = 0
    """Embeddings of earlier steps that a loss over pairs also compares with (cross-batch memory); 0 for none."""
    top_k: int | None = None
    """Size K of the hard set: only the K nearest class centres count; empty means all (global softmin)."""
    hard_set: Literal["all", "negatives"] = "all"
    """all: the K nearest of all centres, as published; negatives: the K nearest wrong ones and always the true one."""
    alpha: float = 0.1
    """Softness: the scale of the distances is 10 / alpha."""
    learnable_scale: bool = True
    """Whether alpha is learnt."""
    decorrelation: float = 0.1
    """Weight of the term that pushes class centres towards right angles."""
    margin: float = 0.0
    """Taken off the closeness to the true class."""
    similarity: Literal["euclidean", "cosine"] = "euclidean"
    """What closeness is: minus the distance, as published, or the cosine."""
    top_k_schedule: dict[int, int | None] = field(default_factory=dict)
    """K as a curriculum, first epoch -> K, such as {0: null, 5: 10}; replaces top_k."""
    sharded: bool = False
    """With several processes, whether each holds its share of the centres instead of all of them."""
    centers: Literal["random", "class_means"] = "random"
    """Where the class centres start: random, as published, or at the mean embedding of each class's images, which
    costs one pass over the training images."""

    def __post_init__(self) -> None:
        _refuse(self.top_k is not None and self.top_k < 1, f"loss.top_k must be positive or empty, found {self.top_k}")
        _refuse(self.alpha <= 0, f"loss.alpha must be positive, found {self.alpha}")
        _refuse(
            bool(self.top_k_schedule) and self.top_k is not None,
            "loss.top_k_schedule replaces loss.top_k: leave one of them empty",
        )
        ours = self.name == "HardGlobalSoftminLoss"
        _refuse(ours and bool(self.options), "loss.options belong to losses of pytorch-metric-learning: set loss.name")
        _refuse(ours and bool(self.miner or self.memory), "loss.miner and loss.memory belong to losses over pairs")
        _refuse(self.miner is None and bool(self.miner_options), "loss.miner_options need loss.miner")
        _refuse(self.memory < 0, f"loss.memory cannot be negative, found {self.memory}")
        _refuse(self.decorrelation < 0, f"loss.decorrelation cannot be negative, found {self.decorrelation}")
        _refuse(
            self.hard_set == "negatives" and self.top_k is None,
            "loss.hard_set 'negatives' needs loss.top_k: with all centres both hard sets are the same",
        )


@dataclass
class OptimConfig:
    """The optimiser, its groups of parameters and their learning rates over time."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw or sgd."""
    lr: float = 3e-4
    """Peak learning rate of the backbone."""
    projection_lr: float = 3e-3
    """Peak learning rate of pooling and projection."""
    centers_lr: float = 1e-2
    """Peak learning rate of the class centres."""
    scale_lr: float = 1e-5
    """Peak learning rate of the loss's alpha."""
    layer_decay: float | None = None
    """Factor from each layer of the backbone to the one before it, such as 0.75 for transformers; empty has none."""
    weight_decay: float = 1e-4
    """Weight decay of backbone and projection; centres and alpha have none."""
    momentum: float | None = None
    """Momentum of sgd; empty means 0.9."""
    nesterov: bool = False
    """Whether sgd looks ahead (Nesterov's momentum)."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup: float = 0.1
    """Share of all steps in which the rate rises linearly from nearly zero."""
    step_epochs: list[int] = field(default_factory=list)
    """step: the epochs after which the rate is multiplied by step_factor."""
    step_factor: float = 0.1
    """step: what the rate is multiplied by."""
    clip: float | None = 5.0
    """Largest norm of all gradients together; larger ones are scaled down to it. Empty does not clip."""

    def __post_init__(self) -> None:
        for name in ("lr", "projection_lr", "centers_lr", "scale_lr", "weight_decay"):
            value = getattr(self, name)
            _refuse(value < 0, f"optim.{name} cannot be negative, found {value}")
        _refuse(
            not 0 <= self.warmup < 1, f"optim.warmup is a share of all steps, from 0 to below 1, found {self.warmup}"
        )
        _refuse(
            self.name == "adamw" and self.momentum is not None,
            "optim.momentum belongs to sgd, but optim.name is adamw: leave it empty or choose sgd",
        )
        _refuse(
            self.name == "adamw" and self.nesterov,
            "optim.nesterov belongs to sgd, but optim.name is adamw: leave it out or choose sgd",
        )
        _refuse(
            self.schedule == "step" and not self.step_epochs,
            "optim.schedule 'step' needs optim.step_epochs, such as [10, 20]",
        )
        _refuse(
            self.schedule != "step" and bool(self.step_epochs),
            f"optim.step_epochs are given, but optim.schedule is {self.schedule!r}: choose 'step' or leave them out",
        )
        _refuse(self.clip is not None and self.clip <= 0, f"optim.clip must be positive or empty, found {self.clip}")


@dataclass
class TrainConfig:
    """The training loop."""

    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 32
    """Images a step, all processes and micro-batches together."""
    accumulate: int = 1
    """Micro-batches a step: a larger value needs less memory and gives the same gradient, batch norm aside."""
    ema: float | None = None
    """Decay of a running mean of the weights, such as 0.999, that is evaluated and saved in their place."""
    select: Literal["last", "best", "best_on_test"] = "last"
    """Which epoch's model is kept: the last, the best on the validation classes (data.val_share or val_fold), or,
    as much published code did, the best on test, which makes the test score too high; reports say so."""
    save_every: int = 200
    """Steps between two saves of the state that --resume goes on from; the end of an epoch always saves."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "save_every"):
            value = getattr(self, name)
            _refuse(value < (0 if name == "epochs" else 1), f"train.{name} must be positive, found {value}")
        _refuse(self.ema is not None and not 0 < self.ema < 1, f"train.ema must lie between 0 and 1, found {self.ema}")
        _refuse(
            self.batch_size % self.accumulate != 0,
            f"train.batch_size {self.batch_size} is not a multiple of train.accumulate {self.accumulate}: "
            "each micro-batch has batch_size / accumulate images",
        )


@dataclass
class EvalConfig:
    """Retrieval on the classes that training never saw."""

    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    """The K of Recall@K and Precision@K."""
    batch_size: int = 64
    """Images embedded at a time."""
    before: bool = True
    """Whether to measure before training as well."""

    def __post_init__(self) -> None:
        _refuse(not self.ks or min(self.ks) < 1, f"eval.ks must be positive numbers, found {self.ks}")
        _refuse(self.batch_size < 1, f"eval.batch_size must be positive, found {self.batch_size}")


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
        _refuse(
            self.train.select == "best" and not has_validation,
            "train.select 'best' needs validation classes: set data.val_share (such as 0.2) or data.val_fold",
        )


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
        _refuse(self.rounds < 0, f"sparsify.rounds cannot be negative, found {self.rounds}")
        _refuse(self.curve_every < 1, f"sparsify.curve_every must be positive, found {self.curve_every}")
        _refuse(self.lmbda < 0, f"sparsify.lmbda cannot be negative, found {self.lmbda}")
        for name in ("final_temp", "mask_lr", "prune_temperature"):
            value = getattr(self, name)
            _refuse(value is not None and value <= 0, f"sparsify.{name} must be positive, found {value}")


@dataclass
class SearchConfig(Config):
    """A run of tools/sparsify.py."""

    sparsify: SparsifyConfig = field(default_factory=SparsifyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        rewind = self.sparsify.rewind_epoch
        _refuse(
            rewind is not None and not 0 <= rewind < max(1, self.train.epochs),
            f"sparsify.rewind_epoch {rewind} lies outside a round of train.epochs {self.train.epochs}",
        )
        _refuse(
            (self.data.name == "cifar10") != (self.sparsify.task == "classification"),
            f"sparsify.task {self.sparsify.task!r} does not go with data.name {self.data.name!r}: "
            "cifar10 is for classification, all others are for retrieval",
        )
        _refuse(self.train.select != "last", "a ticket is what the last epoch leaves: leave train.select at 'last'")
