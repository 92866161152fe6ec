"""What a killed fit continues from."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..common.errors import WorkError
from ..common.files import write_bytes
from ..model import Model
from .average import Average

SPARED = 10.0  # seconds of work that a kill may undo: on a GPU a checkpoint may take as long as a short epoch


@dataclass
class Progress:
    """Where a fit stands: what a checkpoint holds beside the tensors."""

    epoch: int = 0  # epochs that are done
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)  # one record per epoch: metrics.jsonl


class Checkpoint:
    """What a killed fit continues from, in one safetensors file: tensors, the optimiser's moments, their average, and
    the progress."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved = -math.inf

    @property
    def due(self) -> bool:
        """Whether as much was done since the last one as a kill may undo."""
        return time.monotonic() - self._saved >= SPARED

    def save(self, model: Model, optimizer: torch.optim.Optimizer, average: Average, progress: Progress) -> None:
        tensors = {f"model.{name}": t.detach().contiguous() for name, t in model.state().items()}
        for name, p in model.trained().items():
            for key, value in optimizer.state[p].items():
                tensors[f"{key}.{name}"] = value.detach().contiguous()
        tensors |= {f"average.{name}": t.contiguous() for name, t in average.tensors.items()}
        write_bytes(self.path, save(tensors, {"progress": json.dumps(vars(progress))}))
        self._saved = time.monotonic()

    def restore(self, model: Model, optimizer: torch.optim.Optimizer, average: Average) -> Progress:
        """Puts everything back; gives the progress. Nothing saved yet: the start."""
        if not self.path.is_file():
            return Progress()
        try:
            with safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                progress = Progress(**json.loads(file.metadata()["progress"]))
            for name, kept in average.tensors.items():
                kept.copy_(tensors[f"average.{name}"])
            model.load_state({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise WorkError(
                f"The checkpoint {self.path} cannot be read ({error}): fit again into another folder."
            ) from error
        for name, p in model.trained().items():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
            optimizer.state[p] = {key: tensors[f"{key}.{name}"].to(p.device) for key in keys}
        return progress
