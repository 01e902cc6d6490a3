import math
from types import SimpleNamespace

import pytest
import timm
import torch

from hgsl import HardGlobalSoftminLoss, create_embedder
from hgsl.common.errors import InputError
from hgsl.config import OptimConfig
from hgsl.engine.parts.freeze import freeze, freeze_depth, train_mode
from hgsl.engine.parts.optim import create_optimizer, create_schedule, learning_rate_factor, parameter_groups


def test_every_trained_parameter_is_in_exactly_one_group() -> None:
    model = create_embedder("test_resnet", "gem", embedding_size=8, weights="none")
    loss_fn = HardGlobalSoftminLoss(5, 8)
    groups = parameter_groups(model, loss_fn, OptimConfig())
    assert [group["name"] for group in groups] == ["backbone", "projection", "centers", "scale"]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in [*model.parameters(), *loss_fn.parameters()])
    by_name = {group["name"]: group for group in groups}
    assert by_name["centers"]["lr"] == 1e-2
    assert by_name["scale"]["lr"] == 1e-5
    assert by_name["centers"]["weight_decay"] == by_name["scale"]["weight_decay"] == 0
    assert len(by_name["projection"]["params"]) == 3  # weight, bias and the exponent of the pooling


def test_frozen_parameters_are_left_out() -> None:
    model = create_embedder("test_resnet", embedding_size=8, weights="none")
    freeze(model, "backbone")
    groups = parameter_groups(model, HardGlobalSoftminLoss(5, 8, learnable_scale=False), OptimConfig())
    assert [group["name"] for group in groups] == ["projection", "centers"]


def test_frozen_batch_norm_keeps_statistics_and_weights() -> None:
    model = create_embedder("test_efficientnet", weights="none")
    freeze(model, "batch_norm")
    train_mode(model, "batch_norm")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1).step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert not any("running" in key or ".bn" in key for key in changed)
    assert model.backbone.training


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_groups_move_at_their_own_rates(name: str) -> None:
    settings = OptimConfig(name=name, schedule="cosine", warmup=0.25)
    model = create_embedder("test_resnet", embedding_size=8, weights="none")
    optimizer = create_optimizer(parameter_groups(model, HardGlobalSoftminLoss(5, 8), settings), settings)
    schedule = create_schedule(optimizer, settings, epochs=4, steps_per_epoch=5)
    for step in range(20):
        factor = learning_rate_factor(settings, 4, 5)(step)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates == pytest.approx(
            {"backbone": 3e-4 * factor, "projection": 3e-3 * factor, "centers": 1e-2 * factor, "scale": 1e-5 * factor}
        )
        optimizer.step()
        schedule.step()


def test_shapes_of_the_schedules() -> None:
    cosine = learning_rate_factor(OptimConfig(warmup=0.2), epochs=10, steps_per_epoch=10)
    assert cosine(0) == pytest.approx(1 / 21)
    assert cosine(20) == 1.0
    assert cosine(60) == pytest.approx(0.5)
    assert cosine(99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 79 / 80)))
    rising = [cosine(step) for step in range(21)]
    assert rising == sorted(rising)
    step = learning_rate_factor(OptimConfig(schedule="step", step_epochs=[2, 3], warmup=0), 4, 10)
    assert [step(0), step(19), step(20), step(30)] == pytest.approx([1, 1, 0.1, 0.01])
    constant = learning_rate_factor(OptimConfig(schedule="constant", warmup=0), 4, 10)
    assert {constant(i) for i in range(40)} == {1.0}


def test_frozen_stem_is_the_layers_before_the_first_stage() -> None:
    model = create_embedder("test_resnet", weights="none")
    freeze(model, "stem")
    frozen = {name for name, value in model.backbone.named_parameters() if not value.requires_grad}
    assert frozen
    assert all(name.startswith(("conv1", "bn1")) for name in frozen)
    train_mode(model, "stem")
    assert not model.backbone.bn1.training
    assert model.backbone.layer1.training


