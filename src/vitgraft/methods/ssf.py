"""SSF: every layer's output is scaled and shifted.

Lian et al. 2022, arXiv 2210.08823. After every linear layer, every LayerNorm and the patch embedding:

    y' = gamma * y + beta
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..kernels.linear import Change, frozen_linear
from ..method import Method


class SSF(Method):
    """Scaling and shifting of deep features.

    gamma starts at N(1, 0.02), beta at N(0, 0.02), as released, so the start is near the frozen backbone and not at it.
    A layer without bias, or without one for k, gets no shift: its tensors could not take one up.

    Parameters for L blocks of width D, MLP ratio 4: 22 L D + 4 D, 205,824 on ViT-B/16.
    """

    title = "SSF, scaling and shifting features"
    paper = "Lian et al. 2022, arXiv 2210.08823"
    starts_elsewhere = "scale and shift start at a normal of 0.02 (released code)"
    published = "VTAB-1k 73.1 (mean of 19, ViT-B/16 AugReg IN-21k; table 1)"
    keeps = 1.13

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for path, layer in backbone.affine.items():
            assert isinstance(layer.weight, Tensor)
            biases = backbone.bias_names(path)
            self.contacts.change(backbone, path, ScaleShift(len(layer.weight), shift=bool(biases) and all(biases)))


class ScaleShift(Change):
    """gamma * y + beta on the outputs of a layer."""

    def __init__(self, outs: int, *, shift: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(outs).normal_(1, 0.02))
        self.beta = nn.Parameter(torch.empty(outs).normal_(0, 0.02)) if shift else None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gamma = self.gamma.view(-1, *[1] * (weight.ndim - 1))
        if bias is not None:
            bias = self.gamma * bias if self.beta is None else self.gamma * bias + self.beta
        return gamma * weight, bias

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.upon(x, frozen_linear(x, weight, bias))

    def upon(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gamma * y if self.beta is None else torch.addcmul(self.beta.to(y.dtype), self.gamma.to(y.dtype), y)
