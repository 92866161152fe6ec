"""What is known of each method's released code: one `Reader` per method, for `reference.load`.

A reader recognises the checkpoints of its method, builds our model from the shapes in them and from the settings that
shapes don't tell, and knows the authors' name of every tensor of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbones import Backbone
from ..common.errors import RequestError
from ..methods.sct import SCT
from ..model import Model, build


class Reader(NamedTuple):
    """mark: a pattern in the names of its checkpoints, and of no other's.

    build: (backbone, their tensors, *, settings) -> the model, with everything that their tensors will not fill.
    rename: (our name, the backbone's depth) -> their name; "" for a tensor that their checkpoints lack.
    """

    mark: str
    build: Callable[..., Model]
    rename: Callable[[str, int], str]


def need(method: str, tensors: dict[str, Tensor], *names: str) -> None:
    """A RequestError that names the first of these tensors that is missing."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise RequestError(
            f"This is no whole checkpoint of {method}: {missing[0]!r} is missing"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
            + f" among its {len(tensors)} tensors; give the whole state dict, backbone and head included."
        )


Table = Mapping[str, "str | Callable[[re.Match[str]], str]"]  # patterns of our names -> what theirs have instead


def _by_table(table: Table) -> Callable[[str, int], str]:
    """A `rename` by substitutions; what it meets are timm's names, `contacts...` of the method, and the head's."""

    def rename(name: str, depth: int) -> str:
        name = _plain(name)
        for ours, theirs in table.items():
            name = re.sub(ours, theirs, name)
        return name

    return rename


def _plain(name: str) -> str:
    """Our name with what trains of the backbone under timm's own name, and the head as its one linear layer."""
    return name.removeprefix("method.").removeprefix("contacts.trained.").replace("head.fc.", "head.")


# HST, AFeng-x/HST


def _hst(backbone: Backbone, tensors: dict[str, Tensor], *, heads: tuple[int, ...] = (2, 4, 8, 12)) -> Model:
    bridges = [f"T_Bridge_{s}.weight" for s in (1, 2, 3, 4)]
    need("hst", tensors, *bridges, "m_embeddings.0", "m_block1.0.mlp.fc1.weight")
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


def _hst_name(name: str, depth: int) -> str:
    """m_* are the side network, T_Bridge_s the bridge, m_embeddings the meta tokens."""
    name = _plain(name)
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
        return f"m_proj_norm{(stage - 1) * (depth // 4) + int(index) + 1}.{leaf}"
    theirs = {"down_norm": f"m_patch_embed{stage}.norm", "bridge": f"T_Bridge_{stage}", "norm": f"m_norm{stage}"}
    return f"{theirs[part]}.{rest}"


# Convpass, JieShibo/PETL-ViT

CONVPASS_NAMES: Table = {
    r"^contacts\.branches\.(.*blocks\.\d+)\.(attn|mlp)\.": r"\1.adapter_\2.adapter_",
    # Their Swin is older than today's timm: what halves the map ends a stage, and does not begin the next.
    r"^layers\.(\d+)\.downsample\.": lambda m: f"layers.{int(m[1]) - 1}.downsample.",
}


def _convpass(backbone: Backbone, tensors: dict[str, Tensor], *, scale: float | None = None) -> Model:
    if scale is None:
        raise RequestError(
            "The tensors of a checkpoint of convpass don't tell its scale, and none came: give scale=, the s of the "
            "task's configuration, which is one of 0.01, 0.1, 1, 10, 100."
        )
    sublayers = [s for s in ("attn", "mlp") if any(f".adapter_{s}." in name for name in tensors)] or ["attn"]
    down = f"{backbone.blocks[0].path}.adapter_{sublayers[0]}.adapter_down.weight"
    need("convpass", tensors, down)
    return build(
        backbone,
        "convpass",
        classes=len(tensors["head.weight"]),
        sublayers=sublayers,
        bottleneck=len(tensors[down]),
        scale=scale,
    )


# SCT, showlab/SCT

SCT_LAYERS = {"attn": "sct_attn.adapt_linear", "mlp": "sct_mlp.adapt_linear", "qkv": "attn.q_l"}  # mode -> its first
SCT_NAMES = {
    r".*\.indices$": "",
    r"^contacts\.afters\.(blocks\.\d+)\.attn\.linear": r"\1.sct_attn.adapt_linear",
    r"^contacts\.changes\.(blocks\.\d+)\.mlp\.fc2\.parts\.all\.linear": r"\1.sct_mlp.adapt_linear",
    r"^contacts\.changes\.(blocks\.\d+\.attn)\.qkv\.parts\.(q|v)\.linear": r"\1.\2_l",
}


def _sct(backbone: Backbone, tensors: dict[str, Tensor], *, mode: str = "attn", indices: Any = None) -> Model:
    own = next((m for m, layer in SCT_LAYERS.items() if any(f".{layer}." in name for name in tensors)), "attn")
    first = f"blocks.0.{SCT_LAYERS[own]}.weight"
    need("sct", tensors, first)
    if mode != own:
        raise RequestError(
            f"mode={mode!r} came with a checkpoint of sct whose tensors are of mode {own!r}: there are "
            f"{', '.join(SCT_LAYERS)}; give mode={own!r}."
        )
    model = build(backbone, "sct", classes=len(tensors["head.weight"]), mode=mode, channels=len(tensors[first]))
    assert isinstance(model.method, SCT)
    _place(model.method, list(indices) if isinstance(indices, Iterable) else [], backbone.width)
    return model


