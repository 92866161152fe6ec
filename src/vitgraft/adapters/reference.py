"""Checkpoints of the authors' released code, brought into ours by renaming their tensors."""

from __future__ import annotations

import inspect
import re
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.weights import Loaded
from ..common.errors import RequestError, near_misses
from ..model import Model
from .authors import READERS, need


def load(method: str, tensors: dict[str, Tensor], *, num_heads: int = 0, **settings: Any) -> Model:
    """The model that a checkpoint of the authors' code describes, in evaluation mode.

    tensors: the authors' state dict, backbone and head included; it tells sizes, depth, patch and square picture. The
    backbone is a ViT, or a Swin whose last stage is one window. num_heads: of a ViT, a Swin tells
    it. settings: what the tensors don't tell,

        hst           heads: of the four side stages, 2 4 8 12 unless given
        convpass      scale: s of the task's configuration
        sct           mode: "attn" unless given, "mlp" or "qkv"
                      indices: the channels, one [K] per block; in mode "qkv" one {"q": [K], "v": [K]} per block
        consolidator  reorder: False unless given, as in the released training
        apt           nothing
        e2vpt         nothing; what its masks drop becomes zeros, which are attended to as in their code
        bapat         scale: s, 0.8 unless given
                      where: which of q, k and v, "kv" unless given
                      mlp_scale: of the adapter beside the MLP, 0.1 unless given
        ett           support: the pictures of the episode, (normalised images [B, 3, H, W], labels [B])

    `model(images)` with normalised images [B, 3, H, W] gives the logits.
    """
    _check(method, tensors, settings)
    reader, tensors = READERS[method], READERS[method].convert(tensors)
    if reader.head:
        need(method, tensors, "head.weight")
    backbone = _backbone(method, tensors, num_heads)
    model = reader.build(backbone, tensors, **settings).to(tensors["patch_embed.proj.weight"].dtype)
    ours = model.state()
    model.load_state(ours | _taken(method, tensors, names(model), ours))
    reader.finish(model, **settings)
    return model.eval()


def names(model: Model) -> dict[str, str]:
    """Our name of a tensor of an adapter (`model.state()`) -> the authors', for those that their checkpoints hold."""
    rename = READERS[model.method.name()].rename
    theirs = {name: rename(name, model.backbone.depth) for name in model.state()}
    return {name: source for name, source in theirs.items() if source}


def _check(method: str, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    if method not in READERS:
        raise RequestError(
            f"No released code of {method!r} is known here: there is {', '.join(READERS)}; choose one of these."
            f"{near_misses(method, READERS)}"
        )
    parameters = inspect.signature(READERS[method].build).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in settings:
        if name not in known:
            raise RequestError(
                f"A released checkpoint of {method} has no setting {name!r}: it has {', '.join(known)}; leave it out."
                f"{near_misses(name, known)}"
            )
    found = [other for other, reader in READERS.items() if any(re.search(reader.mark, name) for name in tensors)]
    if found and method not in found:
        raise RequestError(
            f"{method} was asked for, but this is a checkpoint of {found[0]}: those of {', '.join(READERS)} can be "
            f"read; load it as {found[0]!r}, or give one of {method}."
        )


def _backbone(method: str, tensors: dict[str, Tensor], num_heads: int) -> Backbone:
    staged = any(name.startswith("layers.") for name in tensors)
    vit: Any = _swin(method, tensors) if staged else _vit(method, tensors, num_heads)
    vit = vit.to(tensors["patch_embed.proj.weight"].dtype)
    rename, depth, own = READERS[method].rename, _count(tensors, r"blocks"), vit.state_dict()
    vit.load_state_dict(_taken(method, tensors, {name: rename(name, depth) for name in own}, own))
    half, size = (0.5, 0.5, 0.5), vit.patch_embed.img_size
    return Backbone.of(Loaded(vit, "released checkpoint", "the authors' code", "vit", half, half, "bicubic", size))


def _vit(method: str, tensors: dict[str, Tensor], num_heads: int) -> nn.Module:
    depth = _count(tensors, r"blocks")
    fc1 = READERS[method].rename("blocks.0.mlp.fc1.weight", depth)
    need(method, tensors, "patch_embed.proj.weight", "pos_embed", fc1)
    patch = tensors["patch_embed.proj.weight"].shape
    grid = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    if num_heads < 1 or patch[0] % num_heads:
        raise RequestError(
            f"A backbone of width {patch[0]} cannot be split into num_heads={num_heads} heads: give the number that it "
            "was trained with."
        )
    return VisionTransformer(
        img_size=grid * patch[2],
        patch_size=patch[2],
        embed_dim=patch[0],
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=tensors[fc1].shape[0] / patch[0],
        num_classes=0,
        dynamic_img_size=True,
    )


def _swin(method: str, tensors: dict[str, Tensor]) -> nn.Module:
    stages = range(_count(tensors, r"layers"))
    tables = [f"layers.{s}.blocks.0.attn.relative_position_bias_table" for s in stages]  # [(2 window - 1)^2, heads]
    fc1 = "layers.0.blocks.0.mlp.fc1.weight"
    need(method, tensors, "patch_embed.proj.weight", fc1, *tables)
    patch = tensors["patch_embed.proj.weight"].shape
    window = (round(len(tensors[tables[0]]) ** 0.5) + 1) // 2
    return SwinTransformer(
        img_size=patch[2] * 2 ** (len(stages) - 1) * window,
        patch_size=patch[2],
        embed_dim=patch[0],
        depths=tuple(_count(tensors, rf"layers\.{s}\.blocks") for s in stages),
        num_heads=tuple(tensors[name].shape[1] for name in tables),
        window_size=window,
        mlp_ratio=len(tensors[fc1]) / patch[0],
        num_classes=0,
        strict_img_size=False,
    )


def _count(tensors: dict[str, Tensor], path: str) -> int:
    """Of how many modules PATH.0, PATH.1, ... there are tensors."""
    return 1 + max((int(m[1]) for name in tensors if (m := re.match(rf"{path}\.(\d+)\.", name))), default=0)


def _taken(
    method: str, tensors: dict[str, Tensor], theirs: dict[str, str], ours: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Their tensors under our names. theirs: our name -> their name; ours: our name -> a tensor of the right shape."""
    need(method, tensors, *theirs.values())
    taken = {}
    for name, source in theirs.items():
        tensor, shape = tensors[source], ours[name].shape
        if tensor.shape == (*shape, 1):  # their linear layer is a convolution with a kernel of 1
            tensor = tensor.squeeze(-1)
        if tensor.shape != shape:
            raise RequestError(
                f"The tensor {source!r} of this checkpoint of {method} is {list(tensor.shape)}, but the others call "
                f"for {list(shape)}: give a state dict as the released code saved it."
            )
        taken[name] = tensor
    return taken
