"""Settings of the run and its data."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from hgsl.config.checks import check_finite, refuse


@dataclass
class RunConfig:
    """Folder, seed and hardware of a run."""

    dir: str | None = None
    """Run folder; empty means runs/NAME_OF_THE_CONFIG_FILE, with the names of several joined by -."""
    seed: int = 0
    """Seed of the initial weights and centers, the order of images and their augmentation."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Experiment trackers beside metrics.jsonl: any of tensorboard, wandb, mlflow and trackio (extras of these names),
    which keep everything on this machine unless their environment variables name a server; [] for none."""
    device: str = "auto"
    """Device: auto (the best one present), cuda, cuda:N, mps or cpu."""
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    """Precision of the network: auto is bfloat16 if the hardware supports it, float16 on older GPUs, else float32; on a
    CPU without matrix units (AMX) it is float32 for networks with depthwise convolutions. float32 is IEEE arithmetic on
    every device, tf32 is float32 with TensorFloat-32 products on a GPU."""
    threads: int | None = None
    """CPU threads of PyTorch in each process; empty leaves PyTorch's default, the number of cores."""
    compile: bool = False
    """Whether torch.compile compiles the network: minutes at the start, faster steps afterwards."""
    deterministic: bool = False
    """Whether PyTorch uses deterministic kernels only; a run on a CPU repeats its results without it, too."""
    log_every: int | None = None
    """Steps between two reads of loss, gradient norm and alpha from the device, which a GPU waits for; every step is
    logged. Above 1, with optim.fused, no step waits for the host, and images are copied ahead of their step. Empty is
    50 on a GPU and 1 on a CPU."""
    cuda_graphs: Literal["off", "auto", "on"] = "off"
    """Whether a GPU replays the training step as one CUDA graph, for small networks whose time is spent on launching
    kernels; auto measures that in the first steps. It needs optim.fused and run.log_every above 1."""
    autotune: bool = False
    """Whether cuDNN times its algorithms for the shapes of the run and takes the fastest. Another process may choose
    others, so a resumed run is then equal up to rounding only."""

    def __post_init__(self) -> None:
        check_finite("run", self)
        refuse(not 0 <= self.seed < 2**32, f"run.seed must lie from 0 to {2**32 - 1}, found {self.seed}")
        refuse(len(set(self.trackers)) < len(self.trackers), f"run.trackers names one twice: {self.trackers}")
        refuse(
            self.log_every is not None and self.log_every < 1,
            f"run.log_every must be at least 1, or empty, found {self.log_every}",
        )
        refuse(
            self.autotune and self.deterministic,
            "run.autotune chooses algorithms by their time, run.deterministic by their number: leave one of them out",
        )
        refuse(
            self.cuda_graphs != "off" and self.log_every == 1,
            f"run.cuda_graphs {self.cuda_graphs} needs run.log_every above 1, such as 50: a read after each step "
            "waits for the GPU",
        )
        refuse(self.threads is not None and self.threads < 1, f"run.threads must be at least 1, found {self.threads}")


@dataclass
class AugmentConfig:
    """Random changes of training images after crop and flip, in this order; 0 is none."""

    color_jitter: float = 0.0
    """Color jitter: brightness, contrast and saturation change by factors from 1 - x to 1 + x, such as 0.4."""
    rand_augment: int = 0
    """RandAugment of timm: magnitude, 1 to 10, of two random operations per image, such as 9."""
    grayscale: float = 0.0
    """Gray scale: probability of an image without color, such as 0.1."""
    random_erasing: float = 0.0
    """Random erasing: probability that noise replaces a random box, such as 0.25."""

    def __post_init__(self) -> None:
        check_finite("data.augment", self)
        for name, largest in {"color_jitter": 1, "rand_augment": 10, "grayscale": 1, "random_erasing": 1}.items():
            value = getattr(self, name)
            refuse(not 0 <= value <= largest, f"data.augment.{name} must lie from 0 to {largest}, found {value}")


