"""Convpass: convolutional bypasses beside attention and MLP.

arXiv 2207.07039. Beside each sub-layer, fed by the same normalised input z and outside LayerScale:

    x = x + Sublayer(z) + s Convpass(z)
    Convpass(z) = up(gelu(conv3x3(gelu(down(z)))))

The patch tokens go through the convolution as a map; every prefix token (CLS, registers) is a picture of one pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..kernels.bottleneck import widen
from ..method import Method, check_positive, check_share, check_some


class Convpass(Method):
    """A bottleneck with a 3 x 3 convolution beside attention and MLP (Jie and Deng 2022, section 3.2).

    sublayers: beside which (paper; attention alone is Convpass_attn). bottleneck: R, 8 everywhere in the paper. scale:
    s, searched per task in 0.01, 0.1, 1, 10, 100 (section 4.1); unless given 1, and 0.1 beside LayerScale, whose
    sub-layers a bypass at 1 drowns. conv_init: the convolution starts as the identity or by Xavier, chosen per task
    (released code). dropout: before the last layer (released code).

    Parameters for L blocks of width D: per bypass (2 R + 1) D + 9 R^2 + 2 R, two in every block: 327,552 on ViT-B/16
    (163,776 with attention alone).
    """

    title = "Convpass"
    paper = "Jie and Deng 2022, arXiv 2207.07039"
    published = "VTAB-1k 76.6 (mean of groups, ViT-B/16 IN-21k, best epoch on test; table 1)"
    choices = {"sublayers": ("attn", "mlp"), "conv_init": ("identity", "xavier")}
    variants = ({"sublayers": ("attn",)}, {"conv_init": "xavier", "scale": 0.1})

    def __init__(
        self,
        *,
        sublayers: Sequence[str] = ("attn", "mlp"),
        bottleneck: int = 8,
        scale: float | None = None,
        conv_init: str = "identity",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.sublayers, self.bottleneck, self.scale = tuple(sublayers), bottleneck, scale
        self.conv_init, self.dropout = conv_init, dropout
        check_positive(self, "bottleneck", "scale")
        check_some(self, "sublayers")
        check_share(self, "dropout")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        scale = self.scale or (0.1 if backbone.has_layerscale else 1.0)
        for block in backbone.blocks:
            for sublayer in self.sublayers:
                bypass = Bypass(block.width, self.bottleneck, backbone.prefix, scale, self.conv_init, self.dropout)
                self.contacts.add_branch(backbone, f"{block.path}.{sublayer}", bypass)


class Bypass(nn.Module):
    """One bypass: D -> R, 3 x 3 convolution over the map, R -> D."""

    def __init__(self, D: int, R: int, P: int, scale: float, conv_init: str, dropout: float) -> None:
        super().__init__()
        self.P, self.scale = P, scale
        self.down = nn.Linear(D, R)
        self.conv = nn.Conv2d(R, R, 3, padding=1)
        self.drop = nn.Dropout(dropout)
        self.up = nn.Linear(R, D)
        nn.init.xavier_uniform_(self.down.weight)
        if conv_init == "xavier":
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            nn.init.zeros_(self.conv.weight)
            nn.init.eye_(self.conv.weight.data[:, :, 1, 1])
        nn.init.zeros_(self.up.weight)
        for bias in (self.down.bias, self.conv.bias, self.up.bias):
            nn.init.zeros_(bias)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor, outputs: Tensor, grid: tuple[int, int]) -> Tensor:
        """inputs [B, P+N, D] -> [B, P+N, D]; the sub-layer's own outputs are not looked at. Extra tokens of another
        method, in front of all, are treated as prefix tokens are."""
        x = quick_gelu(self.down(inputs))
        alone = self.P if x.shape[1] == self.P else x.shape[1] - grid[0] * grid[1]
        # With zero padding a picture of one pixel meets the centre of the kernel and nothing else.
        found = [F.linear(x[:, :alone], self.conv.weight[:, :, 1, 1], self.conv.bias)] if alone else []
        if x.shape[1] > alone:
            found.append(self.conv(x[:, alone:].mT.unflatten(2, grid)).flatten(2).mT)
        x = quick_gelu(torch.cat(found, dim=1))
        up = self.up
        return widen(self.drop(x), self.scale * up.weight, self.scale * up.bias)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)
