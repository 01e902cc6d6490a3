"""Poolings of transformers and of the model itself, over the families of timm, and the default that fits a backbone."""

import pytest
import timm
import torch

from hgsl import create_embedder
from hgsl.common.errors import InputError
from hgsl.models import POOLINGS
from hgsl.models.embedder import Embedder
from hgsl.models.features import default_pooling, pool_features, spatial_features

QUICK = (
    *("test_resnet", "test_vit", "test_mambaout", "test_coatnet", "pit_ti_224", "lcnet_035", "efficientvim_m1"),
    *("xcit_nano_12_p8_224", "crossvit_tiny_240"),
)
# The smallest model of each module of timm, as far as it runs in seconds on a CPU, and the attention pools of CLIP.
FAMILIES = """
beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 crossvit_tiny_240 cs3darknet_focus_s
davit_tiny deit_tiny_distilled_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8
focalnet_tiny_srf gcvit_xxtiny ghostnet_050 gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224
hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnet_035 legacy_seresnet18
legacy_xception levit_128s mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge
nest_tiny nextvit_small pit_ti_224 pit_ti_distilled_224 pnasnet5large poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetx_002
repghostnet_050 repvit_m1 res2next50 resnest14d resnet50_clip resnetv2_18 rexnet_100 sam2_hiera_tiny
samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet test_coatnet test_convnext
test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos tiny_vit_5m_224
tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_base_patch32_siglip_256
vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p xcit_nano_12_p8_224
cpubone_nano csatv2 cspnext_tiny iformer_t lcnetv2_small lowformer_b0
"""
KNOWN = [name for name in FAMILIES.split() if timm.is_model(name)]  # the last line is of recent versions of timm
MODELS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in KNOWN]


def noise(model: Embedder, count: int = 2) -> torch.Tensor:
    side = model.data_config["image_size"]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_head_is_what_timm_gives_to_the_classifier_and_patches_are_without_prefix_tokens(name: str) -> None:
    torch.manual_seed(0)
    model = create_embedder(name, "head", weights="none").eval()
    images = noise(model, 1)
    with torch.inference_mode():
        pooled = model.pooled(images)
        features = model.backbone.forward_features(images)
        torch.testing.assert_close(pooled, model.backbone.forward_head(features, pre_logits=True), rtol=0, atol=0)
        assert pooled.shape == (1, model.embedding_size)
        model.backbone.forward_features = lambda _: features  # the same again, without computing them
        pooling = default_pooling(model.backbone, images.shape[-1])
        if pooling == "token" and "dinov3" not in name and "distilled" not in name:
            torch.testing.assert_close(features[:, 0], pooled)  # so the first token is the class token
        check_patches(name, model.backbone, images)


def check_patches(name: str, backbone: torch.nn.Module, images: torch.Tensor) -> None:
    """A position of the last features depends on its place in the image; a class token would be one too many."""
    if name.startswith(("crossvit", "efficientvim", "pit")):
        with pytest.raises(InputError, match=rf"backbone '{name}' .* use pooling .*'head'"):
            pool_features(backbone, POOLINGS["avg"](), images)
        return
    features = spatial_features(backbone, images)
    assert pool_features(backbone, POOLINGS["avg"](), images).shape == (1, backbone.num_features)
    assert features.shape[1] == backbone.num_features
    positions = features.shape[2] * features.shape[3]
    side = images.shape[-1]
    assert any(positions == (side // step) ** 2 or positions == -((-side // step) ** 2) for step in range(4, 65)) or (
        name.startswith(("inception", "nasnet", "pnasnet", "legacy_xception", "vit_base_patch14"))
    )


@pytest.mark.parametrize(
    ("name", "prefix", "pooling"),
    [
        ("test_vit", 1, "token"),
        pytest.param("vit_small_patch14_reg4_dinov2", 5, "token", marks=pytest.mark.slow),
        ("vit_tiny_patch16_dinov3_qkvb", 5, "token"),
        ("deit_tiny_distilled_patch16_224", 2, "token"),
        pytest.param("volo_d1_224", 1, "token", marks=pytest.mark.slow),
        pytest.param("coat_tiny", 1, "head", marks=pytest.mark.slow),
        pytest.param("beit_base_patch16_224", 1, "head", marks=pytest.mark.slow),
        pytest.param("vit_base_patch32_siglip_256", 0, "head", marks=pytest.mark.slow),
        pytest.param("resnet50_clip", None, "head", marks=pytest.mark.slow),
        ("test_vit_relpos", 0, "head"),
        ("test_resnet", None, "maxavg"),
        ("test_convnext", None, "maxavg"),
    ],
)
def test_default_and_tokens(name: str, prefix: int | None, pooling: str) -> None:
    """Against the tokens by hand; ``prefix`` tokens come before the patches, None is a map."""
    model = create_embedder(name, weights="none", image_size=None).eval()
    assert model.architecture["pooling"] == pooling
    if prefix is None or not timm.is_model(name):
        return
    images = noise(model, 1)
    with torch.inference_mode():
        tokens = model.backbone.forward_features(images)
        tokens = tokens[-1] if isinstance(tokens, list) else tokens
        averages = create_embedder(name, "avg", weights="none").eval()
        averages.load_state_dict(model.state_dict())
        torch.testing.assert_close(averages.pooled(images), tokens[:, prefix:].mean(dim=1))
        if pooling == "token":
            assert torch.equal(model.pooled(images), tokens[:, 0])
            both = create_embedder(name, "token_avg", weights="none").eval()
            both.load_state_dict(model.state_dict())
            expected = torch.cat([tokens[:, 0], tokens[:, prefix:].mean(dim=1)], dim=1)
            torch.testing.assert_close(both.pooled(images), expected)
            assert both.embedding_size == expected.shape[1]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit_relpos", "crossvit_tiny_240"])
@pytest.mark.parametrize("pooling", ["token", "token_avg"])
def test_without_a_single_class_token_its_pooling_is_refused(name: str, pooling: str) -> None:
    with pytest.raises(InputError, match=rf"pooling '{pooling}' needs a single class token.*{name}.*'head'"):
        create_embedder(name, pooling, weights="none")
