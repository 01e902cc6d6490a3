"""A training run from its settings to its report."""

import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.files import write_json
from hgsl.common.random_state import seed_all
from hgsl.config import Config
from hgsl.data import Manifest, RetrievalDataset, summary
from hgsl.engine.distributed import process_group
from hgsl.engine.evaluation import evaluate, measure, report_of
from hgsl.engine.folder import run_folder
from hgsl.engine.folder.checkpoint import keep_states, load_state, save_state
from hgsl.engine.folder.logging import MetricLog, read_metrics
from hgsl.engine.folder.summary import print_summary, training_facts, write_queries
from hgsl.engine.loop.loader import RunBatches, run_loader
from hgsl.engine.loop.loop import Loop, LoopOptions, TrainState
from hgsl.engine.loop.selection import BestEpoch
from hgsl.engine.loop.state import build_state
from hgsl.engine.parts.build import Runtime, build_eval_set, build_manifest, build_model, build_runtime, build_train_set
from hgsl.engine.parts.centers import class_vectors, nearest_similarity, start_centers
from hgsl.engine.parts.head import Head, PooledSet, pooled_set, start_at_principal_axes
from hgsl.engine.parts.masking import mask_backbone
from hgsl.models import Embedder, save_embedder

PAGE_QUERIES = 20_000  # more make a page of tens of megabytes, and a second search that takes minutes