STEMS = {
    "test_vit": {"cls_token", "pos_embed", "patch_embed"},
    "vit_tiny_patch16_224": {"cls_token", "pos_embed", "patch_embed"},
    "test_convnext": {"stem"},
    "test_efficientnet": {"conv_stem", "bn1"},
    "visformer_tiny": {"pos_embed1", "stem", "patch_embed1"},
    "crossvit_tiny_240": {"pos_embed_0", "pos_embed_1", "cls_token_0", "cls_token_1", "patch_embed"},
    "hiera_tiny_224": {"pos_embed", "patch_embed"},
    "mobilevit_xxs": {"stem"},
}


def on_meta(name: str) -> SimpleNamespace:
    with torch.device("meta"):
        return SimpleNamespace(backbone=timm.create_model(name, pretrained=False, num_classes=0))


@pytest.mark.parametrize("name", STEMS)
def test_a_frozen_stem_is_all_of_it_and_nothing_else(name: str) -> None:
    model = on_meta(name)
    freeze(model, "stem")
    for key, value in model.backbone.named_parameters():
        assert value.requires_grad == (key.partition(".")[0] not in STEMS[name]), key


@pytest.mark.parametrize("name", ["cait_xxs24_224", "coat_tiny", "rdnet_tiny", "poolformer_s12"])
def test_a_stem_that_timm_does_not_define(name: str) -> None:
    with pytest.raises(
        InputError, match=r"not define the stem of .*: set model.freeze to batch_norm, backbone or none"
    ):
        freeze(on_meta(name), "stem")


def test_a_function_that_groups_layers_defines_no_stem() -> None:
    model = create_embedder("test_resnet", weights="none")
    model.backbone.group_matcher = lambda coarse: lambda name: 0  # as those of inception_v3 and inception_resnet_v2
    with pytest.raises(InputError, match="does not define the stem"):
        freeze(model, "stem")


@pytest.mark.parametrize(
    ("name", "depth", "frozen"),
    [
        ("tf_efficientnet_lite0", 0.5, {"conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"}),
        ("resnet18", 0.5, {"conv1", "bn1", "layer1"}),
        ("resnet18", 0.1, set()),
        ("test_vit", 0.5, {"cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1"}),
    ],
)
def test_the_first_layers_are_frozen(name: str, depth: float, frozen: set[str]) -> None:
    model = create_embedder(name, "avg", weights="none", image_size=32)
    freeze_depth(model, depth)
    train_mode(model, "none", depth)
    for parameter_name, parameter in model.backbone.named_parameters():
        is_frozen = any(f"{parameter_name}.".startswith(f"{part}.") for part in frozen)
        assert parameter.requires_grad != is_frozen, parameter_name
    for module_name, module in model.backbone.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            assert module.training != any(f"{module_name}.".startswith(f"{part}.") for part in frozen), module_name


def test_nothing_to_train_is_refused() -> None:
    model = create_embedder("test_resnet", weights="none")
    freeze(model, "backbone")
    groups = parameter_groups(model, torch.nn.TripletMarginLoss(), OptimConfig())
    with pytest.raises(InputError, match=r"nothing is left to train.*model.embedding_size"):
        create_optimizer(groups, OptimConfig())


def test_layer_decay_falls_from_the_last_layer_to_the_first() -> None:
    model = create_embedder("test_vit", weights="none")
    groups = parameter_groups(model, HardGlobalSoftminLoss(5, 128), OptimConfig(layer_decay=0.5))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    first, last = model.backbone.patch_embed.proj.weight, model.backbone.blocks[-1].mlp.fc1.weight
    assert rates[id(first)] < rates[id(last)] <= 3e-4
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(id(p) in rates for p in trained)
    decayed = {id(p): group["weight_decay"] for group in groups if "weight_decay" in group for p in group["params"]}
    assert decayed[id(first)] == 1e-4
    assert decayed[id(model.backbone.norm.weight)] == decayed[id(model.backbone.blocks[-1].mlp.fc1.bias)] == 0
