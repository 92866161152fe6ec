"""Tiny random Vision Transformers, one of each kind that pre-training leaves behind."""

from typing import Any

import timm
import torch

from vitgraft.backbones import Backbone
from vitgraft.backbones.weights import Loaded

VIT, EVA = "vit_tiny_patch16_224", "vit_small_patch16_dinov3"
SIZE = {"embed_dim": 48, "depth": 4, "num_heads": 4, "num_classes": 0, "dynamic_img_size": True}
STAGES = {"embed_dim": 24, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 2, 4), "num_classes": 0}
STAGES |= {"strict_img_size": False, "img_size": 64, "window_size": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # AugReg, DeiT, DINO, MAE: CLS token, position embedding over all tokens
    "cls": (VIT, {**SIZE, "img_size": 64, "patch_size": 16}),
    # DINOv2 with registers: LayerScale, five prefix tokens without a position, patch 14
    "dinov2": (
        VIT,
        {**SIZE, "img_size": 56, "patch_size": 14, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    ),
    # SigLIP: no prefix token, attention pooling
    "siglip": (VIT, {**SIZE, "img_size": 64, "patch_size": 16, "class_token": False, "global_pool": "map"}),
    # CLIP: a norm before the first block, patches without bias
    "clip": (VIT, {**SIZE, "img_size": 64, "patch_size": 16, "pre_norm": True}),
    # DINOv3: rotary positions alone, registers, LayerScale in tensors of the block, no bias of k
    "dinov3": (EVA, {**SIZE, "img_size": 64}),
    # EVA-02: rotary positions and added ones, q, k and v apart, norms inside SwiGLU, mean pooling under a norm
    "eva02": ("eva02_base_patch14_224", {**SIZE, "img_size": 56, "mlp_ratio": 2.75}),
    # Perception Encoder: rotary attention with a bias, attention pooling that sees CLS
    "pe": ("vit_pe_core_tiny_patch16_384", {**SIZE, "img_size": 64}),
    "swin": ("swin_tiny_patch4_window7_224", STAGES),
    # Norms behind the sub-layers, cosine attention, positions by a small network
    "swinv2": ("swinv2_tiny_window8_256", STAGES),
}
# What has no meaning there, or no place: family -> method -> what is said of it.
FIXED_WIDTH, STAGED = "squares of the width", "take a plain backbone"
REFUSED: dict[str, dict[str, str]] = {
    "eva02": {"fact": FIXED_WIDTH},
    "swin": {"fact": FIXED_WIDTH, "lst": STAGED, "ett": STAGED, "vpt form=shallow": "take the deep form"},
}
REFUSED["swinv2"] = REFUSED["swin"]
GRIDS = {"square": (4, 4), "wide": (3, 5)}  # patches; "square" is the position embedding's own


def vit_arguments(family, **more):
    """What timm.create_model(FAMILIES[family][0]) needs for a tiny one of this family."""
    return {**FAMILIES[family][1], **more}


def random_vit(family="cls", seed=0, **more):
    """Every tensor random, norms and LayerScale included, so that none can be left out unnoticed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        vit = timm.create_model(FAMILIES[family][0], **vit_arguments(family, **more))
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vit.eval()


def random_backbone(family="cls", seed=0, **more):
    vit = random_vit(family, seed, **more)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    size = vit.patch_embed.img_size
    return Backbone.of(Loaded(vit, f"tiny {family}", "random", FAMILIES[family][0], mean, std, "bicubic", size))


def random_images(backbone, grid=(4, 4), batch=3, seed=1):
    """Pictures of so many patches; where there are four stages, of the third."""
    h, w = grid
    side = 4 if len(backbone.stages) > 1 else 1
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, h * side * backbone.patch[0], w * side * backbone.patch[1], generator=generator)
