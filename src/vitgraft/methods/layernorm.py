"""LayerNorm tuning: only the norms train."""

from torch import nn

from ..backbones import Backbone
from ..method import Method


class LayerNorm(Method):
    """Trains weight and bias of every LayerNorm of the blocks and of the final one.

    Parameters for L blocks of width D: 4 L D + 2 D, 38,400 on ViT-B/16.
    """

    title = "LayerNorm tuning"
    paper = "Basu et al. 2023, arXiv 2304.01917"
    published = "VTAB-1k 71.2 (mean of 19, ViT-B/16 IN-21k, last epoch; Mai et al. 2025)"

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for path, layer in backbone.affine.items():
            if isinstance(layer, nn.LayerNorm):
                self.contacts.train_tensor(backbone, f"{path}.weight")
                self.contacts.train_tensor(backbone, f"{path}.bias")
