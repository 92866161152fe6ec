"""Classes as the means of their pictures' features: a head without weights, for few-shot episodes.

Snell et al. 2017, arXiv 1703.05175; by cosine, as eTT has it (Xu et al. 2023, arXiv 2301.02419).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import Features

SCALE = 10.0  # of the cosines


class Prototypes(nn.Module):
    """The nearest class mean. Trained, pictures are told apart by the means of their own batch; `take` keeps these."""

    means: Tensor  # [K, D']
    levels = 0

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, width))

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """-> logits [B, K]; with labels [B], of which each class has one or more, the cross entropy."""
        if targets is None:
            return self._logits(features.pooled, self.means)
        logits = self._logits(features.pooled, self._means_of(features.pooled, targets))
        return {"cross_entropy": F.cross_entropy(logits, targets)}

    def take(self, pooled: Tensor, labels: Tensor) -> None:
        """Keeps the means of these pictures, [B, D'] and [B]."""
        self.means.copy_(self._means_of(pooled, labels))

    def _means_of(self, pooled: Tensor, labels: Tensor) -> Tensor:
        members = F.one_hot(labels, len(self.means)).to(pooled.dtype)
        return (members / members.sum(0)).mT @ pooled

    @staticmethod
    def _logits(pooled: Tensor, means: Tensor) -> Tensor:
        return SCALE * F.normalize(pooled, dim=-1) @ F.normalize(means, dim=-1).mT


class Cosine(Prototypes):
    """The same with means that train, once they were taken."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        del self.means
        self.means = nn.Parameter(torch.zeros(classes, width))

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        logits = self._logits(features.pooled, self.means)
        return logits if targets is None else {"cross_entropy": F.cross_entropy(logits, targets)}

    def take(self, pooled: Tensor, labels: Tensor) -> None:
        self.means.data.copy_(self._means_of(pooled, labels))
