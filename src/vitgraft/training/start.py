"""A fit that begins where another run has ended: on other pictures, for other classes, or simply longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
        self.backbone, self.head_options = header["backbone"]["name"], header["head"]["options"]
        kept = {name: header["protocol"][name] for name in KEPT if header["protocol"].get(name) is not None}
        # Settings and arguments of the method, unless others are asked for.
        neck = {name: header["head"][name] for name in adapter.NECK} if self.task in DENSE else {}
        self.options: dict[str, Any] = {**kept, **neck, **header["arguments"]}

    def check(self, **asked: str | None) -> None:
        """RequestError where another task, method or head is asked for."""
        for name, value in asked.items():
            if value is not None and value != (own := getattr(self, name)):
                raise RequestError(
                    f"{self.path} is a run of the {name} {own}, from which a fit of the {name} {value} cannot start: "
                    f"leave --{name} out, or start from another run."
                )

    def load(self, model: Model, classes: Sequence[str], build: Callable[[int], Model]) -> dict[str, Any]:
        """Gives `model`, for these classes, the tensors of the run; those of the classes only if they are the same.

        build: makes such a model for another number of classes. What was done is told, ready for JSON. RequestError
        where the run has another backbone, or not the tensors that the model trains.
        """
        adapter.check_backbone(self.path, self.header, model.backbone)
        same = list(classes) == self.header["classes"]
        own, other = model.state(), build(len(classes) + 1)
        shapes = {name: tensor.shape for name, tensor in other.state().items()}
        of_classes = {name for name, tensor in own.items() if tensor.shape != shapes[name]}
        wanted = {name: tensor for name, tensor in own.items() if same or name not in of_classes}
        other.method.consolidate()
        if other.state().keys() != own.keys():
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
