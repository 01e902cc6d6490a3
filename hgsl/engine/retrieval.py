"""Training of an embedder for retrieval: its images, model, loss and scores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from hgsl.common import ranks
from hgsl.common.split_record import write_split_record
from hgsl.config import Config, DataConfig
from hgsl.data import Manifest, RetrievalDataset, summary
from hgsl.data.broken import skip_broken
from hgsl.data.categories import class_categories
from hgsl.data.run_split import record_of
from hgsl.engine.evaluation import EvalOptions, Evaluation, evaluate_model
from hgsl.engine.loop.loader import RunBatches, run_loader
from hgsl.engine.loop.train_state import Batch
from hgsl.engine.parts.build import build_eval_set, build_manifest, build_model, build_train_set
from hgsl.engine.parts.centers import class_vectors, nearest_similarity, start_centers, starts_at_means
from hgsl.engine.parts.distillation import Distillation
from hgsl.engine.parts.mode import build_mode
from hgsl.engine.parts.objective import build_objective, check_loss
from hgsl.engine.parts.optim import parameter_groups
from hgsl.engine.parts.run_images import images_of_resumed_run
from hgsl.engine.parts.teacher import Teacher
from hgsl.engine.parts.whitening import add_whitening
from hgsl.engine.problem import Problem
from hgsl.engine.runtime import Runtime
from hgsl.models import Embedder


def _first_manifest(data: DataConfig) -> Manifest:
    """The images of a new run, without broken ones if ``data.broken`` is skip."""
    manifest = build_manifest(data)
    return skip_broken(manifest) if data.broken == "skip" else manifest


class Retrieval:
    """The parts of a training for retrieval; building them reads everything and writes nothing.

    Args:
        config: The settings.
        runtime: Device and precision.
        resumed: Folder of the run that is resumed, whose images are the recorded ones.
    """

    def __init__(self, config: Config, runtime: Runtime, resumed: Path | None = None) -> None:
        self.config, self.runtime = config, runtime
        check_loss(config.loss)
        manifest = None if resumed is None else images_of_resumed_run(config.data, resumed)
        self.manifest: Manifest = manifest or _first_manifest(config.data)
        if config.train.select == "best":
            self.manifest.subset("val")  # raises before the model is built if there is none
        ranks.print_main(summary(self.manifest))
        self.model = build_model(config, runtime)
        self.train_set = build_train_set(config, self.manifest, self.model)
        self.mode = build_mode(config, self.model, runtime)
        classes, width = self.train_set.num_classes, self.model.embedding_size
        self.objective = build_objective(config.loss, classes, width)
        self.teacher = None
        if config.loss.teacher is not None:
            self.teacher = Teacher(config, self.manifest, runtime, self.model.data_config)
        if self.teacher:
            teacher_size, features = self.teacher.embedding_size, self.teacher.match_features(self.model)
            self.objective.distillation = Distillation(config.loss, width, teacher_size, self.teacher.id, features)
        self.objective.to(runtime.device)
        self.unlabeled_set = None
        if self.teacher and self.teacher.unlabeled:
            self.unlabeled_set = build_train_set(config, self.teacher.unlabeled, self.model, "all")
        plan = self.plan(config.run.seed, config.train.epochs)
        self.steps_per_epoch = plan.steps_per_epoch
        if plan.batch_size < config.train.batch_size:
            ranks.print_main(
                f"train.batch_size {config.train.batch_size} is more than the {len(self.train_set)} training images: "
                f"a step takes {plan.batch_size}"
            )
        image_sets = [part for part in (self.train_set, self.unlabeled_set) if part]
        self._names = {
            row: path for part in image_sets for row, path in zip(part.ids.tolist(), part.manifest.paths, strict=True)
        }
        self._inputs: dict[str, Any] = {}

    def problem(self, *, measure_before: bool) -> Problem:
        """Returns the problem that the driver trains.

        Args:
            measure_before: Whether the model is evaluated on the test classes before training.
        """
        return Problem(
            model=self.model,
            network=self.mode.view(self.model),
            objective=self.objective,
            start=lambda: self.start(measure_before),
            steps_per_epoch=self.steps_per_epoch,
            batches=self.batches,
            groups=lambda: parameter_groups(self.model, self.objective, self.config.optim),
            name_images=self.name_images,
            split=self._identity(),
            evaluation_batch=self.evaluation_batch,
            start_size=self._start_size(measure_before),
            teacher=self.teacher,
            record_split=lambda folder: write_split_record(folder, record_of(self.manifest)),
        )

    def start(self, measure_before: bool) -> dict[str, Any]:
        """Initializes projection and centers, and returns the scores before training, or {}."""
        plain = self.inputs("train")
        self.mode.start(self.model, plain)
        before = self.scores(self.model, "test") if measure_before else {}
        view, batch_size = self.mode.single_view(self.model), self.config.eval.batch_size
        start_centers(self.objective.loss_fn, self.config.loss, view, plain, self.runtime, batch_size)
        return before

    def batches(self, seed: int, start: int, epochs: int) -> Iterator[Batch]:
        """The batches of a stage of ``epochs`` from step ``start`` on."""
        if self.teacher:
            self.teacher.prepare()
        plan = self.plan(seed, epochs)
        plan.start_step = start
        images: Any = self.mode.training_inputs(self.train_set, lambda: self.inputs("train"))
        if self.unlabeled_set:
            images = ConcatDataset([images, self.unlabeled_set])
        return iter(run_loader(images, plan, workers=self.mode.loader_workers, device=self.runtime.device))

    def images(self, split: str, image_size: int | None = None) -> RetrievalDataset:
        """The images of a split, transformed as in an evaluation, of the size of test images by default."""
        return build_eval_set(self.config.data, self.manifest, self.model, split, image_size=image_size)

    def evaluation_batch(self) -> Tensor:
        """A batch of training images, transformed as in an evaluation."""
        images = self.images("train")
        return torch.stack([images[row][0] for row in range(min(self.config.eval.batch_size, len(images)))])

    def inputs(self, split: str) -> Any:
        """The split as the model consumes it: images, or cached features in head mode.

        Those of "train" are of the training size and of one view; the others are those of an evaluation.
        """
        if split not in self._inputs:
            training = split == "train"
            images = self.images(split, self.config.data.image_size if training else None)
            self._inputs[split] = self.mode.inputs(self.model, images, views=not training)
        return self._inputs[split]

    def whiten(self, model: Embedder) -> None:
        """Fits the whitening of the settings, if there is one, on training images as in an evaluation."""
        if self.config.eval.whiten is not None:
            images = self.mode.inputs(self.model, self.images("train"), views=True)
            add_whitening(model, self.mode.view(model), images, self.config.eval, self.runtime)

    def scores(self, model: Embedder, split: str) -> dict[str, Any]:
        """Evaluates ``model`` on a split and returns the entries of a report."""
        return self.evaluation(model, split).summary()

    def evaluation(self, model: Embedder, split: str) -> Evaluation:
        """Evaluates ``model`` on a split."""
        options = EvalOptions.of_training(self.config.eval, self.runtime)
        return evaluate_model(self.mode.view(model), self.inputs(split), options)

    def center_similarity(self) -> float | None:
        """Mean cosine of a class center to the nearest other; None without centers, or with fewer than two."""
        classes, width = self.train_set.num_classes, self.model.embedding_size
        centers = class_vectors(self.objective.loss_fn, classes, width)
        return None if centers is None else nearest_similarity(centers)

    def name_images(self, ids: Tensor) -> list[str]:
        """Paths of a batch's images."""
        return [self._names[row] for row in ids.tolist()]

    def _start_size(self, measure_before: bool) -> int:
        """The number of images that :meth:`start` embeds."""
        tested = int(np.count_nonzero(self.manifest.split == "test")) if measure_before else 0
        classes = self.train_set.num_classes
        return tested + (len(self.train_set) if starts_at_means(self.config.loss, classes) else 0)

    def _identity(self) -> str:
        """Hash of the images, and of the unlabeled ones if there are any."""
        manifest = self.manifest.take(np.flatnonzero(self.manifest.split != ""))  # skipped images may change
        images = [manifest, *([self.unlabeled_set.manifest] if self.unlabeled_set else [])]
        return " and ".join(part.split_hash for part in images)

    def plan(self, seed: int, epochs: int) -> RunBatches:
        """The batches of ``epochs`` as rows of the training images, and of those without labels after them."""
        batch_size, data = self.config.train.batch_size, self.config.data
        unlabeled = len(self.unlabeled_set) if self.unlabeled_set else 0
        categories = class_categories(self.train_set) if data.sampler == "category" else None
        return RunBatches(
            self.train_set.labels, batch_size, epochs, seed, data.sampler, data.per_class, unlabeled, categories
        )
