"""Tiny random Vision Transformers, one of each kind that pre-training leaves behind."""

from typing import Any

import timm
import torch

from vitgraft.backbones import Backbone
from vitgraft.backbones.weights import Loaded

SIZE = {"embed_dim": 48, "depth": 4, "num_heads": 4, "num_classes": 0, "dynamic_img_size": True}
FAMILIES: dict[str, dict[str, Any]] = {
    # AugReg, DeiT, DINO, MAE: CLS token, position embedding over all tokens
    "cls": {"img_size": 64, "patch_size": 16},
    # DINOv2 with registers: LayerScale, five prefix tokens without a position, patch 14
    "dinov2": {"img_size": 56, "patch_size": 14, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    # SigLIP: no prefix token, attention pooling
    "siglip": {"img_size": 64, "patch_size": 16, "class_token": False, "global_pool": "map"},
    # CLIP: a norm before the first block, patches without bias
    "clip": {"img_size": 64, "patch_size": 16, "pre_norm": True},
}
GRIDS = {"square": (4, 4), "wide": (3, 5)}  # patches; "square" is the position embedding's own


def vit_arguments(family, **more):
    """What timm.create_model("vit_tiny_patch16_224") needs for a tiny one of this family."""
    return {**SIZE, **FAMILIES[family], **more}


def random_vit(family="cls", seed=0, **more):
    """Every tensor random, norms and LayerScale included, so that none can be left out unnoticed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        vit = timm.create_model("vit_tiny_patch16_224", **vit_arguments(family, **more))
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vit.eval()


def random_backbone(family="cls", seed=0, **more):
    vit = random_vit(family, seed, **more)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    return Backbone.of(Loaded(vit, f"tiny {family}", "random", "vit", mean, std, "bicubic", vit.patch_embed.img_size))


def random_images(backbone, grid=(4, 4), batch=3, seed=1):
    h, w = grid
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, h * backbone.patch[0], w * backbone.patch[1], generator=generator)
