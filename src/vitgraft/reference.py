"""Checkpoints of the authors' released code, brought into ours by renaming their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

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
    _need(tensors, method, "head.weight", "head.bias", "patch_embed.proj.weight", "pos_embed")
    backbone = _backbone(tensors, num_heads)
    return READERS[method](backbone, dict(tensors), **settings).eval()


def _backbone(tensors: dict[str, Tensor], num_heads: int) -> Backbone:
    patch = tensors["patch_embed.proj.weight"].shape
    grid = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
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
    _need(tensors, "the backbone", *own)
    vit.load_state_dict({name: tensors[name] for name in own})
    half = (0.5, 0.5, 0.5)
    size = (grid * patch[2], grid * patch[2])
    return Backbone(Loaded(vit, "released checkpoint", "the authors' code", "vit", half, half, "bicubic", size))


def _hst(backbone: Backbone, tensors: dict[str, Tensor], *, heads: tuple[int, ...] = (2, 4, 8, 12)) -> Model:
    """AFeng-x/HST: m_* are the side network, T_Bridge_s the bridge, m_embeddings the meta tokens."""
    _need(tensors, "hst", "m_embeddings.0", "T_Bridge_1.weight", "m_block1.0.mlp.fc1.weight")
    widths = tuple(tensors[f"T_Bridge_{s}.weight"].shape[0] for s in (1, 2, 3, 4))
    model = build(
        backbone,
        "hst",
        classes=len(tensors["head.weight"]),
        widths=widths,
        heads=heads,
        mlp_ratio=tensors["m_block1.0.mlp.fc1.weight"].shape[0] // widths[0],
        meta_tokens=tensors["m_embeddings.0"].shape[1],
    ).to(tensors["pos_embed"].dtype)
    per_stage = backbone.depth // 4

    def theirs(name: str) -> str:
        """The authors' name of one of our tensors."""
        if name.startswith("head.fc."):
            return name.replace("head.fc", "head")
        name = name.removeprefix("method.").removeprefix("contacts.trained.")
        if match := re.match(r"stages\.(\d)\.(\w+)\.?(.*)", name):
            stage, part, rest = int(match[1]) + 1, match[2], match[3]
            if part == "down":
                index, _, leaf = rest.partition(".")
                return f"m_patch_embed1.conv.{index}.{leaf}" if stage == 1 else f"m_patch_embed{stage}.proj.{leaf}"
            if part == "blocks":
                rest = re.sub(r"^(\d+)\.(q|k|v|proj)\.", r"\1.attn.\2.", rest)
                return f"m_block{stage}." + re.sub(r"^(\d+)\.(fc[12])\.", r"\1.mlp.\2.", rest)
            if part == "meta_norms":
                index, _, leaf = rest.partition(".")
                return f"m_proj_norm{(stage - 1) * per_stage + int(index) + 1}.{leaf}"
            return {"down_norm": f"m_patch_embed{stage}.norm", "bridge": f"T_Bridge_{stage}", "norm": f"m_norm{stage}"}[
                part
            ] + f".{rest}"
        return name.replace("meta.", "m_embeddings.").replace("pooled_norm", "fc_norm")

    return _fill(model, tensors, theirs)


def _fill(model: Model, tensors: dict[str, Tensor], theirs: Callable[[str], str]) -> Model:
    names = {name: theirs(name) for name in model.state()}
    _need(tensors, "the checkpoint", *names.values())
    model.load_state({name: tensors[source] for name, source in names.items()})
    return model


def _need(tensors: dict[str, Tensor], what: str, *names: str) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise RequestError(
            f"This is no whole checkpoint of {what}: {missing[0]!r} is missing"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
            + f" among its {len(tensors)} tensors; give the whole state dict, backbone and head included."
        )


READERS = {"hst": _hst}
