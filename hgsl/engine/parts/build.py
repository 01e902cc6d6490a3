"""Construction of data sets and model from the settings of a run."""

from dataclasses import asdict
from pathlib import Path

import torch
from timm.layers import convert_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm

from hgsl.common.augmentation import Augmentation
from hgsl.common.errors import InputError, unknown
from hgsl.common.modules import evaluation_mode
from hgsl.common.ranks import world_size
from hgsl.config import Config, DataConfig
from hgsl.data import (
    SAMPLERS,
    Manifest,
    RetrievalDataset,
    check_options,
    default_cache_dir,
    list_images,
    load_manifest,
    train_transform,
    verify_files,
)
from hgsl.engine.parts.freeze import freeze, freeze_depth
from hgsl.engine.runtime import Runtime
from hgsl.models import Embedder, create_embedder
from hgsl.models.image_size import check_image_size
from hgsl.models.lora import add_lora


def build_manifest(settings: DataConfig) -> Manifest:
    """Lists the images and checks that their files exist; names in the settings are checked before any file is read."""
    if settings.sampler not in SAMPLERS:
        raise unknown("data.sampler", settings.sampler, SAMPLERS)
    check_options(settings.name, settings.options, source="data.options")
    manifest = load_manifest(
        settings.name,
        settings.root,
        settings.protocol,
        test_share=settings.test_share,
        val_share=settings.val_share,
        val_fold=settings.val_fold,
        crop_to_boxes=settings.crop_to_boxes,
        **settings.options,
    )
    verify_files(manifest)
    return manifest


def list_run_images(settings: DataConfig) -> Manifest:
    """Lists the images without a split, for a run that has recorded its own."""
    check_options(settings.name, settings.options, source="data.options")
    return list_images(settings.name, settings.root, **settings.options)


def build_model(config: Config, runtime: Runtime) -> Embedder:
    """Builds the embedder on its device, with the frozen parts of the settings and its best memory format.

    Raises:
        InputError: Also if the backbone does not support images of this size.
    """
    settings = config.model
    model = create_embedder(
        settings.backbone,
        settings.pooling,
        settings.embedding_size,
        settings.weights,
        settings.output_stride,
        config.data.image_size,
    )
    if config.data.crop_pct is not None:
        model.data_config["crop_pct"] = config.data.crop_pct  # saved with the model, for later evaluations
    use_test_settings(model, config)
    freeze(model, settings.freeze)
    freeze_depth(model, settings.freeze_depth)
    if settings.lora.rank:
        if settings.freeze != "batch_norm" and any(isinstance(m, _BatchNorm) for m in model.backbone.modules()):
            raise InputError(
                "model.lora leaves the backbone's weights as they are, but its batch norms would change their "
                "statistics: set model.freeze batch_norm"
            )
        add_lora(model, settings.lora.rank, settings.lora.alpha, settings.lora.targets)
    move_to_device(model, runtime)
    freeze_unused(model)
    if settings.checkpointing:
        _check_checkpointing(model, settings.freeze)
        model.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    if settings.sync_bn and world_size() > 1 and runtime.device.type == "cuda":
        model.backbone = convert_sync_batchnorm(model.backbone)
    return model


def use_test_settings(model: Embedder, config: Config) -> None:
    """Sets image size and views of an evaluation, which are saved with the model.

    Raises:
        InputError: The backbone does not take images of a size.
    """
    side = config.eval.side(config.data.image_size)
    if side != model.data_config["image_size"]:
        check_image_size(model, side, f"eval.image_size {config.eval.image_size}")
        model.data_config["image_size"] = side
    model.set_views(flip=config.eval.flip, scales=config.eval.scales)


def freeze_unused(model: Embedder) -> None:
    """Freezes the parameters that no embedding depends on, such as those before a classifier that was removed.

    They would get no gradient, for which DistributedDataParallel would wait.
    """
    side = model.data_config["image_size"]
    if parameters := [parameter for parameter in model.parameters() if parameter.requires_grad]:
        with evaluation_mode(model):  # one view: the others depend on the same parameters
            embedding = model.head(model.pooled(torch.zeros(1, 3, side, side, device=parameters[0].device)))
        gradients = torch.autograd.grad(embedding.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)


def _check_checkpointing(model: Embedder, frozen: str) -> None:
    has_batch_norm = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.backbone.modules())
    if has_batch_norm and frozen not in ("batch_norm", "backbone"):
        raise InputError(
            "model.checkpointing computes activations twice, and batch norms would count every image twice in their "
            "statistics: freeze them with model.freeze batch_norm, or leave out model.checkpointing"
        )


def move_to_device(model: Embedder, runtime: Runtime) -> Embedder:
    """Moves the model to its device, in the memory format that is fastest there."""
    if model.prefers_channels_last(runtime.device):
        model.to(memory_format=torch.channels_last)
    return model.to(runtime.device)


def build_train_set(config: Config, manifest: Manifest, model: Embedder, split: str = "train") -> RetrievalDataset:
    """The training images, or those of another split, augmented."""
    data = config.data
    augmentation = Augmentation(**asdict(data.augment))
    transform = train_transform(
        model.data_config, data.image_size, data.recipe, scale=data.crop_scale, augmentation=augmentation
    )
    return RetrievalDataset(manifest.subset(split), transform, _cache_dir(data))


def build_eval_set(
    data: DataConfig, manifest: Manifest, model: Embedder, split: str = "test", *, image_size: int | None = None
) -> RetrievalDataset:
    """The images of a split, transformed as in an evaluation, at the size of test images by default."""
    return RetrievalDataset(manifest.subset(split), model.transform(image_size=image_size), _cache_dir(data))


def _cache_dir(data: DataConfig) -> Path | None:
    return default_cache_dir() if data.cache == "resized" else None
