"""A training run from its settings to its report."""

import time
from pathlib import Path
from typing import Any

import torch
from torch.amp import GradScaler

from hgsl.common.files import write_json
from hgsl.config import Config
from hgsl.data import RetrievalDataset, summary
from hgsl.engine import run_folder
from hgsl.engine.build import (
    Place,
    build_eval_set,
    build_loss,
    build_manifest,
    build_model,
    build_place,
    build_train_set,
)
from hgsl.engine.checkpoint import load_state, save_state
from hgsl.engine.evaluate import evaluate
from hgsl.engine.loader import RunBatches, run_loader
from hgsl.engine.logging import MetricLog
from hgsl.engine.loop import Loop, LoopOptions, TrainState
from hgsl.engine.optim import create_optimizer, create_schedule, parameter_groups
from hgsl.evaluation import format_table
from hgsl.models import save_embedder


def train(
    config: Config, config_yaml: str, folder: Path, *, overwrite: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Trains, evaluates before and after on the searched classes, and writes the run folder.

    Nothing is written until the data, the model and the folder are known to be usable.

    Args:
        config: The settings.
        config_yaml: The same as text, written to the folder.
        folder: The run folder.
        overwrite: Whether an earlier run there may be replaced.
        resume: Go on with the run in ``folder`` from its last saved state.

    Returns:
        The report: ``before`` and ``after`` with the scores, the settings that decide them, and the versions.

    Raises:
        InputError: Settings, data or folder are not usable; the message says which and what to do.
        Stopped: A signal ended the run after its state was saved.
    """
    if not resume:
        run_folder.check_free(folder, overwrite=overwrite)
    started = time.perf_counter()
    place = build_place(config)
    torch.manual_seed(config.run.seed)
    manifest = build_manifest(config.data)
    print(summary(manifest), flush=True)
    model = build_model(config, place)
    train_set = build_train_set(config, manifest, model)
    test_set = build_eval_set(manifest, model, config.data.image_size)
    print(f"{config.model.backbone}, {config.model.pooling}, {model.embedding_size}-d, on {place}", flush=True)
    batches = RunBatches(len(train_set), config.train.batch_size, config.train.epochs, config.run.seed)
    state = _build_state(config, model, train_set, batches.steps_per_epoch, place)

    if resume:
        saved = load_state(folder / run_folder.STATE)
        state.load_state_dict(saved["train"])
        before = saved["before"]
        print(f"resuming at step {state.step} of {config.train.epochs * batches.steps_per_epoch}", flush=True)
    else:
        run_folder.create(folder, config_yaml, overwrite=overwrite)
        before = evaluate(model, test_set, config.eval, place) if config.eval.before else {}
    _fit(config, state, train_set, batches, place, folder, before)

    save_embedder(model, folder, image_size=config.data.image_size)
    after = evaluate(model, test_set, config.eval, place)
    report = {
        "before": before,
        "after": after,
        "seed": config.run.seed,
        "device": str(place.device),
        "precision": place.precision,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": run_folder.versions(),
    }
    write_json(folder / run_folder.REPORT, report)
    rows = {"before training": before, "after training": after} if before else {"after training": after}
    print(f"\n{after['num_queries']} queries, {after['num_gallery']} images, in percent")
    print(format_table(rows), flush=True)
    return report


def _build_state(
    config: Config, model: Any, train_set: RetrievalDataset, steps_per_epoch: int, place: Place
) -> TrainState:
    loss_fn = build_loss(config, train_set.num_classes, model.embedding_size, place)
    optimizer = create_optimizer(parameter_groups(model, loss_fn, config.optim), config.optim)
    schedule = create_schedule(optimizer, config.optim, config.train.epochs, steps_per_epoch)
    scaler = GradScaler(place.device.type, enabled=place.dtype == torch.float16)
    return TrainState(model, loss_fn, optimizer, schedule, scaler)


def _fit(
    config: Config,
    state: TrainState,
    train_set: RetrievalDataset,
    batches: RunBatches,
    place: Place,
    folder: Path,
    before: dict[str, Any],
) -> None:
    batches.start_step = state.step
    paths = dict(zip(train_set.ids.tolist(), train_set.manifest.paths, strict=True))
    options = LoopOptions(
        steps_per_epoch=batches.steps_per_epoch,
        epochs=config.train.epochs,
        accumulate=config.train.accumulate,
        clip=config.optim.clip,
        frozen=config.model.freeze,
        save_every=config.train.save_every,
    )
    loader = run_loader(train_set, batches, workers=place.workers, device=place.device)
    with MetricLog(folder, keep_steps=state.step) as log:
        loop = Loop(
            state,
            options,
            place,
            log,
            save=lambda: save_state(folder / run_folder.STATE, {"train": state.state_dict(), "before": before}),
            name_images=lambda ids: [paths[i] for i in ids.tolist()],
            folder=folder,
        )
        loop.run(iter(loader))
