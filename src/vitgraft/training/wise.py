"""Between what a fit started from and where it ended: WiSE-FT.

Wortsman et al. 2022, arXiv 2109.01903: weights between the zero-shot model's and the tuned one's are often better than
either, above all on other pictures than those of the training.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..adapters import file as adapter
from ..adapters.run import Run
from ..common.errors import RequestError
from ..model import Model
from .start import Start


class Between:
    """A run, and what it started from.

    RequestError for a run without a `start`, and where what it started from is gone.
    """

    def __init__(self, run: Run) -> None:
        self.run, header = run, run.adapter.header
        told = header["protocol"].get("start")
        if not told:
            raise RequestError(
                f"{run.path} did not start from another run, so there is nothing between the two: give one that was "
                "fitted with --start."
            )
        model, start = run.adapter.model, Start(told["run"])

        def made(classes: int) -> Model:
            return adapter.as_told(header, model.backbone, classes, header["protocol"]["seed"])

        first = made(len(header["classes"]))
        start.load(first, header["classes"], made)
        first.method.consolidate()
        self.first, self.last = first.state(), {name: t.clone() for name, t in model.state().items()}

    def at(self, share: float) -> Run:
        """The run with weights of which this share is the tuned ones: 0 is the start, 1 the end. RequestError for what
        is no share."""
        if not 0 <= share <= 1:
            raise RequestError(f"wise is {share}, but is a share: give 0 (the start) to 1 (the end).")
        self.run.adapter.model.load_state({name: self._between(name, share) for name in self.last})
        return self.run

    def _between(self, name: str, share: float) -> Tensor:
        first, last = self.first[name], self.last[name]
        if not last.is_floating_point():  # which channels, which heads: chosen before the fit
            return last
        return torch.lerp(first.to(last), last, share)

    def write(self, share: float, path: str | Path) -> None:
        """The adapter file of `at`."""
        run = self.at(share)
        header = {**run.adapter.header, "metrics": {**run.adapter.header["metrics"], "value": None, "interval": None}}
        header["protocol"] = {**header["protocol"], "wise": share}
        adapter.write(Path(path), run.adapter.model.state(), header)
