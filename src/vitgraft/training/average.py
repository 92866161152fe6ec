"""An average over the steps of a fit, kept beside what trains: smoother than the last step, at the same place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Average:
    """The exponential moving average of the tensors that train (Polyak and Juditsky 1992, with a decay).

    After step t = 1, 2, ... it is d a + (1 - d) p with d = min(decay, t / (9 + t)), so that it forgets where the fit
    began, whatever its length. With a decay of 0 there is none, and nothing is done.
    """

    def __init__(self, trained: dict[str, nn.Parameter], decay: float) -> None:
        self.decay, self._trained = decay, trained
        self.tensors = {name: p.detach().clone() for name, p in trained.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """step: how many have been taken, this one included."""
        if self.tensors:
            rate = 1 - min(self.decay, step / (9 + step))
            torch._foreach_lerp_(list(self.tensors.values()), list(self._trained.values()), rate)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average stands where the tensors are, inside the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def take(self) -> None:
        """The average in the place of the tensors, for good."""
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.tensors.items():
            now = self._trained[name].detach().clone()
            self._trained[name].copy_(average)
            average.copy_(now)
