"""Every architecture of timm's that is taken gives timm's own numbers: few blocks, narrow, float64, random."""

import pytest
import timm
import torch

from vitgraft.backbones import Backbone
from vitgraft.backbones.architectures import skeleton
from vitgraft.backbones.weights import Loaded
from vitgraft.common.errors import RequestError

MODULES = ("vision_transformer", "deit", "eva", "swin_transformer", "swin_transformer_v2")
NARROW = {"depth": 2, "embed_dim": 48, "num_heads": 3}
STAGES = {"depths": (2, 2, 1, 2), "embed_dim": 12, "num_heads": (1, 2, 3, 4)}
REFUSED = {  # of those that have weights
    "vit_base_patch16_rpn_224": "its blocks are ResPostBlock",
    "vit_dlittle_patch16_reg1_gap_256": "its attention is DiffAttention",
    "vit_dpwee_patch16_reg1_gap_256": "its blocks are DiffParallelScalingBlock",
    "vit_dwee_patch16_reg1_gap_256": "its attention is DiffAttention",
    "vit_pwee_patch16_reg1_gap_256": "its blocks are ParallelScalingBlock",
}
WITH_WEIGHTS = sorted(
    {name.partition(".")[0] for module in MODULES for name in timm.list_models(module=module, pretrained=True)}
)


def narrow(architecture):
    """A model of timm's in float64, and a Backbone of it."""
    staged = "swin" in architecture
    wide = skeleton(architecture).vit
    patch = wide.patch_embed.patch_size[0]
    sizes = dict(STAGES) if staged else {**NARROW, "img_size": 4 * patch}
    if staged and "window7" not in architecture:  # small maps, the same numbers of windows
        sizes |= {"img_size": 64, "window_size": 4}
    if "sapiens2" in architecture:  # some blocks have fewer heads of keys
        sizes["num_kv_heads"] = (3, 1)
    torch.manual_seed(0)
    bones = skeleton(architecture, sizes)
    any_size = {"strict_img_size": False} if staged else {"dynamic_img_size": True}
    vit = timm.create_model(bones.architecture, num_classes=0, **{**sizes, **bones.arguments}, **any_size)
    with torch.no_grad():
        for tensor in vit.parameters():
            tensor.copy_(0.1 * torch.randn_like(tensor) + (1.0 if tensor.ndim == 1 else 0.0))
    vit = vit.double().eval()
    half = (0.5, 0.5, 0.5)
    loaded = Loaded(vit, architecture, "random", architecture, half, half, "bicubic", vit.patch_embed.img_size)
    return vit, Backbone.of(loaded)


@pytest.mark.parametrize("architecture", [name for name in WITH_WEIGHTS if name not in REFUSED])
def test_its_tokens_are_timms(architecture):
    vit, backbone = narrow(architecture)
    h, w = vit.patch_embed.img_size
    for size in ((h, w), (h, 2 * w), (h + vit.patch_embed.patch_size[0], w)):
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            tokens = vit.forward_features(images)
            ours = backbone(images).tokens
            expected = tokens.flatten(1, -2)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
            if vit.global_pool:
                pooled = vit.forward_head(tokens, pre_logits=True)
                torch.testing.assert_close(backbone.pool(ours), pooled, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("architecture", REFUSED)
def test_it_is_refused_with_the_reason(architecture):
    with pytest.raises(RequestError, match=REFUSED[architecture]):
        skeleton(architecture)
