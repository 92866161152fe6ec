"""The frozen backbone: timm's own numbers, any size that the patch divides, a fingerprint, and nothing that trains."""

import re

import pytest
import timm
import torch

from vitgraft import Backbone
from vitgraft.backbones import weights
from vitgraft.backbones.architectures import skeleton
from vitgraft.common.errors import RequestError
from vitgraft.testing.backbones import random_backbone, random_images, random_vit, vit_arguments

GRIDS = [(4, 4), (3, 5), (7, 7), (1, 2)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_without_contacts_it_is_timms_forward(backbone, grid):
    images = random_images(backbone, grid)
    with torch.no_grad():
        ours = backbone(images, patches=[stage[-1] for stage in backbone.stages])
        tokens = backbone.vit.forward_features(images)
        pooled = backbone.vit.forward_head(tokens, pre_logits=True)
    h, w = ours.grid
    if len(backbone.stages) == 1:
        assert ours.grid == grid
        assert [patches.shape[1:] for patches in ours.patches] == [(h * w, 48)]
    else:
        assert ours.grids[2] == grid
        assert [patches.shape[1:] for patches in ours.patches] == [
            (h * w, 24 * 2**s) for s, (h, w) in enumerate(ours.grids)
        ]
        tokens = tokens.flatten(1, 2)
    assert ours.tokens.shape == (3, backbone.prefix + h * w, backbone.width)
    torch.testing.assert_close(ours.tokens, tokens)
    torch.testing.assert_close(backbone.pool(ours.tokens), pooled)
    assert not ours.taps
    assert not ours.extra


@pytest.mark.parametrize(
    "more",
    [
        {"qk_norm": True},
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False},
        {"global_pool": ""},
        {"scale_attn_norm": True, "scale_mlp_norm": True},
        {"qkv_bias": False},
    ],
    ids=str,
)
def test_timms_rarer_settings_too(more):
    backbone = random_backbone("cls", **more)
    images = random_images(backbone)
    with torch.no_grad():
        tokens = backbone.vit.forward_features(images)
        torch.testing.assert_close(backbone(images).tokens, tokens)
        if more.get("global_pool") != "":  # timm then hands on all tokens; a probe needs one vector
            torch.testing.assert_close(backbone.pool(tokens), backbone.vit.forward_head(tokens, pre_logits=True))
        else:
            assert torch.equal(backbone.pool(tokens), tokens[:, 0])


def test_what_it_says_of_itself(family):
    backbone = random_backbone(family)
    staged = "swin" in family
    assert (backbone.depth, backbone.width) == ((6, 192) if staged else (4, 48))
    assert backbone.prefix == {"dinov2": 5, "dinov3": 5, "siglip": 0, "swin": 0, "swinv2": 0}.get(family, 1)
    assert backbone.has_cls == (backbone.prefix > 0)
    assert backbone.has_layerscale == family.startswith("dino")
    assert backbone.patch == {"dinov2": (14, 14), "eva02": (14, 14), "swin": (4, 4), "swinv2": (4, 4)}.get(
        family, (16, 16)
    )
    names = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    if family == "eva02":
        names = {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"}
    assert set(backbone.linears) == {f"{block.path}.{name}" for block in backbone.blocks for name in names}
    assert [block.width for block in backbone.blocks] == ([24, 24, 48, 96, 96, 192] if staged else [48] * 4)


@pytest.mark.parametrize(
    ("family", "size", "nearest"),
    [
        ("cls", (64, 65), "64 (height) and 64 or 80 (width)"),
        ("cls", (7, 32), "16 (height) and 32 (width)"),
        ("cls", (0, 16), "16 (height) and 16 (width)"),
        ("dinov2", (60, 64), "56 or 70 (height) and 56 or 70 (width)"),
    ],
)
def test_a_size_that_the_patch_does_not_divide_names_the_nearest(family, size, nearest):
    backbone = random_backbone(family)
    with pytest.raises(RequestError, match=re.escape(nearest)):
        backbone.preprocess(size)
    if min(size):
        with pytest.raises(RequestError, match=re.escape(nearest)):
            backbone(torch.zeros(1, 3, *size))


def test_preprocessing_is_the_weights_own(tmp_path):
    vit = random_vit("cls")
    vit.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear"}
    path = tmp_path / "tiny.safetensors"
    weights.save(vit, path, architecture="vit_tiny_patch16_224", source="a test", model_args={**vit_arguments("cls")})
    backbone = Backbone.load(str(path))
    own = backbone.preprocess()
    assert (own.size, own.mean, own.std, own.interpolation) == ((64, 64), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    assert backbone.preprocess(96).size == (96, 96)
    other = backbone.preprocess((32, 80))
    assert (other.size, other.mean, other.std, other.interpolation) == ((32, 80), own.mean, own.std, "bilinear")


def test_fingerprint_tells_weights_apart_and_nothing_else(tmp_path):
    backbone = random_backbone("cls")
    assert backbone.fingerprint == random_backbone("cls").fingerprint
    assert len(backbone.fingerprint) == 64
    assert backbone.fingerprint != random_backbone("cls", seed=1).fingerprint
    other = random_backbone("cls")
    with torch.no_grad():
        value = other.tensor("blocks.2.mlp.fc1.weight")[5, 7]
        value.copy_(torch.nextafter(value, value + 1))  # the last bit of one number
    assert backbone.fingerprint != other.fingerprint


def test_fingerprint_does_not_depend_on_the_files_precision(tmp_path):
    vit = random_vit("cls").bfloat16()
    prints = set()
    for dtype in (torch.bfloat16, torch.float32):
        path = tmp_path / f"{dtype}.safetensors"
        weights.save(
            vit.to(dtype), path, architecture="vit_tiny_patch16_224", source="test", model_args=vit_arguments("cls")
        )
        prints.add(Backbone.load(str(path)).fingerprint)
    assert len(prints) == 1


def test_it_stays_frozen_and_in_evaluation_mode(backbone):
    holder = torch.nn.Sequential(backbone)
    holder.train()
    assert holder.training
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_an_unknown_tensor_is_said(cls):
    assert cls.tensor("blocks.1.norm1.weight").shape == (48,)
    for name in ("blocks.9.norm1.weight", "blocks.1.norm1", "blocks.1.norm1.weigth"):
        with pytest.raises(RequestError, match=re.escape(repr(name))):
            cls.tensor(name)


@pytest.mark.skipif(
    not timm.is_model("vit_dwee_patch16_reg1_gap_256"), reason="this timm has no differential attention"
)
def test_other_attention_is_refused_not_miscounted():
    """Backbone writes the attention out: another kind of it must not be taken for the plain one."""
    with pytest.raises(RequestError, match="DiffAttention"):
        skeleton("vit_dwee_patch16_reg1_gap_256")
