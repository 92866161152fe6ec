"""Ladder side-tuning (LST): a narrow transformer beside the backbone reads every block through a gate.

Sung et al. 2022, arXiv 2206.06522. Gradients never enter the backbone. Side block i takes a gated mixture of what the
backbone's block i gives and what the side block before it gave:

    s_0 = down_0(embedding)
    s_i = Block_i(mu_i down_i(x_i) + (1 - mu_i) s_{i-1}),   mu_i = sigmoid(alpha_i / T)
    features = up(norm(s_L))
"""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..backbones import Backbone
from ..common.errors import RequestError
from ..features import Activations, Features
from ..method import Method, check_positive

TEMPERATURE = 0.1  # T; section 3.2


class LST(Method):
    """The side network that HST is measured against.

    reduction: the side network is D / reduction wide (paper: 8). Side blocks are ViT blocks with MLP ratio 4 and the
    backbone's number of heads (or the largest part of it that divides d). They start at random; the paper's start from
    a pruned backbone is not done here. Taps enter as they are; the pooled vector is taken as the backbone takes its.

    Parameters for L blocks of width D, d = D / reduction: (L + 1) (D + 1) d down, L (12 d^2 + 13 d) blocks, L gates, 2
    d norm, (d + 1) D up: 2,376,492 on ViT-B/16.
    """

    title = "LST, ladder side-tuning"
    paper = "Sung et al. 2022, arXiv 2206.06522"
    published = "VTAB-1k 71.7 (mean of 19, ViT-B/16 IN-21k, 2.38 M; as listed by V-PETL Bench)"
    keeps = 0.22

    def __init__(self, *, reduction: int = 8) -> None:
        super().__init__()
        self.reduction = reduction
        check_positive(self, "reduction")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        L, D = backbone.depth, backbone.width
        if len(backbone.stages) > 1:
            raise RequestError(
                f"The side network of LST has one width and one map, but {backbone.name} has {len(backbone.stages)} of "
                "both: take a plain backbone, or HST, whose stages are those of the backbone."
            )
        if D % self.reduction:
            possible = ", ".join(str(n) for n in range(1, D + 1) if not D % n)
            raise RequestError(
                f"The width {D} of {backbone.name} cannot be reduced {self.reduction} times: possible are {possible}; "
                "choose one of these."
            )
        d = D // self.reduction
        heads = math.gcd(d, backbone.blocks[0].heads)
        for i in range(-1, L):
            self.contacts.tap(backbone, i)
        self.down = nn.ModuleList(nn.Linear(D, d) for _ in range(L + 1))
        self.blocks = nn.ModuleList(Block(d, heads, mlp_ratio=4, qkv_bias=True) for _ in range(L))
        self.alpha = nn.ParameterList(torch.zeros(()) for _ in range(L))
        self.norm = nn.LayerNorm(d)
        self.up = nn.Linear(d, D)

    def features(self, backbone: Backbone, images: Tensor, activations: Activations) -> Features:
        """Pooled [B, D] and one map [B, D, h, w] at the patch's stride."""
        taps = activations.taps
        s = self.down[0](taps[-1])
        for i, (down, block, alpha) in enumerate(zip(self.down[1:], self.blocks, self.alpha, strict=True)):
            gate = torch.sigmoid(alpha / TEMPERATURE)
            s = block(gate * down(taps[i]) + (1 - gate) * s)
        tokens = self.up(self.norm(s))
        return super().features(backbone, images, Activations(tokens, activations.grids))
