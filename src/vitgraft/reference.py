"""Checkpoints of the authors' released code, brought into ours by renaming their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from .backbone import Backbone
from .errors import RequestError, near_misses
from .model import Model, build
from .weights import Loaded


def load(method: str, tensors: dict[str, Tensor], *, num_heads: int, **settings: Any) -> Model:
    """The model that a checkpoint of the authors' code describes, in evaluation mode.

    tensors: the authors' state dict, backbone and head included; it tells sizes, depth, patch and square picture.
    num_heads: of the backbone. settings: what shapes don't tell (HST: `heads` of the four side stages).
    `model(images)` with normalised images [B, 3, H, W] gives the logits.
    """
    if method not in READERS:
        raise RequestError(
            f"No released code of {method!r} is known here: there is {', '.join(READERS)}; choose one of these."
            f"{near_misses(method, READERS)}"
        )
    backbone = _backbone(tensors, num_heads)
    model = READERS[method].build(backbone, tensors, **settings).to(tensors["pos_embed"].dtype)
    theirs = names(model)
    _need(tensors, method, *theirs.values())
    model.load_state({name: tensors[source] for name, source in theirs.items()})
    return model.eval()


def names(model: Model) -> dict[str, str]:
    """The authors' name of every tensor of an adapter (`model.state()`), by ours."""
    translate = READERS[model.method.name()].translate
    return {name: translate(name, model.backbone) for name in model.state()}


def _backbone(tensors: dict[str, Tensor], num_heads: int) -> Backbone:
    _need(tensors, "a backbone", "patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    patch = tensors["patch_embed.proj.weight"].shape
    grid = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    if num_heads < 1 or patch[0] % num_heads:
        raise RequestError(
            f"A backbone of width {patch[0]} cannot be split into num_heads={num_heads} heads: give the number that it "
            "was trained with."
        )
    depth = 1 + max(int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name)))
    vit = VisionTransformer(
        img_size=grid * patch[2],
        patch_size=patch[2],
        embed_dim=patch[0],
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=tensors["blocks.0.mlp.fc1.weight"].shape[0] / patch[0],
        num_classes=0,
        dynamic_img_size=True,
    ).to(tensors["pos_embed"].dtype)
    own = vit.state_dict()
    _need(tensors, "a backbone", *own)
    vit.load_state_dict({name: tensors[name] for name in own})
    half = (0.5, 0.5, 0.5)
    size = (grid * patch[2], grid * patch[2])
    return Backbone(Loaded(vit, "released checkpoint", "the authors' code", "vit", half, half, "bicubic", size))


def _hst(backbone: Backbone, tensors: dict[str, Tensor], *, heads: tuple[int, ...] = (2, 4, 8, 12)) -> Model:
    bridges = [f"T_Bridge_{s}.weight" for s in (1, 2, 3, 4)]
    _need(tensors, "hst", *bridges, "m_embeddings.0", "m_block1.0.mlp.fc1.weight", "head.weight")
    widths = tuple(tensors[name].shape[0] for name in bridges)
    return build(
        backbone,
        "hst",
        classes=len(tensors["head.weight"]),
        widths=widths,
        heads=heads,
        mlp_ratio=tensors["m_block1.0.mlp.fc1.weight"].shape[0] // widths[0],
        meta_tokens=tensors["m_embeddings.0"].shape[1],
    )


def _hst_name(name: str, backbone: Backbone) -> str:
    """AFeng-x/HST: m_* are the side network, T_Bridge_s the bridge, m_embeddings the meta tokens."""
    if name.startswith("head.fc."):
        return name.replace("head.fc", "head")
    name = name.removeprefix("method.").removeprefix("contacts.trained.")
    match = re.match(r"stages\.(\d)\.(\w+)\.?(.*)", name)
    if not match:
        return name.replace("meta.", "m_embeddings.").replace("pooled_norm", "fc_norm")
    stage, part, rest = int(match[1]) + 1, match[2], match[3]
    index, _, leaf = rest.partition(".")
    if part == "down":
        return f"m_patch_embed1.conv.{index}.{leaf}" if stage == 1 else f"m_patch_embed{stage}.proj.{leaf}"
    if part == "blocks":
        leaf = re.sub(r"^(q|k|v|proj)\.", r"attn.\1.", leaf)
        return f"m_block{stage}.{index}." + re.sub(r"^(fc[12])\.", r"mlp.\1.", leaf)
    if part == "meta_norms":
        return f"m_proj_norm{(stage - 1) * (backbone.depth // 4) + int(index) + 1}.{leaf}"
    theirs = {"down_norm": f"m_patch_embed{stage}.norm", "bridge": f"T_Bridge_{stage}", "norm": f"m_norm{stage}"}
    return f"{theirs[part]}.{rest}"


def _need(tensors: dict[str, Tensor], what: str, *names: str) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise RequestError(
            f"This is no whole checkpoint of {what}: {missing[0]!r} is missing"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
            + f" among its {len(tensors)} tensors; give the whole state dict, backbone and head included."
        )


class Reader(NamedTuple):
    """What is known of one method's released code."""

    build: Callable[..., Model]  # (backbone, their tensors, **settings) -> the model, its tensors still to be filled
    translate: Callable[[str, Backbone], str]  # our name of a tensor -> theirs


READERS = {"hst": Reader(_hst, _hst_name)}
