"""Hierarchical Side-Tuning (HST): a side network of four stages reads every block of the backbone.

arXiv 2310.05393. After every ViT block i a bridge brings two things down to side block i of the same stage: the meta
token, and the patch map. The side block lets its own tokens attend to the first and adds the second:

    x = x + Attn(q = LN1 x,  k, v = [LN_i(B_s M_i), mean(p_i)])       meta-global injection
    x = x + p_i,   p_i = resize(B_s P_i)                              fine-grained injection
    x = x + FFN(LN2 x)

where B_s is one linear layer per stage, M_i the output of block i's meta token and P_i its patch tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import Backbone, drop_path
from ..common.errors import RequestError
from ..contacts import InTraining
from ..features import Activations, Features
from ..kernels.batchnorm import BatchNorm
from ..kernels.feedforward import feedforward
from ..kernels.norm import LayerNorm
from ..kernels.recompute import checkpointed, recomputed
from ..method import Method

STAGES = 4
READ = 3  # blocks of a stage that the backbone has itself

Drop = Callable[[Tensor], Tensor]


class HST(Method):
    """The side network beside the backbone, as published or detached from it.

    widths, heads: of the four stages (released code; dense tasks take widths 64 128 256 384, paper). mlp_ratio: of the
    side blocks (released code). meta_tokens: per block (paper: one is enough for classification). taps: raw, as
    published, or normalised, each under a LayerNorm without parameters (ours); auto: normalised where the backbone has
    LayerScale, and when detached. The bridge starts for the blocks of a ViT without it, whose outputs are of size 1 to
    17; behind it they are of size 0.05 to 0.5, which the bridge would mute.
    maps: what a dense head sees. own: the four maps of the side network alone, as published. added (ours): what it sees
    without a side network, the backbone's own last map as a pyramid or those of its stages, to which the side network's
    are added from zero; so it begins as the frozen backbone under the same head.
    pooled: what a classifier sees. own: the side network's vector, as published. both (ours): that and the backbone's
    own, each under a norm without parameters, so that what pre-training knows of the picture as a whole need not pass
    through the side network; its width is the backbone's more.
    detached: False is the published system: meta tokens and trained norm1/norm2 inside the backbone, gradients through
    all of it. True leaves the backbone alone: the CLS token's output takes the meta token's place (the mean patch token
    where there is none), LayerNorms stay frozen, every tap is read without autograd, so that a picture's pass through
    the backbone happens once, whatever the number of epochs or tasks.

    Parameters with widths d_s, L blocks of width D, L_s of them in a stage (L/4; one more in the later ones where four
    does not divide L), M meta tokens, FFN ratio r, as published:
        stem     27 d_1 + 2 d_1 + 4 d_1^2 + d_1 + 2 d_1
        down     sum over s > 1 of 9 d_{s-1} d_s + 3 d_s
        blocks   sum over s of L_s ((4 + 2 r) d_s^2 + (9 + r) d_s)
        bridge   sum over s of (D + 1) d_s + L_s 2 d_s
        norms    sum over s of 2 d_s
        inside   L M D + 4 L D          (none of it when detached)
    = 764,840 on ViT-B/16 (718,760 detached); the head adds (d_4 + 1) K, 73 per class, or (d_4 + D + 1) K where it sees
    both. With the widths of dense tasks 10,404,096.
    """

    title = "HST, hierarchical side-tuning"
    paper = "Lin et al. 2023, arXiv 2310.05393"
    published = "VTAB-1k 76.1 (mean of 19, ViT-B/16 AugReg IN-21k, best epoch on test; abstract, v3)"
    dense = {"widths": (64, 128, 256, 384)}
    together = {"detached": True, "maps": "added", "widths": (32, 48, 64, 72)}
    choices = {"taps": ("auto", "raw", "normalised"), "maps": ("own", "added"), "pooled": ("own", "both")}
    variants = ({"detached": True}, {"taps": "normalised"})
    keeps = 0.78  # on ViT-B/16 at 224 in float32; 0.15 detached

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 48, 64, 72),
        heads: Sequence[int] = (2, 4, 8, 12),
        mlp_ratio: int = 4,
        meta_tokens: int = 1,
        taps: str = "auto",
        maps: str = "own",
        pooled: str = "own",
        detached: bool = False,
    ) -> None:
        super().__init__()
        self.widths, self.heads = tuple(widths), tuple(heads)
        self.mlp_ratio, self.meta_tokens = mlp_ratio, meta_tokens
        self.taps, self.maps, self.pooled, self.detached = taps, maps, pooled, detached
        if len(self.widths) != STAGES or len(self.heads) != STAGES:
            raise RequestError(
                f"HST has four stages, but {len(self.widths)} widths and {len(self.heads)} numbers of heads came: "
                "give four of each, for example widths 32 48 64 72 and heads 2 4 8 12."
            )
        for width, head in zip(self.widths, self.heads, strict=True):
            if head < 1 or width < 1 or width % head:
                raise RequestError(
                    f"A side stage of width {width} cannot be split into {head} heads: the width must be a multiple of "
                    "the heads; change one of the two."
                )
        if meta_tokens < 1:
            raise RequestError(f"HST needs at least one meta token, but {meta_tokens} came: give 1 or more.")
        if mlp_ratio < 1:
            raise RequestError(
                f"The side blocks' mlp_ratio is {mlp_ratio}, but must be at least 1: give 4, as published."
            )

    @property
    def recipe(self) -> dict[str, float]:
        """5e-3 is the middle of the published grid, 1e-3 5e-3 1e-2; a side network alone wants less."""
        return {"lr": 2e-3 if self.detached else 5e-3}

    @property
    def own_maps(self) -> bool:
        return self.maps == "own"

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        self.reads = _stages(backbone)
        normalised = self.detached or backbone.has_layerscale if self.taps == "auto" else self.taps == "normalised"
        read = [i for blocks in self.reads for i in blocks]
        for i in read:
            self.contacts.tap(backbone, i, normalised=normalised)
        if not self.detached:
            self.meta = nn.ParameterList()
            for i in read:
                token = nn.Parameter(torch.empty(1, self.meta_tokens, backbone.blocks[i].width))
                nn.init.xavier_uniform_(token)
                self.meta.append(token)
                self.contacts.add_tokens(backbone, i, token)
            for path, norm in backbone.affine.items():
                if path.endswith((".norm1", ".norm2")):
                    for name in dict(norm.named_parameters()):
                        self.contacts.train_tensor(backbone, f"{path}.{name}")
        ins = (3, *self.widths)
        self.stages = nn.ModuleList(
            Stage(ins[s], self.widths[s], D, len(blocks), self.heads[s], self.mlp_ratio, first=s == 0)
            for s, blocks in enumerate(self.reads)
            for D in [backbone.blocks[blocks[0]].width]
        )
        self.pooled_norm = BatchNorm(self.widths[-1], eps=1e-6, affine=False)
        self.width = self.widths[-1] + (backbone.width if self.pooled == "both" else 0)
        if self.own_maps:
            self.map_channels = self.widths
        else:
            self.side_channels = self.widths

    def features(self, backbone: Backbone, images: Tensor, activations: Activations) -> Features:
        how = self.in_effect.in_training if self.training else InTraining()
        checkpoints = how.gradient_checkpointing and torch.is_grad_enabled()
        stages: list[Any] = list(self.stages)
        # Channels last, as tokens lie: the stem's convolutions are faster so, and no map is laid out anew.
        maps, x = [], images.contiguous(memory_format=torch.channels_last)
        for s, stage in enumerate(stages):
            blocks = self.reads[s]
            tokens = [stage.bridge(activations.taps[i]) for i in blocks]
            patches = [t[:, backbone.prefix :] for t in tokens]
            if not self.detached:
                # A view would make autograd keep the whole sequence for the bridge.
                meta = [stage.bridge(activations.extra[i].clone()) for i in blocks]
            elif first := 1 if backbone.has_cls else backbone.prefix:
                meta = [t[:, :first] for t in tokens]
            else:
                meta = [t.mean(1, keepdim=True) for t in tokens]
            drops = [
                partial(drop_path, rate=how.drop_path * i / max(backbone.depth - 1, 1), copies=how.copies)
                for i in blocks
            ]
            given = (x, activations.grids[min(s, len(activations.grids) - 1)], drops, *meta, *patches)
            x = checkpointed(stage, *given) if checkpoints else stage(*given)
            maps.append((images.shape[-2] / x.shape[-2], x))
        pooled = self.pooled_norm(x.mean((2, 3)))
        if self.pooled == "both":
            own = backbone.pool(activations.tokens, self.in_effect)
            pooled = torch.cat([pooled, F.layer_norm(own, own.shape[-1:]).to(pooled.dtype)], dim=1)
        if self.own_maps:
            return Features(pooled, maps)
        return replace(super().features(backbone, images, activations), pooled=pooled, side=maps)


def _stages(backbone: Backbone) -> list[range]:
    """The blocks that each stage reads: a quarter of all, as published, and where four does not divide them (ours:
    SigLIP's So400m has 27) one more in the later stages, whose maps are small; or, ours, of a backbone that has four
    stages of its own the last three of each, which are near to what the next one receives."""
    L = backbone.depth
    if len(backbone.stages) == STAGES:
        return [stage[-READ:] for stage in backbone.stages]
    if L < STAGES or len(backbone.stages) > 1:
        stages = f" in {len(backbone.stages)} stages" if len(backbone.stages) > 1 else ""
        raise RequestError(
            f"HST has {STAGES} stages, each of which reads a part of the blocks, but {backbone.name} has {L}{stages}: "
            f"take a backbone of at least {STAGES} blocks in one stage, or of {STAGES} stages."
        )
    return [range(s * L // STAGES, (s + 1) * L // STAGES) for s in range(STAGES)]


class Stage(nn.Module):
    """One stage: down-sampling, the bridge of its ViT blocks, one side block for each of them, a LayerNorm."""

    def __init__(self, C: int, d: int, D: int, depth: int, heads: int, mlp_ratio: int, *, first: bool) -> None:
        super().__init__()
        if first:
            self.down = nn.Sequential(
                nn.Conv2d(C, d, 3, stride=2, padding=1, bias=False),
                BatchNorm(d),
                nn.ReLU(),
                nn.Conv2d(d, d, 2, stride=2),
            )
        else:
            self.down = nn.Sequential(nn.Conv2d(C, d, 3, stride=2, padding=1))
        # eps: 1e-6 in the side network, torch's default in the bridge, as released.
        self.down_norm = LayerNorm(d)
        self.bridge = nn.Linear(D, d)
        self.meta_norms = nn.ModuleList(LayerNorm(d) for _ in range(depth))
        self.blocks = nn.ModuleList(SideBlock(d, heads, mlp_ratio) for _ in range(depth))
        self.norm = LayerNorm(d, eps=1e-6)
        self.apply(_initialise)

    def forward(self, x: Tensor, grid: tuple[int, int], drops: list[Drop], *bridged: Tensor) -> Tensor:
        """x [B, C, H, W]; the drop path of each block; over the bridge the meta tokens of all blocks, [B, M, d]
        each, and then their patches, [B, h*w, d] each -> [B, d, H', W']."""
        meta, patches = bridged[: len(drops)], bridged[len(drops) :]
        x = self.down(x)
        size = (x.shape[-2], x.shape[-1])
        x = self.down_norm(x.flatten(2).mT)
        for block, norm, m, p, drop in zip(self.blocks, self.meta_norms, meta, patches, drops, strict=True):
            p = self._resize(p, grid, size)
            x = block(x, torch.cat([norm(m), p.mean(1, keepdim=True)], dim=1), p, drop)
        return self.norm(x).mT.unflatten(2, size)

    @staticmethod
    def _resize(p: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Bilinear, [B, h*w, d] -> [B, H'*W', d].

        After the linear layer, not before it as released: the weights of bilinear interpolation sum to one, so the two
        commute, and D channels need not be resized.
        """
        if grid == size:
            return p
        p = p.mT.unflatten(2, grid)
        return F.interpolate(p, size=size, mode="bilinear", align_corners=False).flatten(2).mT


class SideBlock(nn.Module):
    """Cross-attention to the meta-global tokens, the patch map added, a feed-forward network; pre-norm, width d."""

    def __init__(self, d: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(d, eps=1e-6), LayerNorm(d, eps=1e-6)
        self.q, self.k, self.v, self.proj = (nn.Linear(d, d) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(d, mlp_ratio * d), nn.Linear(mlp_ratio * d, d)

    def forward(self, x: Tensor, keys: Tensor, patches: Tensor, drop: Drop) -> Tensor:
        """x, patches [B, H'*W', d], keys [B, M+1, d] -> [B, H'*W', d]."""
        x = x + drop(self._attention(recomputed(self.norm1, x), keys)) + patches
        return x + drop(feedforward(x, self.norm2, self.fc1, self.fc2))

    def _attention(self, x: Tensor, keys: Tensor) -> Tensor:
        """Multi-head cross-attention from x [B, T, d] to keys [B, K, d] with K far below T, without a query per token.

        The scores are x @ (W_q^T k) and the result is p @ (v W_o): with few keys both brackets are small, so the two
        d x d products over T tokens vanish. With two keys, the default, the softmax is a sigmoid of the difference.
        """
        with torch.autocast(x.device.type, enabled=False):  # a difference of two keys does not survive 8 bits
            keys = keys.to(self.k.weight.dtype)
            k, v = (linear(keys).unflatten(2, (self.heads, -1)) for linear in (self.k, self.v))
            k = k * k.shape[-1] ** -0.5
            if two := keys.shape[1] == 2:
                base = v[:, 1:]
                k, v = k[:, :1] - k[:, 1:], v[:, :1] - v[:, 1:]
            to_scores = torch.einsum("bkhe,hed->bdhk", k, self.q.weight.unflatten(0, (self.heads, -1))).flatten(2)
            scores_bias = torch.einsum("bkhe,he->bhk", k, self.q.bias.unflatten(0, (self.heads, -1))).flatten(1)
            out = self.proj.weight.unflatten(1, (self.heads, -1))
            to_out = torch.einsum("bkhe,dhe->bhkd", v, out).flatten(1, 2)
            bias = self.proj.bias.expand(x.shape[0], 1, -1)
            if two:
                bias = bias + torch.einsum("bkhe,dhe->bkd", base, out)
        scores = torch.baddbmm(scores_bias[:, None], x, to_scores)
        p = scores.sigmoid() if two else scores.unflatten(2, (self.heads, -1)).softmax(-1).flatten(2)
        return torch.baddbmm(bias, p, to_out)


def _initialise(module: nn.Module) -> None:
    """Linear layers truncated normal of 0.02, convolutions normal of sqrt(2 / fan_out), as released."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
