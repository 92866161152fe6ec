"""Semantic segmentation: linear, Semantic-FPN, UPerNet. Targets are masks [B, H, W] of classes, 255 ignored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from ..common.errors import RequestError
from ..features import Features
from ..kernels.batchnorm import BatchNorm
from .fpn import FPN, widen
from .weighted import Weighted

IGNORED = 255
GROUPS = 32  # of GroupNorm (Wu & He 2018)


class Segmenter(Weighted):
    """What the heads here share: how logits are answered with.

    They are measured by the mean of the classes' IoU, in which rare ones count as others do; so where there are rare
    ones a class counts in the loss by the root of its rarity, unless said otherwise (docs/results.md#rare-classes).
    """

    recipe: ClassVar[dict[str, Any]] = {"class_weights": "auto"}

    def answer(self, logits: Tensor, features: Features, targets: Tensor | None) -> Tensor | dict[str, Tensor]:
        """Logits [B, K, h, w] at the size of the batch, or with targets [B, H, W] their loss."""
        if targets is None:
            return resize(widen(logits), features.size)
        return {"cross_entropy": self.loss(logits, targets)}

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, self.weights(widen(logits)))


class Linear(Segmenter):
    """Linear probe of the patch tokens (DINOv2, Oquab et al. 2023, section 7.4): BatchNorm and a 1x1 convolution.

    Of several maps each has its own, and their logits are summed at the finest: what one convolution would give on all
    maps joined at that size, because resizing and 1x1 convolutions commute.

    Parameters for maps of widths C: 2 sum(C) + sum(C + 1) K.
    """

    levels: ClassVar[int] = 1

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(BatchNorm(C) for C in channels)
        self.classify = nn.ModuleList(classifier(C, classes) for C in channels)

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B, K, H, W], or with targets [B, H, W] the losses {"cross_entropy": scalar}."""
        parts = zip(self.norms, self.classify, features.maps, strict=True)
        logits = [classify(norm(x)) for norm, classify, (_, x) in parts]
        size = logits[0].shape[-2:]
        return self.answer(torch.stack([resize(each, size) for each in logits]).sum(0), features, targets)


class SemanticFPN(Segmenter):
    """Semantic-FPN (Kirillov et al. 2019, section 3): every map of an FPN brought to stride 4, summed, classified.

    neck, width: channels of the FPN and behind it (`published`: section 4.1; the defaults are ours, for small files);
    dropout: share of channels, before the classifier, as mmsegmentation has it.

    Parameters for maps of widths C, n = neck, m = width: n sum(C + 1) + 4 n (9 n + 1) + 36 n m + 27 m^2 + 14 m +
    (m + 1) K.
    """

    levels: ClassVar[int] = 4
    published: ClassVar[dict[str, int]] = {"neck": 256, "width": 128}

    def __init__(
        self, channels: Sequence[int], classes: int, *, neck: int = 96, width: int = 96, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if width % GROUPS:
            raise RequestError(
                f"The width of fpn is {width}, but is normalised in {GROUPS} groups: give a multiple of {GROUPS}."
            )
        self.neck = FPN(channels, neck)
        self.branches = nn.ModuleList(self._branch(neck, width, times) for times in range(len(channels)))
        self.dropout = nn.Dropout2d(dropout)
        self.classify = classifier(width, classes)

    @staticmethod
    def _branch(neck: int, width: int, times: int) -> nn.Sequential:
        """`times` times 3x3 convolution, GroupNorm, ReLU and doubling; at stride 4 the first three once."""
        layers: list[nn.Module] = []
        for i in range(max(times, 1)):
            norm = partial(nn.GroupNorm, GROUPS)
            layers.append(Conv2dNormActivation(neck if i == 0 else width, width, norm_layer=norm))
            if times:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*layers).apply(initialise)

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B, K, H, W], or with targets [B, H, W] the losses {"cross_entropy": scalar}."""
        maps = self.neck(features).values()
        x = torch.stack([branch(x) for branch, x in zip(self.branches, maps, strict=True)]).sum(0)
        return self.answer(self.classify(self.dropout(x)), features, targets)


class UPerNet(Segmenter):
    """UPerNet (Xiao et al. 2018, section 3) with an auxiliary FCN head on the map of stride 16.

    width: channels; scales: sides of the pyramid pooling module's maps, in cells; auxiliary_width, auxiliary_weight:
    channels of the auxiliary head and weight of its loss; dropout: share of channels, before both classifiers. Defaults
    as in mmsegmentation, but for the widths, which are ours, for small files; at `published` widths HST has as many
    parameters as in its paper.

    Parameters for maps of widths C1 to C4, w = width, a = auxiliary_width, and p scales:
    w (C1 + C2 + C3 + (9 + p) C4) + (63 + 9 p) w^2 + 2 (8 + p) w + (w + 1) K and 9 C3 a + 2 a + (a + 1) K.
    """

    levels: ClassVar[int] = 4
    published: ClassVar[dict[str, int]] = {"width": 512, "auxiliary_width": 256}

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        width: int = 96,
        scales: Sequence[int] = (1, 2, 3, 6),
        auxiliary_width: int = 64,
        auxiliary_weight: float = 0.4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, coarsest = channels
        self.auxiliary_weight = auxiliary_weight
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), convolution(coarsest, width, 1)) for side in scales
        )
        self.pooled = convolution(coarsest + len(scales) * width, width)
        self.laterals = nn.ModuleList(convolution(C, width, 1) for C in finer)
        self.outputs = nn.ModuleList(convolution(width, width) for _ in finer)
        self.fuse = convolution(len(channels) * width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = classifier(width, classes)
        self.auxiliary = nn.Sequential(
            convolution(channels[2], auxiliary_width), nn.Dropout2d(dropout), classifier(auxiliary_width, classes)
        )

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B, K, H, W], or with targets [B, H, W] {"cross_entropy": scalar, "auxiliary": scalar, weighted}."""
        maps = [x for _, x in features.maps]
        logits = self.classify(self.dropout(self._decode(maps)))
        if targets is None:
            return self.answer(logits, features, None)
        auxiliary = self.auxiliary_weight * self.loss(self.auxiliary(maps[2]), targets)
        return {"cross_entropy": self.loss(logits, targets), "auxiliary": auxiliary}

    def _decode(self, maps: list[Tensor]) -> Tensor:
        """The FPN below the pooled coarsest map, all its maps fused at the finest one's size: [B, width, h, w]."""
        *finer, coarsest = maps
        size = coarsest.shape[-2:]
        x = self.pooled(torch.cat([coarsest, *(resize(pool(coarsest), size) for pool in self.pools)], dim=1))
        levels = [x]
        for i in reversed(range(len(finer))):
            lateral = self.laterals[i](finer[i])
            x = lateral + resize(x, lateral.shape[-2:])
            levels.insert(0, self.outputs[i](x))
        size = levels[0].shape[-2:]
        return self.fuse(torch.cat([resize(level, size) for level in levels], dim=1))


def convolution(channels: int, width: int, kernel: int = 3) -> nn.Module:
    """A convolution that keeps the size, BatchNorm, ReLU: kernel^2 C w + 2 w parameters."""
    return Conv2dNormActivation(channels, width, kernel, norm_layer=BatchNorm).apply(initialise)


def classifier(channels: int, classes: int) -> nn.Conv2d:
    """A 1x1 convolution to logits, drawn small so that training starts from even scores: (C + 1) K parameters."""
    layer: Any = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def initialise(module: nn.Module) -> None:
    """Convolutions before a ReLU as He et al. 2015."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, [B, C, h, w] -> [B, C, *size]."""
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def cross_entropy(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Of logits [B, K, h, w], resized: the mean over the pixels of masks [B, H, W] not ignored, each by the weight of
    its class; 0 where all are."""
    masks = masks.long()
    logits = resize(widen(logits), masks.shape[-2:])
    total = F.cross_entropy(logits, masks, weights, ignore_index=IGNORED, reduction="sum")
    there = masks != IGNORED
    counted = there.sum() if weights is None else (weights[masks.where(there, 0)] * there).sum()
    return total / counted.clamp(min=torch.finfo(total.dtype).tiny)
