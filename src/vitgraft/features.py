"""The two records that flow through a model: what a backbone gives, and what a head receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Activations:
    """What one pass through the backbone gives.

    tokens  [B, P+N, D]  after the last block and the final norm; [B, P, D] where CLS alone was asked for
    grids   [(h, w), ...]  of each stage: of its N = h*w patch tokens, which stand behind the P prefix tokens
    taps    block -> [B, P+N, D]  output of the block, normalised if the contact says so
    extra   block -> [B, M, D]    what became of the block's extra tokens
    patches [[B, N, D], ...]  what the patch tokens are after each of the blocks that were asked for, normalised
    """

    tokens: Tensor
    grids: list[tuple[int, int]]
    taps: dict[int, Tensor] = field(default_factory=dict)
    extra: dict[int, Tensor] = field(default_factory=dict)
    patches: list[Tensor] = field(default_factory=list)

    @property
    def grid(self) -> tuple[int, int]:
        """Of the last stage, and so of `tokens`."""
        return self.grids[-1]

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        return [self.tokens, *self.taps.values(), *self.extra.values(), *self.patches]

    def map(self, change: Callable[[Tensor], Tensor]) -> Activations:
        """The same of every tensor changed."""
        taps, extra = ({i: change(t) for i, t in of.items()} for of in (self.taps, self.extra))
        return Activations(change(self.tokens), self.grids, taps, extra, [change(t) for t in self.patches])


@dataclass
class Features:
    """What leaves backbone + method.

    pooled  [B, D']      one vector per picture
    maps    [(stride in pixels, [B, C_i, h_i, w_i]), ...]  from the finest to the coarsest
    side    [(stride in pixels, [B, c_i, h_i, w_i]), ...]  of a side network, to be added to `maps` by a neck
    queries [B, M, D]    what became of a head's own tokens, under the final norm
    size    (H, W)       of the batch in pixels; dense tasks only
    sizes   [(H, W), ...]  of each picture inside its padding, which lies right and below; empty: all `size`
    """

    pooled: Tensor
    maps: list[tuple[float, Tensor]]
    size: tuple[int, int] = (0, 0)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    side: list[tuple[float, Tensor]] = field(default_factory=list)
    queries: Tensor | None = None

    @property
    def inside(self) -> list[tuple[int, int]]:
        """(h, w) of each picture inside its padding."""
        return self.sizes or [self.size] * len(self.pooled)
