"""A batch of pictures with the truth about them, and what gives batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .audit import Shown


@dataclass
class Batch:
    """Pictures of one padded size, and the truth about them; in its pixels, in the dense tasks.

    pixels   uint8 [B, 3, H, W], padded at the right and the bottom
    sizes    (h, w) of each picture inside its padding
    targets  classify: labels int64 [B]; segment: masks uint8 [B, H, W], 255 ignored; detect and instance: B dicts of
             "boxes" float32 [n, 4] xyxy, "labels" int64 [n] and, for instance, "masks" uint8 [n, H, W], with n >= 0 and
             crowds left out
    indices  int64 [B], into the split
    """

    pixels: Tensor
    sizes: list[tuple[int, int]]
    targets: Any
    indices: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device; the indices stay."""
        return replace(self, pixels=moved(self.pixels, device), targets=_to(self.targets, device))


def _to(targets: Any, device: torch.device) -> Any:
    if isinstance(targets, Tensor):
        return moved(targets, device)
    return [{name: moved(tensor, device) for name, tensor in each.items()} for each in targets]


def moved(t: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A copy to a GPU would otherwise wait until that has nothing left to do."""
    if device.type == "cuda" and t.device.type == "cpu":
        return t.pin_memory().to(device, non_blocking=True)
    return t.to(device)


class LoadedPictures(Protocol):
    """The pictures of one split, known to be good."""

    skipped: list[tuple[Path, str]]  # bad pictures that were left out, with the reason
    views: tuple[str, ...]  # of each picture, by name; epochs take turns at them; none: every epoch sees another one
    shown: Shown  # of each class

    def __len__(self) -> int: ...
    @property
    def paths(self) -> list[Path]: ...
    def even_batches(self, batch_size: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """All indices once, for evaluation: this process's share."""
        ...

    def batches(self, indices: Sequence[Sequence[int]], *, epoch: int | None = None) -> Iterator[Batch]:
        """For each list of indices, in order, a batch; with an epoch as training sees it then."""
        ...

    def close(self) -> None:
        """Ends the processes that read, if there are any; they start again when they are needed."""
        ...
