"""Classification, of one class for a picture or of any number: one linear layer on the pooled features."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import Features
from .discriminant import discriminant
from .weighted import Weighted


class OneLayer(nn.Module):
    """One linear layer, initialised as timm's classifier (truncated normal of 0.02, bias 0)."""

    levels: ClassVar[int] = 0  # of maps that it reads

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        [width] = channels
        self.fc = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def layer(self) -> nn.Linear:
        """A copy that gives the head's answers by itself."""
        return copy.deepcopy(self.fc)


class Classify(OneLayer, Weighted):
    """Linear classifier, D' -> K, initialised as timm's (truncated normal of 0.02, bias 0).

    Parameters: (D' + 1) K.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, label_smoothing: float = 0.0) -> None:
        super().__init__(channels, classes)
        self.label_smoothing = label_smoothing

    def take(self, features: Tensor, labels: Tensor) -> None:
        """Begins as the linear discriminant of these features [n, D'] and labels [n]."""
        with torch.no_grad():
            weight, bias = discriminant(features, labels, self.fc.out_features)
            self.fc.weight.copy_(weight)
            self.fc.bias.copy_(bias)

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B, K], or with targets [B] the losses {"cross_entropy": scalar}."""
        logits = self.fc(features.pooled)
        if targets is None:
            return logits
        logits = logits.float() if logits.itemsize < 4 else logits
        loss = F.cross_entropy(logits, targets, self.weights(logits), label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}


class MultiLabel(OneLayer):
    """A logit for each of K labels, of which a picture may have any number, D' -> K; binary cross entropy.

    Parameters: (D' + 1) K.
    """

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B, K], or with targets [B, K] of 0 and 1 the losses {"binary_cross_entropy": scalar}."""
        logits = self.fc(features.pooled)
        if targets is None:
            return logits
        logits = logits.float() if logits.itemsize < 4 else logits
        return {"binary_cross_entropy": F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))}
