"""Weights in the form in which transformers keeps them: a config.json with a `model_type`, and tensors by its names.

They become those of timm's model of the same function. The names of transformers 4 and 5 are known, with and without
the task model's prefix; heads, poolers that are no part of the features, decoders and text towers are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..common.errors import RequestError, near_misses

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}  # theirs -> timm's
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers

Config = Mapping[str, Any]


def architecture(config: Config) -> tuple[str, dict[str, Any]]:
    """timm's name for what a config.json describes, and the arguments that this one needs besides; RequestError."""
    config = config.get("vision_config") or config  # of a model with a text tower
    kind = str(config.get("model_type"))
    if kind not in KINDS:
        raise RequestError(
            f"config.json describes a model of transformers of the kind {kind!r}, which cannot be read: there are "
            f"{', '.join(KINDS)}; give weights of one of these.{near_misses(kind, KINDS)}"
        )
    try:
        return KINDS[kind](config)
    except KeyError as error:
        raise RequestError(
            f"config.json describes a {kind} but lacks {error.args[0]!r}: take the one that its weights came with."
        ) from None


def preprocessing(config: Config) -> dict[str, Any]:
    """What a preprocessor_config.json says of mean, std and interpolation, in timm's words."""
    found = {"mean": config.get("image_mean"), "std": config.get("image_std")}
    return {key: value for key, value in found.items() if value} | (
        {"interpolation": RESAMPLE[config["resample"]]} if config.get("resample") in RESAMPLE else {}
    )


# Of each kind the architecture


def _sizes(config: Config) -> dict[str, Any]:
    return {
        "img_size": config["image_size"],
        "patch_size": config["patch_size"],
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
    }


def _ratio(hidden: float, width: int) -> float:
    """timm takes the integer part of width * ratio, which must not fall below by rounding."""
    return (hidden + 0.5) / width


def _activation(config: Config) -> str:
    name = config.get("hidden_act", "gelu")
    if name not in ACTIVATIONS:
        raise RequestError(
            f"By config.json its activation is {name!r}, which cannot be had: there are {', '.join(ACTIVATIONS)}; take "
            "weights with one of these."
        )
    return ACTIVATIONS[name]


def _plain(base: str, **more: Any) -> Callable[[Config], tuple[str, dict[str, Any]]]:
    def kind(config: Config) -> tuple[str, dict[str, Any]]:
        sizes = _sizes(config)
        sizes["mlp_ratio"] = _ratio(config["intermediate_size"], config["hidden_size"])
        return base, {**sizes, "qkv_bias": config.get("qkv_bias", True), "act_layer": _activation(config), **more}

    return kind


def _dinov2(config: Config) -> tuple[str, dict[str, Any]]:
    sizes, width = _sizes(config), config["hidden_size"]
    registers = {"reg_tokens": config["num_register_tokens"]} if "num_register_tokens" in config else {}
    size = "giant" if config.get("use_swiglu_ffn") else "base"
    hidden = int(width * config["mlp_ratio"])
    if size == "giant":  # both halves of the gated layer, each a multiple of 8
        hidden = 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8)
    sizes |= {"mlp_ratio": _ratio(hidden, width), "qkv_bias": config.get("qkv_bias", True), **registers}
    return f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2", sizes


def _dinov3(config: Config) -> tuple[str, dict[str, Any]]:
    gated = config.get("use_gated_mlp", False)
    expected = {"key_bias": False, "proj_bias": True, "mlp_bias": True, "hidden_act": "silu" if gated else "gelu"}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise RequestError(
                f"config.json describes a DINOv3 with {key} {config[key]}, which no released one has: take the "
                "config.json that its weights came with."
            )
    size = "huge_plus" if gated else "base"
    biased = "_qkvb" if config.get("query_bias", True) else ""
    return f"vit_{size}_patch16_dinov3{biased}", {
        **_sizes(config),
        "mlp_ratio": _ratio(config["intermediate_size"], config["hidden_size"]),
        "num_reg_tokens": config["num_register_tokens"],
        "rope_temperature": config["rope_theta"],
        "global_pool": "token",  # their pooled output
    }


def _siglip(config: Config) -> tuple[str, dict[str, Any]]:
    head = config.get("vision_use_head", True)
    return _plain("vit_base_patch16_siglip_224" if head else "vit_base_patch16_siglip_gap_224")(config)


