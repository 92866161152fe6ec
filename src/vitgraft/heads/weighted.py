"""What heads share whose loss may count some classes more than others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Weighted(nn.Module):
    """A head with a weight for each class, [K], in its cross entropy: none unless `balance` is called. They belong to a
    fit, not to what it leaves: no part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)

    def balance(self, counts: Sequence[int], power: float = 1.0) -> None:
        """Rare classes count more: a picture, or a pixel, by (n / (K * n_k)) ** power, where n_k of the n in the
        training split are of its class. At 1 every class counts alike (scikit-learn's "balanced")."""
        weights = [(sum(counts) / (len(counts) * max(count, 1))) ** power for count in counts]
        self.class_weights = torch.tensor(weights, dtype=torch.float32, device=next(self.parameters()).device)

    def weights(self, like: Tensor) -> Tensor | None:
        """The weights in the dtype of these logits."""
        return None if self.class_weights is None else self.class_weights.to(like.dtype)