def _place(method: SCT, blocks: list[Any], D: int) -> None:
    """Fills in the channels. blocks: for each the indices [K], or {"q": [K], "v": [K]}."""
    if len(blocks) != len(method.salient):
        raise RequestError(
            f"A checkpoint of sct lacks the channels that it tunes, and the indices of {len(blocks) or 'no'} blocks "
            f"came: give indices=, one entry for each of its {len(method.salient)} blocks."
        )
    for i, (given, parts) in enumerate(zip(blocks, method.salient, strict=True)):
        by_part = given if isinstance(given, Mapping) else {"all": given}
        if by_part.keys() != parts.keys():
            came = " and ".join(map(repr, given)) if by_part is given else "one tensor"
            tunes, give = ("one set", "one tensor") if "all" in parts else ("q and v", "{'q': ..., 'v': ...}")
            raise RequestError(
                f"The indices of block {i} came as {came}, but mode {method.mode!r} tunes {tunes} per block: give "
                f"{give} for each."
            )
        for part, salient in parts.items():
            salient.indices.copy_(_channels(by_part[part], len(salient.indices), D, i))


def _channels(given: Any, K: int, D: int, block: int) -> Tensor:
    """The indices of a block as a tensor [K], if they are K different channels of D."""
    numbers = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(numbers, Sequence) or not all(isinstance(n, Integral) for n in numbers):
        fault = "something else than whole numbers"
    elif len(numbers) != K:
        fault = f"{len(numbers)} numbers"
    elif strays := [n for n in numbers if not 0 <= n < D]:
        fault = f"channel {strays[0]}"
    elif repeated := [n for i, n in enumerate(numbers) if n in numbers[:i]]:
        fault = f"channel {repeated[0]} twice"
    else:
        return torch.tensor(numbers)
    raise RequestError(
        f"The indices of block {block} hold {fault}, but its linear layer tunes {K} different channels from 0 to "
        f"{D - 1}: give those that the released code chose."
    )


# Consolidator, THU-MIG/Consolidator; its linear layers are convolutions with a kernel of 1, their weights [out, in, 1]

CONSOLIDATOR_NAMES = {
    r"^(blocks\.\d+\.(?:attn|mlp)\.(?:qkv|proj|fc[12]))\.(weight|bias)$": r"\1.fc_origin.\2",
    r"^contacts\.changes\.(.+)\.weights\.(\d+)$": r"\1.fc_rep_branches.\2.group_fc.weight",
    r"^contacts\.changes\.(.+)\.biases\.(\d+)$": r"\1.fc_rep_branches.\2.group_fc.bias",
}


def _consolidator(backbone: Backbone, tensors: dict[str, Tensor], *, reorder: bool = False) -> Model:
    found = [int(m[1]) for name in tensors if (m := re.search(r"\.fc_rep_branches\.(\d+)\.", name))]
    branches = [f"blocks.0.attn.qkv.fc_rep_branches.{i}.group_fc.weight" for i in range(max(found, default=0) + 1)]
    need("consolidator", tensors, *branches)
    return build(
        backbone,
        "consolidator",
        classes=len(tensors["head.weight"]),
        groups=tuple(backbone.width // tensors[name].shape[1] for name in branches),  # [out, in / g, 1] each
        reorder=reorder,
        originals=("bias", "norm"),  # the released code trains both
    )


# APT, DoubtedSteam/APT

APT_NAMES: Table = {
    r"^contacts\.branches\.(blocks\.\d+)\.attn\.U$": r"\1.attn.APT.mm_tokens",
    r"^contacts\.branches\.(blocks\.\d+)\.attn\.A$": r"\1.attn.APT.mm.0.weight",
    r"^contacts\.branches\.(blocks\.\d+)\.attn\.C$": r"\1.attn.APT.mm.1.weight",
    r"^contacts\.branches\.(blocks\.\d+)\.attn\.s$": r"\1.attn.APT.scale",
}


def _apt(backbone: Backbone, tensors: dict[str, Tensor]) -> Model:
    tokens, down = "blocks.0.attn.APT.mm_tokens", "blocks.0.attn.APT.mm.0.weight"
    need("apt", tensors, tokens, down)
    M, R, K = (len(tensors[name]) for name in (tokens, down, "head.weight"))
    return build(backbone, "apt", classes=K, prompts=M, rank=R)


READERS = {
    "hst": Reader(r"^T_Bridge_\d", _hst, _hst_name),
    "convpass": Reader(r"\.adapter_(attn|mlp)\.adapter_conv\.", _convpass, _by_table(CONVPASS_NAMES)),
    "sct": Reader(r"\.sct_(attn|mlp)\.adapt_linear\.|\.attn\.[qv]_l\.", _sct, _by_table(SCT_NAMES)),
    "consolidator": Reader(r"\.fc_rep_branches\.\d+\.", _consolidator, _by_table(CONSOLIDATOR_NAMES)),
    "apt": Reader(r"\.attn\.APT\.mm_tokens$", _apt, _by_table(APT_NAMES)),
}
