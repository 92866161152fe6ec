"""Feature pyramid network: maps of any widths to maps of one width, each with the coarser ones' view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..features import Features


class FPN(nn.Module):
    """torchvision's FPN (Lin et al. 2017): lateral 1x1 convolutions, nearest upsampling, 3x3 convolutions behind.

    With `coarser` one more map, every second position of the coarsest, as region proposals take it (section 4.1).

    Parameters for maps of widths C and n = width: n sum(C + 1) + len(C) n (9 n + 1).
    """

    def __init__(self, channels: Sequence[int], width: int = 256, *, coarser: bool = False) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(channels), width, LastLevelMaxPool() if coarser else None)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Maps [B, C_i, h_i, w_i], finest first -> {"0": [B, width, h_0, w_0], "1": ...}, "pool" the coarser one."""
        return self.fpn({str(i): x for i, (_, x) in enumerate(features.maps)})


def widen(x: Any) -> Any:
    """A tensor, or a list or tuple of such, in float32 at least: 8 bits are too few for losses and for boxes."""
    if isinstance(x, Tensor):
        return x.float() if x.itemsize < 4 else x
    return type(x)(widen(each) for each in x)