def _swin(base: str) -> Callable[[Config], tuple[str, dict[str, Any]]]:
    def kind(config: Config) -> tuple[str, dict[str, Any]]:
        same = ("patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
        found = {"img_size": config["image_size"], **{name: config[name] for name in same}}
        if "pretrained_window_sizes" in config:
            found["pretrained_window_sizes"] = config["pretrained_window_sizes"]
        return base, found | {"qkv_bias": config.get("qkv_bias", True)}

    return kind


KINDS = {
    "vit": _plain("vit_base_patch16_224"),
    "vit_mae": _plain("vit_base_patch16_224"),
    "deit": _plain("deit_base_patch16_224", reg_tokens=1),  # the distilled one; the other's kind is vit
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_vit": _dinov3,
    "clip_vision_model": _plain("vit_base_patch16_clip_quickgelu_224"),
    "siglip_vision_model": _siglip,
    "swin": _swin("swin_base_patch4_window7_224"),
    "swinv2": _swin("swinv2_base_window8_256"),
}


# Of each tensor the name

LEFT_OUT = re.compile(
    r"^(pooler|classifier|\w+_classifier|decoder|text_model|\w+_projection)\.|^logit_(scale|bias)$"
    r"|mask_token|position_ids|relative_position_index|relative_coords_table"
)
PREFIX = re.compile(r"^(?:(?:vit|deit|dinov2|dinov2_with_registers|dinov3_vit|swin|swinv2|vision_model|model)\.)+")
NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.(register_tokens|distillation_token)$", "reg_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(post_)?layernorm\.", "norm."),
    (r"^encoder\.(?=layers?\.)", ""),
    # A Swin halves the map where a stage ends; timm's where the next begins.
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"^layers?\.", "blocks."),
    (r"^stages\.", "layers."),
    (r"\.layernorm_before\.|\.layer_norm1\.", ".norm1."),
    (r"\.layernorm_after\.|\.layer_norm2\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.(?:attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.(?:attention\.attention|attention\.self|attention|self_attn)\.([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.attention\.(?:self\.)?(?:\w+\.)?(relative_position_bias_table|logit_scale)$", r".attn.\1"),
    (r"\.attention\.self\.continuous_position_bias_mlp\.", ".attn.cpb_mlp."),
    (r"\.intermediate\.dense\.|\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),  # or fc1, where nothing is gated
    (r"\.output\.dense\.|\.mlp\.weights_out\.|\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.attention\.", "attn_pool."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
)


# Of a tensor of timm's the tensors that lie one after the other in it
JOINED = (
    (r"\.attn\.qkv\.(weight|bias)$", (r".attn.q.\1", r".attn.k.\1", r".attn.v.\1")),
    (r"\.attn\.([qv])_bias$", (r".attn.\1.bias",)),
    (r"\.mlp\.fc1\.(weight|bias)$", (r".mlp.fc1_g.\1", r".mlp.fc1_x.\1")),
    (r"\.gamma_([12])$", (r".ls\1.gamma",)),
)


def are_theirs(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have names of transformers."""
    return any("embeddings.patch_embedding" in name for name in tensors)


def renamed(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors as timm's. wanted: those of the skeleton, whose names and shapes tell how q, k and v, the halves of
    a gated layer and the tokens' positions lie there. What fits nothing is among them too, for the caller to say so."""
    found = {name: tensor for theirs, tensor in tensors.items() if (name := _name(theirs)) and tensor.numel()}
    if not any(".mlp.fc1_g." in name for name in found):
        found = {name.replace(".mlp.fc1_x.", ".mlp.fc1."): tensor for name, tensor in found.items()}
    for name in wanted:
        for pattern, parts in JOINED:
            sources = [re.sub(pattern, part, name) for part in parts]
            if name not in found and re.search(pattern, name) and all(source in found for source in sources):
                found[name] = torch.cat([found.pop(source) for source in sources])
    for kind in ("weight", "bias"):  # of attention pooling
        if (joined := found.pop(f"attn_pool.in_proj_{kind}", None)) is not None:
            third = len(joined) // 3
            found[f"attn_pool.q.{kind}"], found[f"attn_pool.kv.{kind}"] = joined[:third], joined[third:]
    for name in ("cls_token", "pos_embed"):
        if name in found:
            found[name] = found[name].reshape(1, -1, found[name].shape[-1])
    position = found.get("pos_embed")
    if position is not None and "pos_embed" in wanted and position.shape[1] == wanted["pos_embed"].shape[1] + 1:
        # Theirs has a position for CLS, timm's none where there are registers: it becomes part of the token.
        found["cls_token"], found["pos_embed"] = found["cls_token"] + position[:, :1], position[:, 1:]
    return found


def _name(theirs: str) -> str:
    """timm's name of a tensor, or of a part of one; empty for what is left out."""
    name = PREFIX.sub("", theirs)
    if LEFT_OUT.search(name):
        return ""
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name
