"""What the search for tickets needs to know of a task: a network, its loss, its batches and its scores."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from hgsl.common import ranks
from hgsl.common.errors import InputError, nearest, unknown
from hgsl.common.modules import evaluation_mode
from hgsl.config import Config, SparsifyRunConfig
from hgsl.data import RetrievalDataset, default_root, summary
from hgsl.data.cifar10 import MEAN, STD, ImageArray, augment, hold_out, load_cifar10
from hgsl.engine.loop.loader import RunBatches, mixed_seed, run_loader
from hgsl.engine.loop.loop import Batch
from hgsl.engine.parts.build import Runtime, build_eval_set, build_manifest, build_model, build_train_set
from hgsl.engine.parts.objective import Objective, build_objective
from hgsl.engine.parts.optim import parameter_groups
from hgsl.models import Embedder
from hgsl.models.resnet_cifar import resnet20

# What a classifier goes by, besides all of run and sparsify; the other settings are for images that are searched.
CLASSIFIER_SETTINGS = {
    "data": ("name", "root", "options", "val_share", "workers"),
    "model": ("backbone", "weights"),
    "loss": (),
    "optim": (
        *("name", "lr", "weight_decay", "momentum", "nesterov"),
        *("schedule", "warmup", "step_epochs", "step_factor", "clip"),
    ),
    "train": ("epochs", "batch_size", "accumulate", "ema", "save_every", "keep"),
}


@dataclass(frozen=True)
class SparsifyProblem:
    """A network to make sparse, and how it is trained and measured.

    Attributes:
        model: On its device; untrained, or with the weights it starts from.
        example: A batch of inputs for tracing and for measuring time.
        objective: What (outputs, labels) are scored by in training.
        start: Sets the objective up for the network, before the first step of all.
        steps_per_epoch: Batches in an epoch.
        batches: (number of the stage, first step) -> the batches of the stage from there on.
        groups: network -> parameter groups with their learning rates.
        curve: network -> the score that is drawn epoch by epoch, in [0, 1].
        curve_name: What that score is, and of which images.
        final: network -> all scores on the test images.
        quality: Which of these stand in the table of costs.
        name_images: Ids of a batch -> names, for an error message.
    """

    model: "Embedder | Classifier"
    example: Tensor
    objective: Objective
    start: Callable[[nn.Module], None]
    steps_per_epoch: int
    batches: Callable[[int, int], Iterator[Batch]]
    groups: Callable[[nn.Module], list[dict[str, Any]]]
    curve: Callable[[nn.Module], float]
    curve_name: str
    final: Callable[[nn.Module], dict[str, Any]]
    quality: tuple[str, ...]
    name_images: Callable[[Tensor], list[str]]


class Classifier(nn.Module):
    """Takes images as bytes, ``(B, 3, H, W)`` uint8, to logits ``(B, classes)``: normalization is a part of it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.is_convolutional = True
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images.to(self.mean.dtype) / 255 - self.mean) / self.std)