def train(
    config: Config, config_yaml: str, folder: Path, *, overwrite: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Trains, evaluates before and after on the searched classes, and writes the run folder.

    Nothing is written until the data, the model and the folder are known to be usable. Under torchrun every process
    calls this, and the first one prints and writes.

    Args:
        config: The settings.
        config_yaml: The same as text, written to the folder.
        folder: The run folder.
        overwrite: Whether an earlier run there may be replaced.
        resume: Go on with the run in ``folder`` from its last saved state; a finished run is only reported.

    Returns:
        The report: ``before`` and ``after`` with the scores, the settings that decide them, and the versions.

    Raises:
        InputError: Settings, data or folder are not usable; the message says which and what to do.
        Stopped: A signal ended the run after its state was saved.
    """
    if resume and (finished := run_folder.finished_report(folder, config_yaml)):
        ranks.print_main(f"{folder} is finished:")
        print_summary(folder, finished)
        return finished
    if resume:
        run_folder.check_same(folder, config_yaml)
    else:
        run_folder.check_free(folder, overwrite=overwrite)
    runtime = build_runtime(config)
    with ExitStack() as stack:
        runtime = replace(runtime, device=stack.enter_context(process_group(runtime.device)))
        seed_all(config.run.seed)
        run = Run(config, folder, runtime)
        if ranks.is_main():
            stack.enter_context(run_folder.locked(folder))
            if not resume:
                run_folder.create(folder, config_yaml, overwrite=overwrite)
        saved = load_state(folder / run_folder.STATE) if resume else None
        try:
            return run.to_the_end(saved)
        except (RuntimeError, EOFError, ConnectionError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            # The loader's handler would raise again for each of its other workers, while they are being shut down.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise InputError(
                "a worker process that reads images was killed, often by the system for lack of memory: "
                "--resume goes on from the last save, a smaller data.workers needs less memory"
            ) from None


class Run:
    """The parts of one run: building them reads everything and writes nothing."""

    def __init__(self, config: Config, folder: Path, runtime: Runtime) -> None:
        self.config, self.folder, self.runtime = config, folder, runtime
        self.started = time.perf_counter()
        self.manifest: Manifest = build_manifest(config.data)
        ranks.print_main(summary(self.manifest))
        self.model = build_model(config, runtime)
        self.masks = mask_backbone(self.model, config.sparsify)
        self.train_set = build_train_set(config, self.manifest, self.model)
        self.test_images = self._images("test")
        ranks.print_main(
            f"{config.model.backbone}, {config.model.pooling}, {self.model.embedding_size}-d, on {runtime}"
        )
        data, steps = config.data, config.train
        self.batches = RunBatches(
            self.train_set.labels, steps.batch_size, steps.epochs, config.run.seed, data.sampler, data.per_class
        )
        classes = self.train_set.num_classes
        steps_per_epoch = self.batches.steps_per_epoch
        self.state: TrainState = build_state(config, self.model, classes, steps_per_epoch, runtime, self.masks)

    def to_the_end(self, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Trains from the beginning, or from ``saved``, and returns the report."""
        config, state = self.config, self.state
        test_set = self._searched(self.test_images)
        if saved:
            self._check_same_images(saved["split"])
            state.load_state_dict(saved["train"])
            before = saved["before"]
            self.started -= saved["seconds"]
            ranks.print_main(f"resuming at step {state.step} of {config.train.epochs * self.batches.steps_per_epoch}")
        else:
            if isinstance(self._train_view, PooledSet):
                start_at_principal_axes(self.model, self._train_view.features)
                if state.ema:
                    state.ema.set(self.model)
            before = self._scores(test_set) if config.eval.before else {}
            loss_fn, view = state.objective.loss_fn, self._view(self.model)
            start_centers(loss_fn, config.loss, view, self._train_view, self.runtime, config.eval.batch_size)
        best = self._best_epoch(test_set)
        self._fit(before, best)
        if best:
            best.restore()
        trained = self._trained()
        task, result = measure(self._view(trained), test_set, config.eval, self.runtime)
        records = read_metrics(self.folder / run_folder.METRICS) if ranks.is_main() else []
        report = {
            "before": before,
            "after": self._with_notes(report_of(result, test_set.manifest)),
            "selection": {"epoch_chosen": config.train.select, **state.best},
            "training": training_facts(records, self.batches.steps_per_epoch),
            "seed": config.run.seed,
            "device": str(self.runtime.device),
            "precision": self.runtime.precision,
            "processes": ranks.world_size(),
            "seconds": round(time.perf_counter() - self.started, 1),
            "versions": run_folder.versions(),
        }
        if ranks.is_main():
            save_embedder(trained, self.folder)
            write_queries(self.folder, result)
            if config.eval.page and result.num_queries > PAGE_QUERIES:
                ranks.print_main(
                    f"no {run_folder.PAGE} for {result.num_queries:,} queries: eval_retrieval.py --html writes it"
                )
            elif config.eval.page:
                from hgsl.engine.folder.page import write_page  # brings scikit-learn, which takes seconds to load

                write_page(self.folder, report, records, task, result, self.test_images)
            write_json(self.folder / run_folder.REPORT, report)
        print_summary(self.folder, report)
        return report

    def _check_same_images(self, begun: str) -> None:
        if begun != self.manifest.split_hash:
            raise InputError(
                f"the images in {self.manifest.root} are not those that the run began with (split "
                f"{self.manifest.split_hash}, then {begun}): put them back, or start again with --overwrite"
            )

    def _trained(self) -> Embedder:
        """What training leaves: the model, or the mean of its weights, with closed weights set to zero."""
        if self.masks is None:
            return self.state.final_model
        self.masks.ticket = True
        return cast(Embedder, self.masks.finalize())

    def _fit(self, before: dict[str, Any], best: BestEpoch | None) -> None:
        config, state, batches = self.config, self.state, self.batches
        batches.start_step = state.step
        paths = dict(zip(self.train_set.ids.tolist(), self.train_set.manifest.paths, strict=True))
        options = LoopOptions(
            steps_per_epoch=batches.steps_per_epoch,
            epochs=config.train.epochs,
            accumulate=config.train.accumulate,
            clip=config.optim.clip,
            frozen=config.model.freeze,
            save_every=config.train.save_every,
        )

        def save() -> None:
            content = {
                "train": state.state_dict(),  # sharded centers are gathered: by all processes
                "before": before,
                "seconds": time.perf_counter() - self.started,
                "split": self.manifest.split_hash,
            }
            if ranks.is_main():
                path = self.folder / run_folder.STATE
                save_state(path, content)
                keep_states(path, self.folder / run_folder.STATES, state.step, config.train.keep)

        workers = self.runtime.workers
        images: RetrievalDataset | PooledSet = self.train_set
        if config.train.mode == "head":
            images, workers = self._train_view, 0  # reading a row takes less than handing it over
        loader = run_loader(images, batches, workers=workers, device=self.runtime.device)
        with ExitStack() as stack:
            log = stack.enter_context(MetricLog(self.folder, keep_steps=state.step)) if ranks.is_main() else None
            Loop(
                state,
                options,
                self.runtime,
                log,
                after_epoch=lambda epoch: {**self._watched(), **(best(epoch) if best else {})},
                save=save,
                name_images=lambda ids: [paths[i] for i in ids.tolist()],
                folder=self.folder,
            ).run(iter(loader))

    def _watched(self) -> dict[str, float]:
        """What is worth knowing of the state after an epoch."""
        found = {}
        classes, width = self.train_set.num_classes, self.model.embedding_size
        centers = class_vectors(self.state.objective.loss_fn, classes, width)
        if centers is not None:
            found["center_similarity"] = nearest_similarity(centers if centers.shape[1] == width else centers.T)
        if self.masks:
            found |= {"density": self.masks.density(), "temperature": self.masks.temperature}
        return found

    def _best_epoch(self, test_set: RetrievalDataset | PooledSet) -> BestEpoch | None:
        select = self.config.train.select
        if select == "last":
            return None
        chooser = test_set if select == "best_on_test" else self._searched(self._images("val"))
        return BestEpoch(self.state, lambda: self._scores(chooser), self.folder)

    def _images(self, split: str) -> RetrievalDataset:
        return build_eval_set(self.config.data, self.manifest, self.model, split)

    def _searched(self, images: RetrievalDataset) -> RetrievalDataset | PooledSet:
        """The images as the model that is searched with takes them: their pooled features, where only a head trains."""
        if self.config.train.mode == "full":
            return images
        return pooled_set(self.model, images, self.config, self.runtime)

    @cached_property
    def _train_view(self) -> RetrievalDataset | PooledSet:
        """The training images without augmentation, as ``_searched`` gives them: looked up once, for all who ask."""
        return self._searched(self._images("train"))

    def _view(self, model: Embedder) -> Embedder | Head:
        return Head(model) if self.config.train.mode == "head" else model

    def _scores(self, dataset: RetrievalDataset | PooledSet) -> dict[str, Any]:
        found = evaluate(self._view(self.state.final_model), dataset, self.config.eval, self.runtime)
        return self._with_notes(found)

    def _with_notes(self, scores: dict[str, Any]) -> dict[str, Any]:
        if self.config.train.select == "best_on_test":
            note = "the epoch was chosen on these very images, so the score is too high"
            return {**scores, "notes": [*scores["notes"], note]}
        return scores
