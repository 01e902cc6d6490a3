"""Evaluation of the model of a run, or of a network without training, on the data set of the settings."""

from dataclasses import replace
from pathlib import Path

import torch

from hgsl.common import ranks
from hgsl.common.device import dtype_name
from hgsl.common.memory import named_memory_errors
from hgsl.common.workers import named_worker_errors
from hgsl.config import Config
from hgsl.data import summary
from hgsl.engine.distributed import process_group
from hgsl.engine.evaluation.embedding import embed_data
from hgsl.engine.evaluation.evaluate import prepare, search
from hgsl.engine.evaluation.evaluation import Evaluation
from hgsl.engine.evaluation.options import EvalOptions
from hgsl.engine.loop.validation import CHOSEN_ON_TEST
from hgsl.engine.parts.build import (
    build_eval_set,
    build_manifest,
    build_model,
    move_to_device,
)
from hgsl.engine.parts.run_images import RunImages, images_of_run
from hgsl.engine.runtime import agree_on_precision, build_runtime
from hgsl.models import Embedder, load_embedder
from hgsl.models.image_size import check_image_size

MEMORY_ADVICE = "lower eval.batch_size"
WORKER_ADVICE = "run the command again; a smaller data.workers needs less memory"
CALIBRATED_ON_TRAINED = (
    "no-match is calibrated on classes that the network was trained on: expect more false accepts than stated"
)


def evaluate_settings(config: Config, options: EvalOptions, checkpoint: str | None = None) -> Evaluation | None:
    """Evaluates the model in ``checkpoint``, or the network that the settings name, on the test split.

    Under torchrun every process calls this: each embeds its share of the images; the first one searches.

    Args:
        config: Settings of data, model, device and precision.
        options: Device, dtype and number of loader processes are taken from the settings.
        checkpoint: Folder of a run.

    Returns:
        The evaluation; None in all processes but the first.
    """
    runtime = build_runtime(config)
    with (
        process_group(runtime.device) as device,
        runtime.float32_products(),
        named_memory_errors(MEMORY_ADVICE),
        named_worker_errors(WORKER_ADVICE),
    ):
        runtime = agree_on_precision(replace(runtime, device=device))
        options = replace(options, device=device, dtype=runtime.dtype, num_workers=runtime.workers)
        if checkpoint:
            used = options.no_match is not None or options.whiten is not None
            run = images_of_run(config.data, Path(checkpoint), validation=used)
        else:
            run = RunImages(build_manifest(config.data))
        manifest = run.manifest
        run.print_notes()
        ranks.print_main(summary(manifest))
        if checkpoint:
            model, name = load_embedder(checkpoint), Path(checkpoint).resolve().name
            note = _use_preprocessing(config, model)
            model = move_to_device(model, runtime)
        else:
            torch.manual_seed(config.run.seed)  # for layers without pretrained weights
            model, name, note = build_model(config, runtime), config.model.backbone, None
        images = {"test": build_eval_set(config.data, manifest, model)}
        for split, needed in (("train", options.whiten is not None), ("val", options.no_match is not None)):
            if needed:
                images[split] = build_eval_set(config.data, manifest, model, split)
        data = embed_data(
            model, images["test"], options, training=images.get("train"), validation=images.get("val"), name=name
        )
        source = {"checkpoint": checkpoint} if checkpoint else {"model": config.model.backbone}
        computed = {"device": str(device), "precision": dtype_name(runtime.dtype)}
        metadata = {**data.metadata, **source, **computed, **run.metadata(data.metadata["notes"])}
        data = replace(data, metadata=metadata).with_note(note)
        if checkpoint and config.train.select == "best_on_test" and run.shares_test_images():
            data = data.with_note(CHOSEN_ON_TEST)
        if options.no_match is not None and run.trained_validation():
            data = data.with_note(CALIBRATED_ON_TRAINED)
        prepared = prepare(data, options)
        if not ranks.is_main():
            return None
    return search(*prepared, options)


def _use_preprocessing(config: Config, model: Embedder) -> str | None:
    """Sets size, crop and views of the model to the settings; returns a note if they differ from the saved ones."""
    changed: list[str] = []
    sizes = {"image_size": config.eval.side(config.data.image_size), "crop_pct": config.data.crop_pct}
    for key, value in sizes.items():
        saved = model.data_config[key]
        if value is not None and value != saved:
            model.data_config[key] = value
            changed.append(f"{key} {value} (saved with {saved})")
    check_image_size(model)
    flip, scales = config.eval.flip, config.eval.scales
    for key, view in {"flip": flip, "scales": scales}.items():
        if view != model.architecture[key]:
            changed.append(f"{key} {view} (saved with {model.architecture[key]})")
    model.set_views(flip=flip, scales=scales)
    return f"evaluated with {', '.join(changed)}" if changed else None
