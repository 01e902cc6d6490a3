"""Settings that have no effect in combination with others: refused on the command line.

A recipe may contain them, since a flag may change the other setting.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from hgsl.common.errors import InputError
from hgsl.config import Config, SparsifyConfig, SparsifyRunConfig

# Settings of HardGlobalSoftminLoss alone; loss.options holds those of any other.
LOSS_SETTINGS = (
    *("top_k", "hard_set", "alpha", "learnable_scale", "decorrelation", "margin", "both_sides", "similarity"),
    "centers",
)
# Settings, the condition under which they have no effect, and its description.
Rule = tuple[tuple[str, ...], Callable[[Any], bool], str]
RULES: tuple[Rule, ...] = (
    (("data.per_class",), lambda c: c.data.sampler in ("random", "class_balanced"), "data.sampler {data.sampler}"),
    (("data.crop_scale",), lambda c: c.data.recipe == "resize_random_crop", "data.recipe {data.recipe}"),
    (("optim.step_factor",), lambda c: c.optim.schedule in ("cosine", "constant"), "optim.schedule {optim.schedule}"),
    (("optim.scale_lr",), lambda c: not c.loss.learnable_scale, "loss.learnable_scale false"),
    (
        ("data.crop_scale", "data.recipe", "data.augment.", "optim.lr", "model.freeze"),
        lambda c: c.train.mode == "head",
        "train.mode head, which trains on features of unaugmented images",
    ),
    (("optim.lr", "optim.layer_decay"), lambda c: c.model.freeze == "backbone", "model.freeze backbone"),
    (("run.autotune", "run.cuda_graphs"), lambda c: c.run.device in ("cpu", "mps"), "run.device {run.device}"),
    (("sparsify.penalty",), lambda c: c.sparsify.lmbda == 0, "sparsify.lmbda 0"),
    (
        tuple(f"loss.{name}" for name in LOSS_SETTINGS),
        lambda c: c.loss.name != "HardGlobalSoftminLoss",
        "loss.name {loss.name}, whose arguments are loss.options",
    ),
    (
        tuple(f"loss.teacher_{name}" for name in ("images", "input", "kind", "weight", "features", "temperature")),
        lambda c: c.loss.teacher is None,
        "loss.teacher null",
    ),
    (("loss.teacher_temperature",), lambda c: c.loss.teacher_kind == "embedding", "loss.teacher_kind embedding"),
    (
        ("model.sync_bn",),
        lambda _: int(os.environ.get("WORLD_SIZE", "1")) == 1,
        "one process, started without torchrun",
    ),
    (("model.lora.alpha", "model.lora.targets"), lambda c: c.model.lora.rank == 0, "model.lora.rank 0"),
    (("sparsify.",), lambda c: c.sparsify.granularity == "none", "sparsify.granularity none"),
    (
        (
            *("sparsify.mask_initial_value", "sparsify.include", "sparsify.exclude", "sparsify.final_temp"),
            *("sparsify.lmbda", "sparsify.penalty", "sparsify.target", "sparsify.mask_lr", "sparsify.rewind_epoch"),
            *("sparsify.ticket_epochs", "sparsify.prune_temperature", "sparsify.dense_run"),
        ),
        lambda c: isinstance(c.sparsify, SparsifyConfig) and c.sparsify.rounds == 0,
        "sparsify.rounds 0, which trains the dense network",
    ),
    (
        tuple(
            f"sparsify.{name}" for name in ("mask_initial_value", "mask_lr", "final_temp", "lmbda", "prune_temperature")
        ),
        lambda c: isinstance(c.sparsify, SparsifyConfig) and c.sparsify.method == "reconstruction",
        "sparsify.method reconstruction",
    ),
    (("eval.before", "eval.page", "eval.every"), lambda c: isinstance(c, SparsifyRunConfig), "a ticket search"),
)


def check_used(config: Config, words: Sequence[str], *variants: Config) -> None:
    """Checks that every setting in ``words`` that differs from its default has an effect.

    Args:
        config: The settings.
        words: The arguments of the command.
        variants: Further settings that the command will use; an effect under one of all is enough.

    Raises:
        InputError: The message names the setting, and the other one that makes it ineffective.
    """
    for flag in (word.partition("=")[0].removesuffix("+") for word in words if word.startswith("--")):
        setting = flag[2:]
        if "." not in setting:
            continue
        default = _value(type(config)(), setting)
        given = [_reasons(variant, setting) for variant in (config, *variants) if _value(variant, setting) != default]
        if given and all(given):
            raise InputError(f"{flag} has no effect beside {given[0][0]}: leave it out, or change the other setting")


def _reasons(config: Config, setting: str) -> list[str]:
    """Why a setting has no effect: descriptions of other settings."""
    reasons = []
    for settings, is_unused, reason in RULES:
        applies = any(
            setting == pattern or (pattern.endswith(".") and setting.startswith(pattern)) for pattern in settings
        )
        if applies and is_unused(config):
            reasons.append(reason.format(data=config.data, optim=config.optim, run=config.run, loss=config.loss))
    return reasons


def _value(config: Config, setting: str) -> Any:
    """The value of a dotted setting; None if there is none of this name, such as a flag of the command."""
    value: Any = config
    for name in setting.split("."):
        value = getattr(value, name, None)
    return value
