"""Regression: a number for a picture, by one linear layer on the pooled features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import Features
from .classify import OneLayer


class Regress(OneLayer):
    """D' -> 1, in units of the standard deviation from the mean of the training pictures, which a fit tells it.

    Parameters: D' + 1.
    """

    def __init__(self, channels: Sequence[int], classes: int = 1, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(channels, classes)
        self.mean, self.std = mean, std

    def layer(self) -> nn.Linear:
        """A copy of the layer that gives the numbers themselves."""
        found = super().layer()
        with torch.no_grad():
            found.weight.mul_(self.std)
            found.bias.mul_(self.std).add_(self.mean)
        return found

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Numbers [B, 1], or with targets [B, 1] the losses {"huber": scalar}: quadratic up to one standard deviation,
        linear beyond, so that a few wrong numbers do not rule the fit (Huber 1964)."""
        found = self.fc(features.pooled)
        found = found.float() if found.itemsize < 4 else found
        if targets is None:
            return found * self.std + self.mean
        return {"huber": F.smooth_l1_loss(found, (targets.to(found.dtype) - self.mean) / self.std)}
