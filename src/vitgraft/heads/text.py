"""Classes by the embeddings of their names: the head of a CLIP model, to begin from.

Radford et al. 2021, arXiv 2103.00020; trained from there as Jie and Deng 2022 do (arXiv 2207.07039, section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import RequestError
from ..features import Features
from .weighted import Weighted


class Text(Weighted):
    """logits = W normalised(P x) + b, with the frozen projection P [E, D] of the image tower.

    W begins as the embeddings of the class names, times the logit scale, b at zero: the zero-shot classifier.
    Parameters that train: (E + 1) K.
    """

    levels: ClassVar[int] = 0
    projection: Tensor

    def __init__(
        self, channels: Sequence[int], classes: int, *, embedding: int = 0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if not embedding:
            raise RequestError(
                "The head text begins with embeddings of class names: make them with `vitgraft zero-shot`, and name "
                "what it wrote by --start."
            )
        [width] = channels
        self.label_smoothing = label_smoothing
        self.register_buffer("projection", torch.zeros(embedding, width))
        self.fc = nn.Linear(embedding, classes)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Features, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B, K], or with targets [B] the losses {"cross_entropy": scalar}."""
        logits = self.fc(F.normalize(F.linear(features.pooled, self.projection), dim=-1))
        if targets is None:
            return logits
        logits = logits.float() if logits.itemsize < 4 else logits
        loss = F.cross_entropy(logits, targets, self.weights(logits), label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}

    def layer(self) -> nn.Linear:
        raise RequestError(
            "The head text normalises what it projects, which no linear layer does: merge a run of the head linear."
        )
