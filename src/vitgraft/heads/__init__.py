"""What turns features into losses and predictions. One file per family; a head knows nothing of methods."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..common import plugins
from ..common.errors import RequestError, near_misses
from ..common.settings import MASKED

if TYPE_CHECKING:
    from torch import nn

# task -> name -> file and class. A class's `levels` says how many maps it reads; the tasks in MASKED set its `masks`.
HEADS: dict[str, dict[str, str]] = {
    "classify": {"linear": "classify.Classify", "text": "text.Text"},
    "multilabel": {"linear": "classify.MultiLabel"},
    "regress": {"linear": "regress.Regress"},
    "segment": {
        "upernet": "segment.UPerNet",
        "fpn": "segment.SemanticFPN",
        "linear": "segment.Linear",
        "query": "query.Queries",
        "eomt": "eomt.EoMT",
    },
    "detect": {"faster": "detect.RCNN", "cascade": "cascade.CascadeRCNN"},
    "instance": {
        "mask": "detect.RCNN",
        "cascade-mask": "cascade.CascadeRCNN",
        "query": "query.Queries",
        "eomt": "eomt.EoMT",
    },
    "panoptic": {"query": "query.Queries", "eomt": "eomt.EoMT"},
}


def names(task: str) -> list[str]:
    """The heads of a task, its default first; those from outside last."""
    return [*HEADS.get(task, ()), *_outside(task)]


def tasks() -> list[str]:
    """The tasks that there are heads for."""
    return list(dict.fromkeys([*HEADS, *(task for cls in _classes_outside().values() for task in cls.tasks)]))


def _classes_outside() -> dict[str, type[Any]]:
    """The heads from outside by name: classes that say their `tasks` and how many maps they read, `levels`."""
    return {
        module.__name__.rpartition(".")[2]: cls
        for module in plugins.modules()
        for cls in vars(module).values()
        if isinstance(cls, type)
        and cls.__module__ == module.__name__
        and hasattr(cls, "tasks")
        and hasattr(cls, "levels")
    }


def _outside(task: str) -> dict[str, type[Any]]:
    return {name: cls for name, cls in _classes_outside().items() if task in cls.tasks}


def find(task: str, name: str) -> type[Any]:
    """The class of a head by its task and name; RequestError with the near misses if there is none."""
    if task not in tasks():
        raise RequestError(
            f"There is no task {task!r}: there are {', '.join(tasks())}; choose one of these."
            f"{near_misses(task, tasks())}"
        )
    if name not in names(task):
        owners = [f"{name!r} belongs to the task {other}; " for other in tasks() if name in names(other)]
        raise RequestError(
            f"There is no head {name!r} for the task {task}: {''.join(owners)}there are {', '.join(names(task))}; "
            f"choose one of these.{near_misses(name, names(task))}"
        )
    if name in (outside := _outside(task)):
        return outside[name]
    file, _, cls = HEADS[task][name].partition(".")
    return getattr(importlib.import_module(f".{file}", __name__), cls)


def options(task: str, name: str) -> dict[str, Any]:
    """The options of a head with their defaults."""
    parameters = inspect.signature(find(task, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("channels", "classes", "masks")}


def create(task: str, name: str, channels: Sequence[int], classes: int, **arguments: Any) -> nn.Module:
    """A head for maps of these widths, finest first; its tensors are drawn from torch's global generator.

    RequestError for an option that it does not have, and for fewer maps than the `levels` that it reads.
    """
    cls = find(task, name)
    known = options(task, name)
    for argument in arguments:
        if argument not in known:
            raise RequestError(
                f"The head {name} has no option {argument!r}: it has {', '.join(known) or 'none'}; take one of these "
                f"or leave it out.{near_misses(argument, known)}"
            )
    if len(channels) < cls.levels:
        raise RequestError(
            f"The head {name} reads {cls.levels} maps, but was given {len(channels)}: "
            "put a heads.pyramid.Pyramid in front of it."
        )
    return cls(channels, classes, **({"masks": True} if task in MASKED else {}), **arguments)