@dataclass
class DataConfig:
    """Data set, split, transforms and loading."""

    name: str = "synthetic"
    """Data set: synthetic, flowers17, folder, csv, ... (hgsl.data.DATASETS)."""
    root: str | None = None
    """Folder of the data set (for csv: the table); empty means datasets/NAME of the installation."""
    protocol: str = "zero-shot"
    """Evaluation protocol: zero-shot (training and test classes are disjoint), closed-set or query-gallery."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the data set, such as {seed: 1} for folder (the choice of the test classes)."""
    test_share: float = 0.5
    """Share of the classes in the test split, for data sets without a split of their own; 0 trains the final model on
    all images of every data set, which leaves nothing to measure on."""
    image_size: int = 224
    """Side of the square network input, in pixels."""
    crop_pct: float | None = None
    """Evaluation: side of the center crop, as a fraction of the resized shortest side; empty means the backbone's."""
    recipe: Literal["random_resized_crop", "resize_random_crop"] = "random_resized_crop"
    """Training crop: random_resized_crop, or resize_random_crop as published (Resize, RandomCrop, flip)."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Smallest and largest area of a crop as a fraction of the image's, for random_resized_crop."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Further augmentation."""
    sampler: str = "random"
    """Sampler of training batches (hgsl.data.SAMPLERS): random (every image once per epoch), m_per_class (a few classes
    with per_class images each), category (the same, from one category, or a few small ones) or class_balanced (every
    class equally often)."""
    per_class: int = 4
    """Images of one class in a batch, for the samplers m_per_class and category."""
    cache: Literal["none", "resized"] = "none"
    """Cache of images on disk: none, or resized, which stores each image at the size that the transform starts from, so
    that only the first epoch decodes."""
    crop_to_boxes: bool = False
    """Whether images are cropped to their bounding boxes, if the data set has them; reports note it."""
    val_share: float = 0.0
    """Share of the training classes held out for validation, to choose the epoch (train.select: best)."""
    val_fold: int | None = None
    """Instead of val_share: index, 0 to 3, of the validation fold of four class-disjoint folds."""
    broken: Literal["error", "skip"] = "error"
    """Training images that cannot be read: error ends the run, skip reads all of them once at the start and trains
    without these, which log and report name. Validation and test images are never skipped."""
    workers: int | None = None
    """Worker processes of the data loader; empty means one per core, at most 8."""

    def __post_init__(self) -> None:
        check_finite("data", self)
        self._resolve_folders()
        refuse(self.image_size < 1, f"data.image_size must be positive, found {self.image_size}")
        refuse(not 0 <= self.test_share < 1, f"data.test_share must lie from 0 to below 1, found {self.test_share}")
        refuse(
            self.crop_pct is not None and not 0 < self.crop_pct <= 1,
            f"data.crop_pct must be above 0 and at most 1, or empty, found {self.crop_pct}",
        )
        low, high = self.crop_scale
        refuse(not 0 < low <= high <= 1, f"data.crop_scale must be 0 < low <= high <= 1, found [{low}, {high}]")
        refuse(
            self.val_fold is not None and self.val_share > 0,
            f"data.val_share {self.val_share} and data.val_fold {self.val_fold} both choose validation: give one",
        )
        refuse(not 0 <= self.val_share < 1, f"data.val_share must lie from 0 to below 1, found {self.val_share}")
        refuse(self.workers is not None and self.workers < 0, f"data.workers cannot be negative, found {self.workers}")

    def _resolve_folders(self) -> None:
        """Makes root, and options such as image_root, absolute, so that any working directory can evaluate the run."""
        if self.root is not None:
            self.root = _absolute(self.root)
        folders = {
            key: value for key, value in self.options.items() if key.endswith("_root") and isinstance(value, str)
        }
        self.options = self.options | {key: _absolute(value) for key, value in folders.items()}


def _absolute(path: str) -> str:
    """The absolute path; an address such as s3://bucket stays as it is."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
