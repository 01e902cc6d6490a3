"""Problems of a ticket search: classification of CIFAR-10, and retrieval."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hgsl.common import ranks
from hgsl.common.errors import InputError, unknown
from hgsl.common.modules import evaluation_mode
from hgsl.common.suggestions import nearest
from hgsl.config import Config, SparsifyRunConfig
from hgsl.data import default_root
from hgsl.data.cifar10 import MEAN, STD, ImageArray, augment, draw_crops, hold_out, load_cifar10
from hgsl.engine.loop.loader import mixed_seed
from hgsl.engine.loop.train_state import Batch
from hgsl.engine.parts.objective import Objective
from hgsl.engine.problem import Problem
from hgsl.engine.runtime import Runtime
from hgsl.models.resnet_cifar import resnet20

# The settings that a classifier uses, besides all of run and sparsify; the others are for retrieval.
CLASSIFIER_SETTINGS = {
    "data": ("name", "root", "options", "val_share", "workers"),
    "model": ("backbone", "weights"),
    "loss": (),
    "optim": (
        *("name", "lr", "weight_decay", "momentum", "nesterov"),
        *("schedule", "warmup", "step_epochs", "step_factor", "clip", "fused"),
    ),
    "train": ("epochs", "batch_size", "accumulate", "ema", "save_every", "keep"),
}


@dataclass(frozen=True, kw_only=True)
class SparsifyProblem(Problem):
    """A network to sparsify, and its training and measurements.

    Attributes:
        example: A batch of inputs for tracing and for measuring time.
        curve: network -> the score in [0, 1] that is plotted per epoch.
        curve_name: Name of that score, and of the images it is measured on.
        curve_size: Number of these images.
        final: network -> all scores on the test images.
        final_size: Number of the test images.
        quality: The scores in the table of costs.
    """

    example: Tensor
    curve: Callable[[Any], float]
    curve_name: str
    curve_size: int
    final: Callable[[Any], dict[str, Any]]
    final_size: int
    quality: tuple[str, ...]


class Classifier(nn.Module):
    """Classifier of uint8 images ``(B, 3, H, W)``, with normalization: returns logits ``(B, classes)``."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def prefers_channels_last(self, device: torch.device) -> bool:
        return True

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images.to(self.mean.dtype) / 255 - self.mean) / self.std)


def classification(config: SparsifyRunConfig, runtime: Runtime, resumed: Path | None = None) -> SparsifyProblem:
    """CIFAR-10: cross entropy of a small ResNet, or of any timm model, on images in memory.

    Raises:
        InputError: Also if a setting has no effect on a classifier.
    """
    _check_settings(config)
    root = Path(config.data.root) if config.data.root else default_root(config.data.name)
    whole, test = load_cifar10(root)
    train, held_out = hold_out(whole, config.data.val_share)
    train = _first_images(train, config.data.options)
    ranks.print_main(f"cifar10: {len(train)} training, {len(held_out)} held-out and {len(test)} test images")
    network = _classifier_network(config.model.backbone, len(whole.class_names))
    model = Classifier(network, MEAN, STD).to(runtime.device).to(memory_format=torch.channels_last)
    train, held_out, test = (part.to(runtime.device) for part in (train, held_out, test))
    batch_size = config.train.batch_size
    if len(train) < batch_size:
        raise InputError(f"train.batch_size {batch_size} is more than the {len(train)} training images")
    curve_images, curve_split = (held_out, "held-out") if len(held_out) else (test, "test")
    return SparsifyProblem(
        model=model,
        network=model,
        objective=Objective(nn.CrossEntropyLoss()),
        start=dict,
        steps_per_epoch=len(train) // batch_size,
        batches=lambda seed, start, _: array_batches(train, batch_size, seed, start),
        groups=lambda: [
            {"name": "weights", "params": [p for p in model.parameters() if p.requires_grad], "lr": config.optim.lr}
        ],
        name_images=lambda ids: [f"training image {row}" for row in ids.tolist()],
        split=f"cifar10 with {len(train)} training images",
        evaluation_batch=lambda: test.images[: config.eval.batch_size],
        uses_loaders=False,
        example=test.images[: config.eval.batch_size],
        curve=lambda network: accuracy(network, curve_images, runtime),
        curve_name=f"accuracy on {curve_split} images",
        curve_size=len(curve_images),
        final=lambda network: {"accuracy": accuracy(network, test, runtime), "images": len(test)},
        final_size=len(test),
        quality=("accuracy",),
    )


