"""Adapter: a bottleneck after a sub-layer.

Houlsby et al. 2019, arXiv 1902.00751: after attention and after the MLP. Pfeiffer et al. 2021, arXiv 2005.00247: after
the MLP alone.

    y = Sublayer(z);  x = x + y + up(relu(down(y)))
"""

from __future__ import annotations

from torch import Tensor

from ..backbones import Backbone
from ..kernels.bottleneck import Bottleneck
from ..method import Method, check_positive

SUBLAYERS = {"houlsby": ("attn", "mlp"), "pfeiffer": ("mlp",)}


class Adapter(Method):
    """Bottleneck adapters on the outputs of sub-layers.

    form: "pfeiffer" or "houlsby". bottleneck: R (8 in NOAH's VTAB-1k runs, which have the first form).

    Parameters for L blocks of width D: L (2 D R + R + D), 156,768 on ViT-B/16; twice that in Houlsby's form.
    """

    title = "Adapter"
    paper = "Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2021, arXiv 2005.00247"
    published = "VTAB-1k 73.9 (mean of groups, ViT-B/16 IN-21k; NOAH, Zhang et al. 2022)"
    choices = {"form": tuple(SUBLAYERS)}
    variants = ({"form": "houlsby"},)
    keeps = 0.68  # 0.6 in Pfeiffer's form

    def __init__(self, *, form: str = "pfeiffer", bottleneck: int = 8) -> None:
        super().__init__()
        self.form, self.bottleneck = form, bottleneck
        check_positive(self, "bottleneck")

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for block in backbone.blocks:
            for sublayer in SUBLAYERS[self.form]:
                self.contacts.add_branch(backbone, f"{block.path}.{sublayer}", OnOutputs(block.width, self.bottleneck))


class OnOutputs(Bottleneck):
    """Reads what leaves the sub-layer."""

    def forward(self, inputs: Tensor, outputs: Tensor, grid: tuple[int, int]) -> Tensor:  # type: ignore[override]
        return super().forward(outputs)