def classification(config: SparsifyRunConfig, runtime: Runtime) -> SparsifyProblem:
    """CIFAR-10: the cross entropy of a small ResNet, or of any timm model, on images in memory.

    Raises:
        InputError: Also if a setting is given that a classifier does not go by.
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
    batch_size, seed = config.train.batch_size, config.run.seed
    if len(train) < batch_size:
        raise InputError(f"train.batch_size {batch_size} is more than the {len(train)} training images")
    drawn, drawn_name = (held_out, "held-out") if len(held_out) else (test, "test")
    return SparsifyProblem(
        model=model,
        example=test.images[: config.eval.batch_size],
        objective=Objective(nn.CrossEntropyLoss()),
        start=lambda network: None,
        steps_per_epoch=len(train) // batch_size,
        batches=lambda stage, start: array_batches(train, batch_size, mixed_seed(seed, stage), start),
        groups=lambda network: [
            {"name": "weights", "params": [p for p in network.parameters() if p.requires_grad], "lr": config.optim.lr}
        ],
        curve=lambda network: accuracy(network, drawn, runtime),
        curve_name=f"accuracy on {drawn_name} images",
        final=lambda network: {"accuracy": accuracy(network, test, runtime), "images": len(test)},
        quality=("accuracy",),
        name_images=lambda ids: [f"training image {row}" for row in ids.tolist()],
    )


def retrieval(config: SparsifyRunConfig, runtime: Runtime) -> SparsifyProblem:
    """An embedder and its loss, measured by searching classes that it never saw."""
    manifest = build_manifest(config.data)
    ranks.print_main(summary(manifest))
    model = build_model(config, runtime)
    train_set = build_train_set(config, manifest, model)
    sets = {split: build_eval_set(config.data, manifest, model, split) for split in _splits(config)}
    names = dict(zip(train_set.ids.tolist(), train_set.manifest.paths, strict=True))
    objective = build_objective(config.loss, train_set.num_classes, model.embedding_size).to(runtime.device)

    def plan(stage: int) -> RunBatches:
        steps, data, seed = config.train, config.data, mixed_seed(config.run.seed, stage)
        return RunBatches(train_set.labels, steps.batch_size, steps.epochs, seed, data.sampler, data.per_class)

    def batches(stage: int, start: int) -> Iterator[Batch]:
        stream = plan(stage)
        stream.start_step = start
        return iter(run_loader(train_set, stream, workers=runtime.workers, device=runtime.device))

    def start(network: nn.Module) -> None:
        from hgsl.engine.parts.centers import (
            start_centers,  # brings the search library, which classification does without
        )

        images = build_eval_set(config.data, manifest, model, "train")
        embedder, batch = cast(Embedder, network), config.eval.batch_size
        start_centers(objective.loss_fn, config.loss, embedder, images, runtime, batch)

    def scores(network: nn.Module, dataset: RetrievalDataset) -> dict[str, Any]:
        from hgsl.engine.evaluation import evaluate  # as above

        return evaluate(network, dataset, config.eval, runtime)

    size = config.data.image_size
    return SparsifyProblem(
        model=model,
        example=torch.rand(config.eval.batch_size, 3, size, size, device=runtime.device),
        objective=objective,
        start=start,
        steps_per_epoch=plan(0).steps_per_epoch,
        batches=batches,
        groups=lambda network: parameter_groups(network, objective, config.optim),  # type: ignore[arg-type]
        curve=lambda network: float(scores(network, next(iter(sets.values())))["map@r"]),
        curve_name=f"MAP@R on {next(iter(sets))} classes",
        final=lambda network: scores(network, sets["test"]),
        quality=("recall@1", "map@r"),
        name_images=lambda ids: [names[row] for row in ids.tolist()],
    )


PROBLEMS: dict[str, Callable[[SparsifyRunConfig, Runtime], SparsifyProblem]] = {
    "classification": classification,
    "retrieval": retrieval,
}


def array_batches(part: ImageArray, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
    """Yields augmented batches from step ``start`` on, without end; any step can be reached again by its number."""
    steps = len(part) // batch_size
    step = start
    while True:
        epoch, position = divmod(step, steps)
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
        for number in range(position, steps):
            rows = order[number * batch_size : (number + 1) * batch_size]
            here = rows.to(part.images.device)
            generator = torch.Generator().manual_seed(mixed_seed(seed, epoch, number))
            yield augment(part.images[here], generator), part.labels[here], rows
        step = (epoch + 1) * steps


@torch.inference_mode()
def accuracy(network: nn.Module, part: ImageArray, runtime: Runtime, batch_size: int = 500) -> float:
    """Returns the share of the images that the network classifies rightly."""
    right = 0
    with evaluation_mode(network):
        for images, labels in zip(part.images.split(batch_size), part.labels.split(batch_size), strict=True):
            with runtime.autocast():
                logits = network(runtime.prepare(images, channels_last=True))
            right += int((logits.argmax(1) == labels).sum())
    return right / len(part)


def _check_settings(config: SparsifyRunConfig) -> None:
    usual = Config()
    for section, used in CLASSIFIER_SETTINGS.items():
        for name, value in asdict(getattr(config, section)).items():
            if name not in used and value != getattr(getattr(usual, section), name):
                raise InputError(
                    f"{section}.{name} {value!r} does nothing for sparsify.task classification: leave it out"
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
    """Keeps a random ``train_images`` of the images, where that option asks for a reduced run."""
    for name in options:
        if name != "train_images":
            raise unknown("option of data set cifar10", name, ["train_images"])
    count = options.get("train_images", len(train))
    if not isinstance(count, int) or not 0 < count <= len(train):
        raise InputError(f"data.options.train_images is {count!r}: expected 1 to {len(train)}")
    return hold_out(train, count / len(train), seed=1)[1]


def _splits(config: Config) -> list[str]:
    """The split whose score is drawn by epoch comes first: validation classes, if there are any."""
    has_validation = config.data.val_share > 0 or config.data.val_fold is not None
    return ["val", "test"] if has_validation else ["test"]
