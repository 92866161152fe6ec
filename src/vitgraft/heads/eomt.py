"""EoMT (Kerssies et al. 2025, arXiv 2503.19108): queries enter the last blocks of the backbone itself, as tokens.

There all weights train; here the backbone stays frozen, or a method such as LoRA adapts it. Nothing stands between the
backbone and the masks but what they are predicted by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.errors import RequestError
from ..contacts import Contacts
from ..features import Features
from .masks import QueryMasks, kept_from


class EoMT(QueryMasks):
    """M queries go in front of all tokens through the last `blocks` blocks. What enters each of these, and what leaves
    the last, under the backbone's final norm, predicts for each query a class or none, and a mask at stride 4.

    In training a query sees, in each of these blocks, no more than the patches of its mask so far; block after block
    that ends, by chance in a share of cases that falls from 1 to 0, so that at the end nothing of it is left and a
    prediction needs no masks on the way (paper, section 3.4). Losses are of all cells of a mask at stride 4, not of
    12,544 points.

    blocks: 4 in the paper for ViT-L, 3 for ViT-B. The rest as `QueryMasks` has it; E is the backbone's own width.
    """

    levels: ClassVar[int] = 1

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        masks: bool = False,
        queries: int = 0,
        blocks: int = 3,
        score_threshold: float = 0.05,
        detections: int = 100,
        things: Sequence[int] | None = None,
        sure: float = 0.5,
        overlap: float = 0.8,
    ) -> None:
        if len(channels) > 1:
            raise RequestError(
                f"The head eomt reads the last map of a backbone, but {len(channels)} came: take the head query, or a "
                "method without a side network, on a backbone of one stage."
            )
        super().__init__(
            channels[0],
            classes,
            masks=masks,
            queries=queries,
            score_threshold=score_threshold,
            detections=detections,
            things=things,
            sure=sure,
            overlap=overlap,
        )
        self.blocks = blocks
        self.share = 0.0  # of a fit that is done; a loop tells it
        self._so_far: list[tuple[Tensor, Tensor]] = []  # predictions of the pass under way

    def enter(self, backbone: Any, method: Any) -> None:
        """Declares the queries among the contacts of an attached method."""
        if method.side_channels:
            raise RequestError(
                f"The head eomt reads the backbone's blocks themselves, but {method.name()} adds maps of its own to "
                "the last: take the head query, or a method without a side network."
            )
        L = backbone.depth
        if not 1 <= self.blocks <= L:
            raise RequestError(
                f"Queries were to enter the last {self.blocks} blocks, but {backbone.name} has {L}: give the head "
                f"blocks from 1 to {L}."
            )
        first = L - self.blocks

        def entering(i: int, x: Tensor, grid: tuple[int, int]) -> Tensor | None:
            if not self.training or not torch.is_grad_enabled():
                return None
            if i == first:
                self._so_far = []
            x = backbone.normalised(x, method.in_effect)
            M, N = len(self.queries), grid[0] * grid[1]
            self._so_far.append(self.predicted(x[:, :M], x[:, -N:].mT.unflatten(2, grid)))
            chance = self.chance(i - first)
            if not chance:
                return None
            hidden = kept_from(self._so_far[-1][1], grid, chance)
            bias = x.new_zeros(len(x), 1, x.shape[1], x.shape[1])
            bias[:, 0, :M, -N:].masked_fill_(hidden, float("-inf"))
            return bias

        contacts = Contacts()
        contacts.add_tokens(backbone, first, lambda B: self.queries[None], L - 1, entering=entering)
        method.admit(contacts)

    def chance(self, block: int) -> float:
        """Of a query to be kept to its mask, in a block counted from the first that it enters: 1, then, one block after
        the other, down to 0 (the authors' steps, as shares of all)."""
        whole = 1.5 * (self.blocks + 1)
        begins, ends = (1 + 1.5 * block) / whole, (2 + 1.5 * block) / whole
        gone = min(max((self.share - begins) / (ends - begins), 0.0), 1.0)
        return (1 - gone) ** 0.9

    def forward(self, features: Features, targets: Any = None) -> Any:
        """As `QueryMasks.told` has it."""
        assert features.queries is not None
        outcomes = [self.predicted(features.queries, features.maps[-1][1])]
        if targets is not None:
            outcomes, self._so_far = [*self._so_far, *outcomes], []
        return self.told(outcomes, features, targets)
