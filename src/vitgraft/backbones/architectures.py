"""Which of timm's architectures can be a backbone, and how they are made without their weights."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import Attention, AttentionRope, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..common.errors import RequestError, near_misses

# Each class of timm's that can be one: with which argument it takes pictures of any size.
ANY_SIZE: dict[type[nn.Module], dict[str, Any]] = {
    VisionTransformer: {"dynamic_img_size": True},
    Eva: {"dynamic_img_size": True},
    SwinTransformer: {"strict_img_size": False},
    SwinTransformerV2: {"strict_img_size": False},
}
# What a pass would need besides, in the kinds that come near.
MISSING = {
    "Beit": "relative positions in every block",
    "Hiera": "attention in mask units, and pooled queries",
    "NaFlexVit": "sequences of patches of any length",
    "VisionTransformerRelPos": "relative positions in every block",
}
HEADS = ("head.", "head_dist.", "classifier.")  # classifiers, which no backbone needs
RESAMPLED = ("pos_embed", "relative_position_bias_table", "patch_embed.proj.weight")  # by timm where sizes differ
BLOCKS = {VisionTransformer: (Block,), Eva: (EvaBlock, EvaBlockPostNorm)}
ATTENTION = {VisionTransformer: (Attention,), Eva: (EvaAttention, AttentionRope)}
_ANY_SIZE_OF = {kind.__module__: arguments for kind, arguments in ANY_SIZE.items()}
_ANY_SIZE_OF[VisionTransformerDistilled.__module__] = ANY_SIZE[VisionTransformer]


class Skeleton(NamedTuple):
    """A timm model without memory for its tensors, and how `timm.create_model` makes it."""

    vit: nn.Module
    architecture: str
    arguments: Mapping[str, Any]  # besides the architecture
    note: str = ""  # what was done to make a backbone of it


def skeleton(architecture: str, model_args: Mapping | None = None, overlay: dict | None = None) -> Skeleton:
    """The timm model of this name; RequestError unless it can be a backbone."""
    base, _, tag = architecture.partition(".")
    if not timm.is_model(base):
        known = [name for family in ("vit_*", "eva*", "swin*", "deit*") for name in timm.list_models(family)]
        guess = near_misses(architecture, known + timm.list_models("vit_*", pretrained=True))
        raise RequestError(
            f"timm has no model {architecture!r}: timm.list_models('vit_*') lists those there are.{guess}"
        )
    tags = [known.partition(".")[2] for known in timm.list_models(f"{base}.*", include_tags=True)]
    if tag and tag not in tags:
        there = f"choose one of {', '.join(tags)}" if tags else "there are none; leave it out"
        raise RequestError(f"timm has no weights {tag!r} for {base}: {there}.{near_misses(tag, tags)}")
    arguments = {**(model_args or {}), "num_classes": 0, **any_size(base)}
    try:
        with torch.device("meta"):  # no random start that the weights replace anyway: 0.1 s instead of 2 s
            vit: Any = timm.create_model(architecture, pretrained=False, pretrained_cfg_overlay=overlay, **arguments)
            found = _without_distillation(vit) or Skeleton(vit, architecture, model_args or {})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise _unsupported(architecture, str(error)) from None
    if reason := obstacle(found.vit):
        raise _unsupported(architecture, reason)
    return found


def any_size(architecture: str) -> dict[str, Any]:
    """The arguments with which a timm model of this name takes pictures of any size that its patch divides."""
    return _ANY_SIZE_OF.get(timm.model_entrypoint(architecture.partition(".")[0]).__module__, {})


def obstacle(vit: Any) -> str:
    """Why a model of timm cannot be a backbone, in words; empty if it can."""
    kind = type(vit)
    if kind not in ANY_SIZE:
        missing = MISSING.get(kind.__name__)
        return f"it is a {kind.__name__}" + (f", which needs {missing}" if missing else "")
    if type(vit.patch_embed) is not PatchEmbed or vit.patch_embed.proj.in_channels != 3:
        return "it does not cut an RGB picture straight into patches"
    if kind not in BLOCKS:
        return ""
    odd = {type(block).__name__ for block in vit.blocks if type(block) not in BLOCKS[kind]}
    if odd:
        return f"its blocks are {', '.join(sorted(odd))}"
    odd = {type(block.attn).__name__ for block in vit.blocks if type(block.attn) not in ATTENTION[kind]}
    return f"its attention is {', '.join(sorted(odd))}" if odd else ""


def _without_distillation(vit: Any) -> Skeleton | None:
    """Of a distilled DeiT the ViT in it, to which the distillation token is a register; None of another model."""
    if type(vit) is not VisionTransformerDistilled:
        return None
    first: Any = vit.blocks[0]
    arguments: dict[str, Any] = {
        "img_size": vit.patch_embed.img_size,
        "embed_dim": vit.embed_dim,
        "num_heads": first.attn.num_heads,
        "depth": len(vit.blocks),
        "reg_tokens": 1,
    }
    plain = "deit_base_patch16_224"
    made: Any = timm.create_model(plain, **arguments, num_classes=0, **ANY_SIZE[VisionTransformer])
    made.pretrained_cfg = vit.pretrained_cfg
    note = "a distilled DeiT is taken as the ViT in it: its distillation token stays, as a register, its heads do not"
    return Skeleton(made, plain, arguments, note)


def taken_from(tensors: Mapping[str, Tensor], vit: nn.Module) -> dict[str, Tensor]:
    """Tensors under the names of a skeleton. Those that their authors had otherwise are brought there by timm's own
    filter, which must neither resample them on the way nor drop biases that are not zero."""
    tensors = {"reg_token" if name == "dist_token" else name: tensor for name, tensor in tensors.items()}
    wanted = vit.state_dict()
    filters = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    if filters is None or wanted.keys() == {name for name in tensors if not name.startswith(HEADS)}:
        return tensors
    try:
        with contextlib.redirect_stdout(None):  # it prints what it skips
            found = filters(dict(tensors), vit)
    except Exception:  # whatever it trips over is no tensor of this model
        return tensors
    sizes = {tensor.numel() for tensor in tensors.values()}
    changed = [name for name, tensor in found.items() if name.endswith(RESAMPLED) and tensor.numel() not in sizes]
    for name, bias in tensors.items():
        if name.endswith(".qkv.bias") and name not in found and f"{name.removesuffix('qkv.bias')}q_bias" not in found:
            q, _, v = bias.chunk(3)
            changed += [name] * bool(q.any() or v.any())
    return tensors if changed or not wanted.keys() <= found.keys() else found


def complete(vit: nn.Module) -> None:
    """Computes what is in no file, where it has no memory yet: tables of rotary and relative positions."""
    for module in vit.modules():
        bare = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in bare.items():
            module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)
        if bare:
            module.init_non_persistent_buffers()  # type: ignore[operator]


class UnsupportedError(RequestError):
    """A model of timm's that cannot be a backbone, for a reason."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


def _unsupported(architecture: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"{architecture!r} cannot be a backbone ({reason}): vitgraft adapts timm's VisionTransformer, Eva and "
        "SwinTransformer with ordinary blocks; choose one such as vit_base_patch16_224, vit_small_patch16_dinov3 or "
        "swin_base_patch4_window7_224.",
        reason,
    )
