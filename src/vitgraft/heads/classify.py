"""Classification: one linear layer on the pooled features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..features import Features


class Classify(nn.Module):
    """Linear classifier, D' -> K, initialised as timm's (truncated normal of 0.02, bias 0).

    Parameters: (D' + 1) K.
    """

    levels: ClassVar[int] = 0  # of maps that it reads

    def __init__(self, channels: Sequence[int], classes: int, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        [width] = channels
        self.fc = nn.Linear(width, classes)
        self.label_smoothing = label_smoothing
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B, K], or with targets [B] the losses {"cross_entropy": scalar}."""
        logits = self.fc(features.pooled)
        if targets is None:
            return logits
        loss = F.cross_entropy(
            logits.float() if logits.dtype != targets.dtype and logits.itemsize < 4 else logits,
            targets,
            label_smoothing=self.label_smoothing,
        )
        return {"cross_entropy": loss}
