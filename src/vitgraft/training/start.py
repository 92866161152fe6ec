"""A fit that begins where another run has ended: on other pictures, for other classes, or simply longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..adapters import file as adapter
from ..adapters.run import Run
from ..common.errors import RequestError
from ..common.settings import DENSE
from ..model import Model

KEPT = ("normalisation", "image_size")  # settings of the run in which the pictures have to be as they were


class Start:
    """A finished run, or an adapter file: its method, neck and head are what a fit begins with."""

    def __init__(self, run: str | Path) -> None:
        self.path = Path(run)
        self.tensors, header = adapter.read(Run(run).file)
        self.header = header
        self.task, self.method, self.head = header["task"], header["method"], header["head"]["name"]
        self.open = self.method == "linear"  # nothing of it is the method's: another may begin with its head
        self.backbone, self.head_options = header["backbone"]["name"], header["head"]["options"]
        kept = {name: header["protocol"][name] for name in KEPT if header["protocol"].get(name) is not None}
        # Settings and arguments of the method, unless others are asked for.
        neck = {name: header["head"][name] for name in adapter.NECK} if self.task in DENSE else {}
        self.options: dict[str, Any] = {**kept, **neck, **header["arguments"]}

    def check(self, **asked: str | None) -> None:
        """RequestError where another task, method or head is asked for."""
        for name, value in asked.items():
            if name == "method" and self.open:
                continue
            if value is not None and value != (own := getattr(self, name)):
                raise RequestError(
                    f"{self.path} is a run of the {name} {own}, from which a fit of the {name} {value} cannot start: "
                    f"leave --{name} out, or start from another run."
                )

    def load(self, model: Model, classes: Sequence[str], build: Callable[[int], Model]) -> dict[str, Any]:
        """Gives `model`, for these classes, the tensors of the run; those of the classes only if it knows all of them,
        in whatever order.

        build: makes such a model for another number of classes. What was done is told, ready for JSON. RequestError
        where the run has another backbone, or not the tensors that the model trains, and where names of classes are all
        that it knows, and it does not know these.
        """
        adapter.check_backbone(self.path, self.header, model.backbone)
        known = self.header["classes"]
        if self.head == "text" and (missing := [name for name in classes if name not in known]):
            raise RequestError(
                f"{self.path} tells {len(known)} classes apart by their names, but {missing[0]!r} is not among them"
                f"{f', nor {len(missing) - 1} more' if missing[1:] else ''}: make it with these names."
            )
        own, other = model.state(), build(len(classes) + 1)
        shapes = {name: tensor.shape for name, tensor in other.state().items()}
        of_classes = {name for name, tensor in own.items() if tensor.shape != shapes[name]}
        parts = {name: _axis(own[name].shape, shapes[name]) for name in of_classes if name in self.tensors}
        # Not where a background is counted with them: each head has its own place for it.
        plain = all(self.tensors[name].shape[axis] == len(known) * each for name, (axis, each) in parts.items())
        if plain and list(classes) != known and set(classes) <= set(known):
            order = torch.tensor([known.index(name) for name in classes])
            for name, (axis, each) in parts.items():
                rows = (order[:, None] * each + torch.arange(each)).flatten()
                self.tensors[name] = self.tensors[name].index_select(axis, rows)
            known = list(classes)
        same = list(classes) == known
        wanted = {name: tensor for name, tensor in own.items() if same or name not in of_classes}
        if self.open:
            wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("method.")}
        other.method.consolidate()
        if not self.open and other.state().keys() != own.keys():
            raise RequestError(
                f"A run of {self.method} holds what is left after its consolidation, {self.path} too, which does not "
                "train on: fit anew, or start from a run of another method."
            )
        for name, tensor in wanted.items():
            there = self.tensors.get(name)
            if there is None or there.shape != tensor.shape:
                has = "does not have it" if there is None else f"has {list(there.shape)}"
                raise RequestError(
                    f"{self.path} cannot be the start of this fit: its {name} would be of shape {list(tensor.shape)}, "
                    f"but that run {has}; leave out the options in which they differ, which are then the run's."
                )
        model.load_state({**own, **{name: self.tensors[name] for name in wanted}})
        return {"run": str(self.path), "method": self.method, "new": sorted(own.keys() - wanted.keys())}


def _axis(shape: torch.Size, one_more: torch.Size) -> tuple[int, int]:
    """On which axis a tensor has a part for each class, and how long one is: from its shape with a class more."""
    [axis] = [k for k, (a, b) in enumerate(zip(shape, one_more, strict=True)) if a != b]
    return axis, one_more[axis] - shape[axis]