def retrieval(config: SparsifyRunConfig, runtime: Runtime, resumed: Path | None = None) -> SparsifyProblem:
    """An embedder and its loss, measured by retrieval on classes that it was not trained on.

    Args:
        config: The settings.
        runtime: Device and precision.
        resumed: Folder of the search that is resumed, whose images are the recorded ones.
    """
    from hgsl.engine.retrieval import Retrieval  # imports faiss, which classification does not need

    training = Retrieval(config, runtime, resumed)
    # The epochs are scored on validation classes, if there are any.
    has_validation = config.data.val_share > 0 or config.data.val_fold is not None
    curve_split, size = "val" if has_validation else "test", config.data.image_size
    curve_size = len(training.images(curve_split))  # raises now if the split is empty
    problem = training.problem(measure_before=False)
    return SparsifyProblem(
        **{field.name: getattr(problem, field.name) for field in fields(problem)},
        example=torch.rand(config.eval.batch_size, 3, size, size, device=runtime.device),
        curve=lambda network: float(training.scores(network, curve_split)["map@r"]),
        curve_name=f"MAP@R on {curve_split} classes",
        curve_size=curve_size,
        final=lambda network: training.scores(network, "test"),
        final_size=len(training.images("test")),
        quality=("recall@1", "map@r"),
    )


PROBLEMS: dict[str, Callable[..., SparsifyProblem]] = {
    "classification": classification,
    "retrieval": retrieval,
}


def array_batches(part: ImageArray, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
    """Yields augmented batches from step ``start`` on, without end; a batch depends on its step and the seed alone."""
    steps = len(part) // batch_size
    step = start
    while True:
        epoch, position = divmod(step, steps)
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
        for number in range(position, steps):
            rows = order[number * batch_size : (number + 1) * batch_size]
            generator = torch.Generator().manual_seed(mixed_seed(seed, epoch, number))
            crops = draw_crops(batch_size, generator)
            # In one copy, which does not wait for the steps before.
            index, *drawn = _to_device(torch.stack([rows, *crops]), part.images.device)
            yield augment(part.images[index], drawn), part.labels[index], rows
        step = (epoch + 1) * steps


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


@torch.inference_mode()
def accuracy(network: nn.Module, part: ImageArray, runtime: Runtime, batch_size: int = 500) -> float:
    """Returns the share of the images that the network classifies correctly."""
    correct = 0
    with evaluation_mode(network):
        for images, labels in zip(part.images.split(batch_size), part.labels.split(batch_size), strict=True):
            with runtime.autocast():
                logits = network(runtime.prepare(images, channels_last=True))
            correct += int((logits.argmax(1) == labels).sum())
    return correct / len(part)


def _check_settings(config: SparsifyRunConfig) -> None:
    defaults = Config()
    for section, used in CLASSIFIER_SETTINGS.items():
        default_values = asdict(getattr(defaults, section))
        for name, value in asdict(getattr(config, section)).items():
            if name not in used and value != default_values[name]:
                raise InputError(
                    f"{section}.{name} {value!r} has no effect on sparsify.task classification: leave it out"
                )
    if config.model.weights != "none":
        raise InputError(
            f"model.weights {config.model.weights!r}: a classifier of CIFAR-10 starts untrained, set model.weights none"
        )


def _classifier_network(name: str, classes: int) -> nn.Module:
    if name == "resnet20":
        return resnet20(classes)
    if not timm.is_model(name):
        close = nearest(name, ["resnet20", *timm.list_models()])
        hint = f"did you mean {close!r}?" if close else "use resnet20, or one of timm.list_models()"
        raise InputError(f"unknown backbone of a classifier {name!r}: {hint}")
    return timm.create_model(name, num_classes=classes)


def _first_images(train: ImageArray, options: dict[str, Any]) -> ImageArray:
    """Keeps a random subset of ``train_images`` images, an option for reduced runs."""
    for name in options:
        if name != "train_images":
            raise unknown("option of data set cifar10", name, ["train_images"])
    count = options.get("train_images", len(train))
    if not isinstance(count, int) or not 0 < count <= len(train):
        raise InputError(f"data.options.train_images is {count!r}: expected 1 to {len(train)}")
    return hold_out(train, count / len(train), seed=1)[1]
