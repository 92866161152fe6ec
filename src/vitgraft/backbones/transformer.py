"""The pass that all families have in common: blocks of attention and MLP, with a method's contacts between them.

Written out over timm's own modules, because the contacts lie inside its blocks. With no contacts it equals timm's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn
from torch.func import functional_call

from ..contacts import Contacts, InTraining
from ..features import Activations
from ..kernels.attention import attention
from ..kernels.linear import Change, Gathered, frozen_linear
from ..kernels.recompute import checkpointed, recomputed
from ..kernels.rotary import Rotary
from .base import Backbone, Block, Part, drop_path, noisy


class Where(NamedTuple):
    """What a block has to know of the tokens [B, M+P+N, D] that it is given.

    grid (h, w) of the N patches; M extra tokens in front of all; the tokens that are wanted of it, None for all;
    rotary: the position embedding of q and k, where there is one; bias [B, 1, M+P+N, M+P+N]: what is added to the
    scores of attention.
    """

    grid: tuple[int, int]
    M: int = 0
    wanted: slice | None = None
    rotary: Rotary | None = None
    bias: Tensor | None = None


class Transformer(Backbone):
    """Blocks one after the other. A family says where they lie, how pictures become tokens, how tokens are pooled."""

    post_norm = False  # each sub-layer's norm stands behind it, not in front
    scales: tuple[str, str] = ("", "")  # the LayerScale of attention and MLP: its tensor in a block, "" for none

    def _found(self, paths: list[str], stages: tuple[range, ...]) -> None:
        """Sets what follows from where the blocks lie."""
        self.depth = len(paths)
        self.stages = stages
        self.blocks = tuple(self._as_block(path) for path in paths)
        self.width = self.blocks[-1].width
        layers = dict.fromkeys(part.layer for block in self.blocks for of in block.parts.values() for part in of)
        self.linears = {path: self._at[path] for path in self._at if path in layers}
        self._number: dict[str, int] = {}  # of its block, for every place of a contact
        for i, block in enumerate(self.blocks):
            own = (part.layer for of in block.parts.values() for part in of)
            self._number |= dict.fromkeys((block.path, f"{block.path}.attn", f"{block.path}.mlp", *own), i)
        norms = {
            path: module
            for path, module in self._at.items()
            if isinstance(module, nn.LayerNorm)
            and (path == "norm" or re.fullmatch(r"norm[12]", path.rpartition(".")[2]))
            and path.rpartition(".")[0] in ("", *paths)
        }
        self.affine = {"patch_embed.proj": self._at["patch_embed.proj"], **norms, **self.linears}
        # Where q and v have biases of their own beside a fused layer that has none.
        self._biases = {
            f"{path}.attn.qkv" for path in paths if getattr(self._at[f"{path}.attn"], "q_bias", None) is not None
        }

    def _as_block(self, path: str) -> Block:
        attn, mlp = (self._at[f"{path}.{sublayer}"] for sublayer in ("attn", "mlp"))
        width = self._at[f"{path}.norm1"].weight.shape[0]
        parts: dict[str, tuple[Part, ...]] = {}
        if (qkv := attn.qkv) is not None:
            third = qkv.out_features // 3
            layer = f"{path}.attn.qkv"
            parts = {role: (Part(layer, i * third, (i + 1) * third),) for i, role in enumerate("qkv")}
            parts["qkv"] = (Part(layer, 0, 3 * third),)
        else:
            parts = {role: _whole(self._at, f"{path}.attn.{role}_proj") for role in "qkv"}
            parts["qkv"] = tuple(part for role in "qkv" for part in parts[role])
        parts["proj"] = _whole(self._at, f"{path}.attn.proj")
        if type(mlp) in (Mlp, GluMlp):
            parts["fc1"] = _whole(self._at, f"{path}.mlp.fc1")
        elif type(mlp) is SwiGLU:
            parts["fc1"] = (*_whole(self._at, f"{path}.mlp.fc1_g"), *_whole(self._at, f"{path}.mlp.fc1_x"))
        if "fc1" in parts:
            parts["fc2"] = _whole(self._at, f"{path}.mlp.fc2")
        return Block(path, width, attn.num_heads, parts)

    def forward(
        self,
        images: Tensor,
        contacts: Contacts | None = None,
        *,
        pooled_only: bool = False,
        patches: Collection[int] = (),
    ) -> Activations:
        """images [B, 3, H, W] (normalised), with a method's contacts or none -> Activations.

        pooled_only: nothing but `pool` will look at the tokens. Where it takes CLS, the last block then computes its
        sub-layers for the prefix tokens alone, and these are all that is given. patches: the blocks whose patch tokens
        are wanted too.
        """
        c = self._in_effect(contacts)
        x, grid = self._embed(images, c)
        end = self.depth - 1
        how = c.in_training if c.training and c.inside else InTraining()
        checkpoints = how.gradient_checkpointing and torch.is_grad_enabled()
        short = pooled_only and self.pooling == "token" and end not in c.taps
        firsts = {stage[0]: s for s, stage in enumerate(self.stages) if s}
        found = Activations(x, [grid])
        rotary = self._rotary(grid, c)
        M = last = 0  # how many extra tokens stand in front, and their last block
        for i, block in enumerate(self.blocks):
            if i in firsts:
                x, grid = self._merge_patches(firsts[i], x, grid, c)
                found.grids.append(grid)
            if (before := c.before_at.get(block.path)) is not None:
                x = self._noisy(block.path, before(x, grid), c, upon=x)
            if i == 0 and -1 in c.taps:
                found.taps[-1] = self.tapped(x, c.taps[-1])
            if i in c.tokens:
                make, last = c.tokens[i]
                tokens = make(x.shape[0]).expand(x.shape[0], -1, -1).to(x.dtype)
                M = tokens.shape[1]
                x = torch.cat([tokens, x], dim=1)
            bias = c.entering[i](i, x, grid) if i in c.entering else None
            wanted = slice(M, M + self.prefix) if short and i == end else None
            where = Where(grid, M, wanted, rotary and rotary.of(i, M + self.prefix, x), bias)
            given = (x, block, c, where, partial(drop_path, rate=how.drop_path * i / max(end, 1), copies=how.copies))
            x = checkpointed(self._block, *given) if checkpoints else self._block(*given)
            if M and i == last and wanted is None:
                found.extra[i], x = x.split([M, x.shape[1] - M], dim=1)
                M = 0
            if i in c.taps:
                found.taps[i] = self.tapped(x[:, M:] if M else x, c.taps[i])
            if i in patches:
                found.patches.append(self.tapped(x[:, M + self.prefix :], True))
        found.tokens = self._call("norm", x, c)
        return found

    def normalised(self, tokens: Tensor, contacts: Contacts) -> Tensor:
        """tokens as the last block leaves them [B, n, D] -> under the final norm."""
        return self._call("norm", tokens, contacts)

    def _embed(self, images: Tensor, c: Contacts) -> tuple[Tensor, tuple[int, int]]:
        """[B, 3, H, W] -> the tokens that enter the first block [B, P+N, D], and their grid."""
        raise NotImplementedError

    def _rotary(self, grid: tuple[int, int], c: Contacts) -> Rotary | None:
        """The rotary position embedding of a grid, where the family has one."""
        return None

    def _merge_patches(
        self, stage: int, x: Tensor, grid: tuple[int, int], c: Contacts
    ) -> tuple[Tensor, tuple[int, int]]:
        """From the map of one stage [B, N, D] to that which enters the next, where there are several."""
        raise NotImplementedError

    def _block(self, x: Tensor, block: Block, c: Contacts, where: Where, drop: Callable[[Tensor], Tensor]) -> Tensor:
        """One block with its drop path, [B, M+P+N, D] -> the same, or the wanted tokens of it."""
        wanted = where.wanted
        for norm, sublayer, scale in zip(("norm1", "norm2"), ("attn", "mlp"), self.scales, strict=True):
            path = f"{block.path}.{sublayer}"
            normalise = partial(self._call, f"{block.path}.{norm}", c=c)
            inputs = x if self.post_norm else recomputed(normalise, x)
            if sublayer == "attn":
                outputs = self._attention(path, inputs, c, where)
                if wanted is not None:
                    x, inputs = x[:, wanted], inputs[:, wanted]
            else:
                outputs = self._mlp(path, inputs, c)
            if self.post_norm:
                outputs = normalise(outputs)
            outputs, gamma = drop(outputs), self._gamma(block.path, scale, c) if scale else None
            # Through LayerScale in one pass over memory.
            x = x + outputs if gamma is None else torch.addcmul(x, outputs, gamma)
            if (branch := c.branch_at.get(path)) is not None:
                # Outside LayerScale, which would mute it (gamma is about 1e-5 at the start of DINOv2's training).
                x += drop(self._noisy(path, branch(inputs, outputs, where.grid), c))
            if (after := c.after_at.get(path)) is not None:
                x = self._noisy(path, after(x), c, upon=x)
        return x

    def _noisy(self, path: str, y: Tensor, c: Contacts, *, upon: Tensor | None = None) -> Tensor:
        """What a method makes of a place, with the noise of a fit upon what of it is the method's own: all, or what y
        is more than `upon`. As PACE's code has it: none in the first block, then less from block to block."""
        i = self._number[path]
        if not (i and c.in_training.noise and c.training):
            return y
        deviation = c.in_training.noise * (self.depth + 1 - i) / self.depth
        return noisy(y, deviation) if upon is None else upon + noisy(y - upon, deviation)

    def _gamma(self, block: str, name: str, c: Contacts) -> Tensor:
        folder, _, leaf = f"{block}.{name}".rpartition(".")
        own = c.own(folder).get(leaf)
        gamma: Tensor = getattr(self._at[folder], leaf) if own is None else own
        return gamma

    def tapped(self, x: Tensor, normalised: bool) -> Tensor:
        return recomputed(partial(F.layer_norm, normalized_shape=(x.shape[-1],)), x) if normalised else x

    def _attention(self, path: str, x: Tensor, c: Contacts, where: Where) -> Tensor:
        """From the wanted tokens, or all, to all."""
        attn: Any = self._at[path]
        q, k, v = self._turned(path, x, c, where.rotary)
        k, v = prefixed(path, k, v, c)
        if where.wanted is not None:
            q = q[:, :, where.wanted]
        y = self._call(f"{path}.norm", attention(q, k, v, _for_all(where, q, k)).transpose(1, 2).flatten(2), c)
        if getattr(attn, "gate", None) is not None:
            gate = self._call(f"{path}.gate", x if where.wanted is None else x[:, where.wanted], c)
            y = y * gate.sigmoid()
        return self._call(f"{path}.proj", y, c)

    def _turned(self, path: str, x: Tensor, c: Contacts, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [B, heads, T, D / heads] of x [B, T, D], normed and with their position."""
        attn: Any = self._at[path]
        q, k, v = self._heads(path, x, c)
        q, k = self._call(f"{path}.q_norm", q, c), self._call(f"{path}.k_norm", k, c)
        if rotary is not None:
            q, k = rotary(q).to(v.dtype), rotary(k).to(v.dtype)
            if attn.qkv is not None and v.requires_grad:
                v = v.clone()  # a view would keep all of qkv for backward, beside q and k as they are now
        if (groups := q.shape[1] // k.shape[1]) > 1:  # fewer heads of keys than of queries
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return q, k, v

    def attended(self, images: Tensor, contacts: Contacts) -> Tensor:
        """What the last block's attention makes of the patches as they enter the first, images [B, 3, H, W] -> [B, D]:
        their sum, weighted as the class token looks at them, over patches alone, the mean over heads. Without a class
        token, as all patches look at them. For backbones of one stage."""
        c, last = Contacts(), self.depth - 1
        c.join(contacts)
        c.taps = dict.fromkeys((-1, last - 1), False)
        found = self.forward(images, c)
        path, x = self.blocks[last].path, found.taps[last - 1]
        x = x if self.post_norm else self._call(f"{path}.norm1", x, c)
        rotary = self._rotary(found.grids[0], c)
        q, k, _ = self._turned(f"{path}.attn", x, c, rotary and rotary.of(last, self.prefix, x))
        q = q[:, :, :1] if self.has_cls else q[:, :, self.prefix :]
        scores = (q * q.shape[-1] ** -0.5) @ k[:, :, self.prefix :].mT
        return (scores.softmax(-1).mean((1, 2))[:, None] @ found.taps[-1][:, self.prefix :])[:, 0]

    def _heads(self, path: str, x: Tensor, c: Contacts) -> list[Tensor]:
        """q, k and v [B, heads, T, D / heads] of x [B, T, D]."""
        attn: Any = self._at[path]
        if attn.qkv is None:
            parts = [self._call(f"{path}.{role}_proj", x, c) for role in "qkv"]
            head = parts[0].shape[-1] // attn.num_heads
            return [part.unflatten(-1, (-1, head)).transpose(1, 2) for part in parts]
        # Parted before it is turned: the gradients then lie together as the linear layer wants them.
        qkv = self._call(f"{path}.qkv", x, c).unflatten(-1, (3, attn.num_heads, -1))
        return [part.transpose(1, 2) for part in qkv.unbind(2)]

    def _mlp(self, path: str, x: Tensor, c: Contacts) -> Tensor:
        mlp: Any = self._at[path]
        wide: tuple[Tensor, ...]
        if type(mlp) is Mlp:
            wide = (self._call(f"{path}.fc1", x, c),)
        elif type(mlp) is GluMlp:
            wide = self._call(f"{path}.fc1", x, c).chunk(2, dim=-1)[:: -1 if mlp.gate_last else 1]
        elif type(mlp) is SwiGLU:
            wide = (self._call(f"{path}.fc1_g", x, c), self._call(f"{path}.fc1_x", x, c))
        else:  # trained tensors reach it, its linears are not among `linears`
            return self._call(path, x, c)

        def active(gate: Tensor, *value: Tensor) -> Tensor:
            y = recomputed(mlp.act, gate)
            return y * value[0] if value else y

        x = recomputed(active, *wide)
        if type(mlp.norm) is not nn.Identity:
            x = recomputed(partial(self._call, f"{path}.norm", c=c), x)
        return self._call(f"{path}.fc2", x, c)

    def _call(self, path: str, x: Tensor, c: Contacts) -> Tensor:
        """The module at `path`, with the method's copies of its tensors, or as the method has changed it."""
        module: Any = self._at.get(path)
        if module is None or type(module) is nn.Identity:
            return x
        if c.rows:
            return self._row_by_row(path, x, c.rows)
        if path in self.linears:
            own = c.own(path)
            bias = self._bias(path, c) if path in self._biases else own.get("bias", module.bias)
            y = self._changed(path, x, own.get("weight", module.weight), bias, c)
            branch = c.branch_at.get(path)
            return y if branch is None else y + self._noisy(path, branch(x, y, None), c)
        tensors = c.tensors(path, module)
        return functional_call(module, tensors, (x,)) if tensors else module(x)

    def _changed(self, path: str, x: Tensor, weight: Tensor, bias: Tensor | None, c: Contacts) -> Tensor:
        """The linear layer at `path`, as the method has changed it if it has."""
        change = c.change_at.get(path)
        if change is None:
            return frozen_linear(x, weight, bias)
        if not (c.in_training.noise and c.training):
            return change(x, weight, bias)
        plain = frozen_linear(x, weight, bias)
        y = change(x, weight, bias) if type(change).upon is Change.upon else change.upon(x, plain)
        return self._noisy(path, y, c, upon=plain)

    def _row_by_row(self, path: str, x: Tensor, rows: tuple[Contacts, ...]) -> Tensor:
        """The same for pictures of several methods: as it is for all, and anew for those whose method touches it.

        x [B n, ...] holds n parts of each of the B pictures (windows, where there are some). What one of them gets does
        not depend on the others: shapes of products are the same whoever they are.
        """
        touched = [i for i, row in enumerate(rows) if row.touches(path)]
        changes = {i: rows[i].change_at[path] for i in touched if path in rows[i].change_at and not rows[i].own(path)}
        upon = {i: change for i, change in changes.items() if type(change).upon is not Change.upon}
        alone = len(touched) - len(upon) == len(rows)  # nobody wants the product of all
        y = x if alone else self._call(path, x, self._no_contacts)
        if not touched:
            return y
        S = len(rows)
        together = {i: change for i, change in upon.items() if isinstance(change, Gathered)}
        for kind in dict.fromkeys((type(change), change.group) for change in together.values()):
            of = [
                together[i] if i in together and (type(together[i]), together[i].group) == kind else None
                for i in range(S)
            ]
            inside = [t.unflatten(0, (S, -1)).flatten(1, -2) for t in (x, y)]
            y = kind[0].upon_rows(of, *inside).view(y.shape)
        if len(together) == len(touched):
            return y
        given, found = (list(t.split(len(t) // S)) for t in (x, y))
        for i in touched:
            if i not in together:
                found[i] = upon[i].upon(given[i], found[i]) if i in upon else self._call(path, given[i], rows[i])
        return torch.cat(found)

    def bias_names(self, path: str) -> tuple[str, ...]:
        folder = path.rpartition(".")[0]
        return (f"{folder}.q_bias", "", f"{folder}.v_bias") if path in self._biases else super().bias_names(path)

    def _bias(self, path: str, c: Contacts) -> Tensor:
        """The biases of q and v, and none of k, of a fused layer."""
        folder = path.rpartition(".")[0]
        attn, own = self._at[folder], c.own(folder)
        return torch.cat([own.get("q_bias", attn.q_bias), attn.k_bias, own.get("v_bias", attn.v_bias)])


def prefixed(path: str, k: Tensor, v: Tensor, c: Contacts) -> tuple[Tensor, Tensor]:
    """Keys and values [B, heads, S, D / heads] of the attention at `path`, with a method's own in front."""
    if (prefix := c.prefixes.get(path)) is None:
        return k, v

    def in_front(given: Tensor, own: Tensor) -> Tensor:
        own = (own if own.dim() == 4 else own[None]).to(given.dtype)  # [pictures or 1, heads, T, D / heads]
        windows = given.shape[0] // own.shape[0]
        return torch.cat([own[:, None].expand(-1, windows, -1, -1, -1).flatten(0, 1), given], dim=2)

    K, V = prefix()
    return recomputed(in_front, k, K), recomputed(in_front, v, V)


def _for_all(where: Where, q: Tensor, k: Tensor) -> Tensor | None:
    """The bias of attention for all heads, none of it on keys that stand in front of the tokens' own."""
    if where.bias is None:
        return None
    bias = F.pad(where.bias.to(q.dtype), (k.shape[2] - where.bias.shape[-1], 0))
    return (bias if where.wanted is None else bias[:, :, where.wanted]).expand(-1, q.shape[1], -1, -1)


def _whole(at: dict[str, Any], path: str) -> tuple[Part, ...]:
    return (Part(path, 0, at[path].out_features),)
