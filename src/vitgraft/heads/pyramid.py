"""Four maps out of one, so that a plain ViT runs every dense head; and out of several blocks, not the last alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..common.errors import RequestError
from ..features import Activations, Features


class Mix(nn.Module):
    """One map of a ViT out of several blocks: the last block's, led to width E, and what earlier ones add to it.

    Ours. The last block of a ViT has given up what is fine for what is global, so patches of earlier blocks,
    normalised, are mixed by one linear layer that starts at zero, and added. The width keeps files small: what comes
    behind grows with its square.

    width: E, the map's own D at most, which 0 stands for. reads: the widths of the earlier blocks.

    Parameters: (D + 1) E where E is below D, and E (sum of reads + 1) where there are any.
    """

    def __init__(self, D: int, width: int = 0, reads: Sequence[int] = ()) -> None:
        super().__init__()
        E = min(width or D, D)
        self.channels = (E,)
        self.reduce = nn.Conv2d(D, E, 1) if E < D else nn.Identity()
        self.mix = nn.Linear(sum(reads), E) if reads else None
        if self.mix is not None:
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)

    def forward(self, features: Features, activations: Activations) -> Features:
        """The same features with [B, D, h, w], their only map, as [B, E, h, w]."""
        [(stride, x)] = features.maps
        x = self.reduce(x)
        if self.mix is not None:
            x = x + self.mix(torch.cat(activations.patches, dim=-1)).mT.unflatten(2, x.shape[-2:])
        return replace(features, maps=[(stride, x)])


class Pyramid(nn.Module):
    """Simple feature pyramid (ViTDet, Li et al. 2022, section 3): strides 4, 8, 16, 32 from the map of stride 16.

    Transposed convolutions up, a LayerNorm over channels and GELU between the two of stride 4, max pooling down. The
    convolutions behind each map there are the lateral ones of the FPN in the heads here. Widths: D/4, D/2, D, D.

    Parameters: 9/2 D^2 + 9/4 D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise RequestError(
                f"A pyramid of maps of width {width} was asked for, which it halves twice: take a backbone or a "
                "neck_width that is a multiple of 4."
            )
        D = width
        self.channels = (D // 4, D // 2, D, D)
        up2 = nn.ConvTranspose2d(D, D // 2, 2, stride=2)
        up4 = nn.ConvTranspose2d(D // 2, D // 4, 2, stride=2)
        self.scales = nn.ModuleList(
            [
                nn.Sequential(nn.ConvTranspose2d(D, D // 2, 2, stride=2), LayerNorm2d(D // 2), nn.GELU(), up4),
                up2,
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, features: Features, activations: Activations) -> Features:
        """The same features with [B, D, h, w], their only map, as four [B, channels[i], h_i, w_i]; h and w even."""
        [(stride, x)] = features.maps
        maps = [(stride * times, scale(x)) for times, scale in zip((0.25, 0.5, 1, 2), self.scales, strict=True)]
        return replace(features, maps=maps)


class Beside(nn.Module):
    """Adds the maps of a side network to others of the same strides, each by a 1x1 convolution that starts at zero; or
    all of them, resized, to a single one.

    Ours: where such a network is the only way to the head, it has to find again what the backbone says already.

    Parameters for side maps of widths c beside maps of widths C: sum of (c + 1) C.
    """

    def __init__(self, channels: Sequence[int], side: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        wide = self.channels * len(side) if len(channels) == 1 else self.channels
        self.laterals = nn.ModuleList(nn.Conv2d(c, C, 1) for c, C in zip(side, wide, strict=True))
        for tensor in self.parameters():
            nn.init.zeros_(tensor)

    def forward(self, features: Features, activations: Activations) -> Features:
        """The same features, their maps with the side ones added."""
        added = [lateral(y) for lateral, (_, y) in zip(self.laterals, features.side, strict=True)]
        if len(features.maps) == 1:
            [(stride, x)] = features.maps
            maps = [(stride, x + together(added, (x.shape[-2], x.shape[-1])))]
        else:
            maps = [(stride, x + y) for (stride, x), y in zip(features.maps, added, strict=True)]
        return replace(features, maps=maps)


def together(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The sum of maps [B, C, h_i, w_i], brought to one size: the mean of cells, or bilinear between them."""
    found = [
        F.adaptive_avg_pool2d(x, size)
        if x.shape[-1] >= size[1]
        else F.interpolate(x, size, mode="bilinear", align_corners=False)
        for x in maps
    ]
    return torch.stack(found).sum(0)
