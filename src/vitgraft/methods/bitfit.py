"""BitFit: only the biases train."""

from ..backbones import Backbone
from ..method import Method


class BitFit(Method):
    """Trains every bias of the backbone (Ben Zaken et al. 2022, section 3).

    Parameters on a ViT of L blocks, width D, MLP ratio 4: L (3 D + D + 4 D + D + 2 D) + 2 D = 11 L D + 2 D, with the
    patch embedding's and the final norm's (102,912 on ViT-B/16).
    """

    title = "BitFit"
    paper = "Ben Zaken et al. 2022, arXiv 2106.10199"
    published = "VTAB-1k 62.1 (mean of 19, ViT-B/16 IN-21k; Jia et al. 2022)"

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for name in backbone.tensors():
            if name.endswith("bias"):  # q_bias and v_bias too
                self.contacts.train_tensor(backbone, name)
