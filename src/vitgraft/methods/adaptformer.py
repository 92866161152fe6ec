"""AdaptFormer: a bottleneck beside the MLP.

Chen et al. 2022, arXiv 2205.13535:  x = x + MLP(z) + s up(relu(down(z))),  z = LN2(x).
"""

from __future__ import annotations

from torch import Tensor

from ..backbones import Backbone
from ..kernels.bottleneck import Bottleneck
from ..method import Method, check_positive, check_share


class AdaptFormer(Method):
    """Bottlenecks parallel to the MLP (section 3.2).

    bottleneck: R; 64 in the paper, 8 in the VTAB-1k tables of the methods here. scale: s (paper). dropout: before the
    last layer (released code).

    Parameters for L blocks of width D: L (2 D R + R + D), 156,768 on ViT-B/16.
    """

    title = "AdaptFormer"
    paper = "Chen et al. 2022, arXiv 2205.13535"
    published = "VTAB-1k 74.7 (mean of groups, ViT-B/16 IN-21k; Jie and Deng 2022)"
    variants = ({"bottleneck": 5, "scale": 1.0},)
    keeps = 0.55

    def __init__(self, *, bottleneck: int = 8, scale: float = 0.1, dropout: float = 0.1) -> None:
        super().__init__()
        self.bottleneck, self.scale, self.dropout = bottleneck, scale, dropout
        check_positive(self, "bottleneck", "scale")
        check_share(self, "dropout")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for block in backbone.blocks:
            branch = OnInputs(block.width, self.bottleneck, scale=self.scale, dropout=self.dropout)
            self.contacts.add_branch(backbone, f"{block.path}.mlp", branch)


class OnInputs(Bottleneck):
    """Reads what enters the sub-layer."""

    def forward(self, inputs: Tensor, outputs: Tensor, grid: tuple[int, int]) -> Tensor:  # type: ignore[override]
        return super().forward(inputs)
