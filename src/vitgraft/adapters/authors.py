"""What is known of each method's released code: one `Reader` per method, for `reference.load`.

A reader recognises the checkpoints of its method, builds our model from the shapes in them and from the settings that
shapes don't tell, and knows the authors' name of every tensor of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..backbones import Backbone
from ..common.errors import RequestError
from ..heads.prototypes import Prototypes
from ..methods.ett import ETT
from ..methods.sct import SCT
from ..model import Model, build


class Reader(NamedTuple):
    """mark: a pattern in the names of its checkpoints, and of no other's.

    build: (backbone, their tensors, *, settings) -> the model, with everything that their tensors will not fill.
    rename: (our name, the backbone's depth) -> their name; "" for a tensor that their checkpoints lack.
    convert: their tensors -> the same in timm's layout, where they have another; `rename` is of these names then.
    finish: (model, *, settings) -> None, once their tensors are in it. head: whether checkpoints hold one.
    """

    mark: str
    build: Callable[..., Model]
    rename: Callable[[str, int], str]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    finish: Callable[..., None] = lambda model, **settings: None
    head: bool = True


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

    return lambda name, depth: _substituted(_plain(name), table)


def _substituted(name: str, table: Table) -> str:
    for pattern, instead in table.items():
        name = re.sub(pattern, instead, name)
    return name


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

# The Swin of all is older than today's timm: what halves the map ends a stage, and does not begin the next.
OLD_SWIN: Table = {r"^layers\.(\d+)\.downsample\.": lambda m: f"layers.{int(m[1]) - 1}.downsample."}
CONVPASS_NAMES: Table = {
    r"^contacts\.branches\.(.*blocks\.\d+)\.(attn|mlp)\.": r"\1.adapter_\2.adapter_",
    **OLD_SWIN,
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


# BAPAT, bruceyo/V-PETL: a video Swin, whose patches may have one frame

BAPAT_NAMES: Table = {
    r"^contacts\.branches\.(.*blocks\.\d+)\.attn\.qkv\.down\.": r"\1.attn.qkv_adapter.0.",
    r"^contacts\.branches\.(.*blocks\.\d+)\.attn\.qkv\.up\.": r"\1.attn.qkv_adapter.2.",
    r"^contacts\.branches\.(.*blocks\.\d+)\.mlp\.(down|up)\.": r"\1.mlp.adaptmlp.\2_proj.",
    **OLD_SWIN,
}


def _bapat_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    patch = "patch_embed.proj.weight"  # [D, 3, frames, p, p]
    one_frame = patch in tensors and tensors[patch].dim() == 5 and tensors[patch].shape[2] == 1
    return tensors | ({patch: tensors[patch][:, :, 0]} if one_frame else {})


def _bapat(
    backbone: Backbone, tensors: dict[str, Tensor], *, scale: float = 0.8, where: str = "kv", mlp_scale: float = 0.1
) -> Model:
    block = backbone.blocks[0]
    down, up = (f"{block.path}.attn.qkv_adapter.{i}.weight" for i in (0, 2))
    need("bapat", tensors, down, up)
    beside = tensors.get(f"{block.path}.mlp.adaptmlp.down_proj.weight", ())
    parts = len(tensors[up]) // block.width
    if parts != len(where):
        raise RequestError(
            f"This checkpoint of bapat adds to {parts} of q, k and v, but where={where!r} came: give where= as it was "
            "trained, one of kv, qv, qk, qkv."
        )
    return build(
        backbone,
        "bapat",
        classes=len(tensors["head.weight"]),
        rank=len(tensors[down]),
        scale=scale,
        where=where,
        mlp_rank=len(beside),
        mlp_scale=mlp_scale,
    )


# E2VPT, ChengHan111/E2VPT: a ViT of other names, with q, k and v apart; prompts of all blocks in one tensor, and masks

E2VPT_NAMES: Table = {
    r"^transformer\.embeddings\.patch_embeddings\.": "patch_embed.proj.",
    r"^transformer\.embeddings\.cls_token$": "cls_token",
    r"^transformer\.embeddings\.position_embeddings$": "pos_embed",
    r"^transformer\.encoder\.encoder_norm\.": "norm.",
    r"^transformer\.encoder\.layer\.": "blocks.",
    r"^transformer\.": "",
    r"\.attention_norm\.": ".norm1.",
    r"\.ffn_norm\.": ".norm2.",
    r"\.ffn\.": ".mlp.",
    r"\.attn\.out\.": ".attn.proj.",
    r"^layers\.(\d+)\.downsample\.": lambda m: f"layers.{int(m[1]) + 1}.downsample.",
}
MASK = "prompt_soft_tokens_mask_cls_token"
MASK_OF_PIECES = "prompt_soft_tokens_pieces_mask_cls_token"


def _e2vpt_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is masked becomes zero: their code attends to it all the same. On Swin the first block alone is masked."""
    found = {_substituted(name, E2VPT_NAMES): tensor for name, tensor in tensors.items()}
    for name in [name for name in found if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{role}.") for role in ("query", "key", "value")]
        found[name.replace(".query.", ".qkv.")] = torch.cat([found.pop(part) for part in parts])
    deep = sorted(name for name in found if name.startswith("deep_prompt_embeddings"))
    prompts = [t for name in ("prompt_embeddings", *deep) if name in found for t in found.pop(name)]
    if MASK in found and MASK_OF_PIECES in found:
        tokens, pieces = found.pop(MASK), found.pop(MASK_OF_PIECES)
        masked = prompts[:1] if len(deep) > 1 else prompts
        for i, prompt in enumerate(masked):
            prompts[i] = prompt * (tokens[:, None] * pieces.repeat(1, prompt.shape[1] // pieces.shape[1]))
    found |= {f"inputs.{i}": prompt for i, prompt in enumerate(prompts)}
    keys = [name for name in found if re.search(r"\.deep_QKV_embeddings(_K)?$", name)]
    for i, name in enumerate(sorted(keys, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])):
        own = [found.pop(name)] + ([found.pop(f"{name[:-1]}V")] if name.endswith("_K") else [])
        found[f"keys_values.{i}"] = torch.stack(own)
    return found


def _e2vpt(backbone: Backbone, tensors: dict[str, Tensor]) -> Model:
    """In their Swin the prompts are pooled with the patches."""
    need("e2vpt", tensors, "inputs.0", "keys_values.0")
    return build(
        backbone,
        "e2vpt",
        classes=len(tensors["head.weight"]),
        prompts=len(tensors["inputs.0"]),
        key_value=tensors["keys_values.0"].shape[2],
        shared=len(tensors["keys_values.0"]) == 1,
        pool_prompts=len(backbone.stages) > 1,
    )


# eTT, loadder/eTT_TMLR2022: no head, classes are told apart by the means of the pictures that are given

ETT_NAMES: Table = {
    r"^prototypes$": "prefix_weight",
    r"^net\.": "control_trans.",
    r"^T$": "transform",
    r"^apart\.projector\.": "regulariser.projector.",
    r"^apart\.(start|centre)$": "",
    r"^contacts\.changes\.(blocks\.\d+)\.attn\.proj\.d$": r"\1.adapter_1.offset",
    r"^contacts\.changes\.(blocks\.\d+)\.mlp\.fc2\.d$": r"\1.adapter_2.offset",
    r"^head\..*": "",
}


def _ett_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    first = tensors.get("prefix_weight")
    identity = {} if first is None else {"transform": torch.eye(first.shape[1], dtype=first.dtype)}
    return identity | tensors


def _ett(backbone: Backbone, tensors: dict[str, Tensor], *, support: tuple[Tensor, Tensor] | None = None) -> Model:
    need("ett", tensors, "prefix_weight", "control_trans.0.weight")
    if support is None:
        raise RequestError(
            "A checkpoint of ett tells classes apart by the pictures of its episode, and none came: give support=, "
            "normalised images [B, 3, H, W] and labels [B]."
        )
    classes, width = tensors["prefix_weight"].shape
    model = build(backbone, "ett", classes=classes, hidden=len(tensors["control_trans.0.weight"]))
    return Model(backbone, model.method, Prototypes(width, classes))


def _with_support(model: Model, *, support: tuple[Tensor, Tensor]) -> None:
    """The means of the classes. Where its prototypes began a checkpoint does not tell: a fit begins from them."""
    method = cast(ETT, model.method)
    method.start(method.prototypes.detach())
    model.head.take(pooled(model.eval(), support[0]), support[1])


def pooled(model: Model, images: Tensor) -> Tensor:
    """The features that the head reads, [B, D']."""
    with torch.no_grad():
        return model.features(images).pooled


READERS = {
    "hst": Reader(r"^T_Bridge_\d", _hst, _hst_name),
    "convpass": Reader(r"\.adapter_(attn|mlp)\.adapter_conv\.", _convpass, _by_table(CONVPASS_NAMES)),
    "sct": Reader(r"\.sct_(attn|mlp)\.adapt_linear\.|\.attn\.[qv]_l\.", _sct, _by_table(SCT_NAMES)),
    "consolidator": Reader(r"\.fc_rep_branches\.\d+\.", _consolidator, _by_table(CONSOLIDATOR_NAMES)),
    "apt": Reader(r"\.attn\.APT\.mm_tokens$", _apt, _by_table(APT_NAMES)),
    "bapat": Reader(r"\.attn\.qkv_adapter\.\d\.", _bapat, _by_table(BAPAT_NAMES), _bapat_tensors),
    "e2vpt": Reader(r"\.deep_QKV_embeddings", _e2vpt, _by_table({}), _e2vpt_tensors),
    "ett": Reader(r"^control_trans\.\d", _ett, _by_table(ETT_NAMES), _ett_tensors, _with_support, head=False),
}
