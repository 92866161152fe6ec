"""FacT: the updates of all layers as one factorised tensor.

Jie and Deng 2023, arXiv 2212.03145. The updates of qkv, proj, fc1 and fc2 of all blocks are 12 L matrices D x D (fc1
and fc2 are four each), which share U and V:

    TT:  dW_i = s V S_i U        S [12 L, R, R]
    TK:  dW_i = s V (sum_r P_ir C_r) U        P [12 L, R], C [R, R, R]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..common.errors import RequestError
from ..kernels.bottleneck import widen
from ..kernels.linear import Change, frozen_linear
from ..method import Method, check_positive, check_share

PER_BLOCK = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4, "mlp.fc2": 4}


class FacT(Method):
    """Factor tuning.

    form: "tt" (tensor train) or "tk" (Tucker). rank: R; the paper's sizes are 16 at most for TT, 32 at most for TK.
    scale: s, searched per task in 0.01, 0.1, 1, 10, 100 (section 4.1). dropout: between V and S (released code).

    Parameters for L blocks of width D: TT 2 D R + 12 L R^2, 61,440 on ViT-B/16; TK 2 D R + 12 L R + R^3.
    """

    title = "FacT, factor tuning"
    paper = "Jie and Deng 2023, arXiv 2212.03145"
    published = "VTAB-1k 73.7 (TT, mean of 19, ViT-B/16 IN-21k, last epoch; Mai et al. 2025)"
    choices = {"form": ("tt", "tk")}
    variants = ({"form": "tk", "scale": 10.0},)
    keeps = 0.63

    def __init__(self, *, form: str = "tt", rank: int = 16, scale: float = 1.0, dropout: float = 0.1) -> None:
        super().__init__()
        self.form, self.rank, self.scale, self.dropout = form, rank, scale, dropout
        check_positive(self, "rank", "scale")
        check_share(self, "dropout")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        D, R = backbone.width, self.rank
        squares: dict[str, tuple[int, bool]] = {}  # layer -> how many, and whether side by side along its inputs
        for path in (path for b in backbone.blocks for path in backbone.layers(b, "qkv", "proj", "fc1", "fc2")):
            linear = backbone.linear(path)
            ins, outs = linear.in_features, linear.out_features
            n = ins * outs // D**2
            if (ins, outs) not in ((D, n * D), (n * D, D)):
                raise RequestError(
                    f"FacT cuts every layer into squares of the width {D}, which all of them share, but {path} of "
                    f"{backbone.name} is {ins} x {outs}: take a backbone of one width with MLP ratio 4."
                )
            squares[path] = (n, ins > outs)
        self.factors = Factors(sum(n for n, _ in squares.values()), D, R, self.form)
        first = 0
        for path, (n, inwards) in squares.items():
            change = Slices(self.factors, first, n, inwards=inwards, scale=self.scale, drop=self.dropout)
            self.contacts.change(backbone, path, change)
            first += n


class Factors(nn.Module):
    """What all layers share, and the core of each of the n matrices."""

    def __init__(self, n: int, D: int, R: int, form: str) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.empty(R, D))
        self.v = nn.Parameter(torch.zeros(D, R))
        nn.init.kaiming_uniform_(self.u, a=5**0.5)
        if form == "tt":
            self.cores = nn.Parameter(torch.empty(n, R, R))
            nn.init.kaiming_uniform_(self.cores.view(n * R, R), a=5**0.5)
        else:
            self.p = nn.Parameter(torch.empty(n, R))
            self.c = nn.Parameter(torch.empty(R, R, R))
            nn.init.xavier_uniform_(self.p)
            nn.init.xavier_uniform_(self.c)

    def core(self, first: int, n: int) -> Tensor:
        """The cores of n matrices from `first`: [n, R, R]."""
        if hasattr(self, "cores"):
            return self.cores[first : first + n]
        return torch.einsum("nr,rab->nab", self.p[first : first + n], self.c)


class Slices(Change):
    """n of the matrices as the update of one layer, stacked along its outputs, or inwards along its inputs."""

    def __init__(self, factors: Factors, first: int, n: int, *, inwards: bool, scale: float, drop: float) -> None:
        super().__init__()
        self.shared = (factors,)  # in a tuple: the method owns it, not every layer
        self.first, self.n, self.inwards, self.scale = first, n, inwards, scale
        self.drop = nn.Dropout(drop)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        f = self.shared[0]
        updates = self.scale * f.v @ f.core(self.first, self.n) @ f.u  # [n, D, D]
        update = updates.transpose(0, 1).flatten(1) if self.inwards else updates.flatten(0, 1)
        return weight + update, bias

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.upon(x, frozen_linear(x, weight, bias))

    def upon(self, x: Tensor, y: Tensor) -> Tensor:
        f = self.shared[0]
        core = f.core(self.first, self.n)
        if self.inwards:
            low = F.linear(x.unflatten(-1, (self.n, -1)), f.u)  # [B, T, n, R]
            low = F.linear(low.flatten(-2), core.transpose(0, 1).flatten(1))
            return y + widen(self.drop(low), self.scale * f.v)
        low = F.linear(F.linear(x, f.u), core.flatten(0, 1)).unflatten(-1, (self.n, -1))
        return y + widen(self.drop(low), self.scale * f.v).flatten(-2)
