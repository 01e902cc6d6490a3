"""Evaluation of the model of a run, or of a network without training, on the data set of the settings."""

from dataclasses import replace
from pathlib import Path

import torch
import yaml

from hgsl.common import ranks
from hgsl.config import Config
from hgsl.data import summary
from hgsl.engine.distributed import process_group
from hgsl.engine.evaluation.embedding import embed_data
from hgsl.engine.evaluation.evaluate import prepare, search
from hgsl.engine.evaluation.evaluation import Evaluation
from hgsl.engine.evaluation.options import EvalOptions
from hgsl.engine.parts.build import build_eval_set, build_manifest, build_model, move_to_device
from hgsl.engine.runtime import build_runtime
from hgsl.models import load_embedder


def evaluate_settings(config: Config, options: EvalOptions, checkpoint: str | None = None) -> Evaluation | None:
    """Evaluates the model in ``checkpoint``, or the network that the settings name, on the test split.

    Under torchrun every process calls this: each embeds its share of the images; the first one searches.

    Args:
        config: Settings of data, model, device and precision.
        options: Of these, device, dtype and number of reading processes are taken from the settings.
        checkpoint: Folder of a run.

    Returns:
        The evaluation; None in all processes but the first.
    """
    runtime = build_runtime(config)
    with process_group(runtime.device) as device:
        runtime = replace(runtime, device=device)
        options = replace(options, device=device, dtype=runtime.dtype, num_workers=runtime.workers)
        manifest = build_manifest(config.data)
        ranks.print_main(summary(manifest))
        if checkpoint:
            model, name = move_to_device(load_embedder(checkpoint), runtime), Path(checkpoint).resolve().name
        else:
            torch.manual_seed(config.run.seed)  # for what has no pretrained weights
            model, name = build_model(config, runtime), config.model.backbone
        images = {"test": build_eval_set(config.data, manifest, model)}
        for split, needed in (("train", options.whiten is not None), ("val", options.no_match is not None)):
            if needed:
                images[split] = build_eval_set(config.data, manifest, model, split)
        data = embed_data(
            model, images["test"], options, training=images.get("train"), validation=images.get("val"), name=name
        )
        source = {"checkpoint": checkpoint} if checkpoint else {"model": config.model.backbone}
        data = replace(data, facts={**data.facts, **source})
        if checkpoint and options.no_match is not None:
            data = data.with_note(_note_on_calibration(config, checkpoint))
        prepared = prepare(data, options)
        if not ranks.is_main():
            return None
    return search(*prepared, options)


def _note_on_calibration(config: Config, checkpoint: str) -> str | None:
    """The note for a calibration on classes that the run has trained on."""
    run = yaml.safe_load((Path(checkpoint) / "config.yaml").read_text(encoding="utf-8"))["data"]
    if (run.get("val_share") or 0, run.get("val_fold")) == (config.data.val_share, config.data.val_fold):
        return None
    return "no-match is calibrated on classes that the network was trained on: expect more false accepts than stated"
