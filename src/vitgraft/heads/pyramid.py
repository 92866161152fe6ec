"""Four maps out of one, so that a plain ViT runs every dense head; and out of several blocks, not the last alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from timm.layers import LayerNorm2d
from torch import nn

from ..common.errors import RequestError
from ..features import Activations, Features


class Pyramid(nn.Module):
    """Simple feature pyramid (ViTDet, Li et al. 2022, section 3): strides 4, 8, 16, 32 from the map of stride 16.

    Transposed convolutions up, a LayerNorm over channels and GELU between the two of stride 4, max pooling down. The
    convolutions behind each map there are the lateral ones of the FPN in the heads here. Widths: E/4, E/2, E, E.

    width: E, of the two coarser maps; where it is below D, one linear layer leads there first. Ours, for small files:
    at D, as published, these layers grow with its square.
    reads: the widths of earlier blocks. Ours: what their patches are, normalised, is mixed by one linear layer, which
    starts at zero, and added to the map. The last block of a ViT has given up what is fine for what is global.

    Parameters: 9/2 E^2 + 9/4 E, (D + 1) E where E is below D, and E (sum of reads + 1).
    """

    def __init__(self, D: int, width: int = 0, reads: Sequence[int] = ()) -> None:
        super().__init__()
        E = min(width or D, D)
        if E % 4:
            raise RequestError(
                f"A pyramid of maps of width {E} was asked for, which it halves twice: take a backbone or a neck_width "
                "that is a multiple of 4."
            )
        self.reduce = nn.Conv2d(D, E, 1) if E < D else nn.Identity()
        self.mix = nn.Linear(sum(reads), E) if reads else None
        if self.mix is not None:
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)
        self.channels = (E // 4, E // 2, E, E)
        up2 = nn.ConvTranspose2d(E, E // 2, 2, stride=2)
        up4 = nn.ConvTranspose2d(E // 2, E // 4, 2, stride=2)
        self.scales = nn.ModuleList(
            [
                nn.Sequential(nn.ConvTranspose2d(E, E // 2, 2, stride=2), LayerNorm2d(E // 2), nn.GELU(), up4),
                up2,
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, features: Features, activations: Activations) -> Features:
        """The same features with [B, D, h, w], their only map, as four [B, channels[i], h_i, w_i]; h and w even."""
        [(stride, x)] = features.maps
        x = self.reduce(x)
        if self.mix is not None:
            x = x + self.mix(torch.cat(activations.patches, dim=-1)).mT.unflatten(2, x.shape[-2:])
        maps = [(stride * times, scale(x)) for times, scale in zip((0.25, 0.5, 1, 2), self.scales, strict=True)]
        return replace(features, maps=maps)


class Beside(nn.Module):
    """Adds the maps of a side network to others of the same strides, each by a 1x1 convolution that starts at zero.

    Ours: where such a network is the only way to the head, it has to find again what the backbone says already.

    Parameters for side maps of widths c beside maps of widths C: sum of (c + 1) C.
    """

    def __init__(self, channels: Sequence[int], side: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.laterals = nn.ModuleList(nn.Conv2d(c, C, 1) for c, C in zip(side, channels, strict=True))
        for tensor in self.parameters():
            nn.init.zeros_(tensor)

    def forward(self, features: Features, activations: Activations) -> Features:
        """The same features, their maps with the side ones added."""
        both = zip(features.maps, features.side, self.laterals, strict=True)
        return replace(features, maps=[(stride, x + lateral(y)) for (stride, x), (_, y), lateral in both])
