"""Layouts from outside the package: modules with `recognise(root)` and `read(root, task, *, seed, classes)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common import plugins
from ..common.errors import RequestError


def recognise(root: Path) -> str:
    """The task of a folder whose layout is one from outside; empty where it is none of them."""
    return next((task for module in _layouts() if (task := module.recognise(root))), "")


def read(root: Path, task: str, *, seed: int, classes: Sequence[str] | None) -> Any:
    """The folder as a `DataSet`, or as a `DenseSet` of the dense tasks; None where the layout is none from outside."""
    for module in _layouts():
        if module.recognise(root) == task:
            found = module.read(root, task, seed=seed, classes=tuple(classes) if classes is not None else None)
            if not {"root", "classes", "splits", "layout", "notes"} <= set(dir(found)):
                raise RequestError(
                    f"{module.__file__} has read {root} as a {type(found).__name__}: its `read` must give a "
                    "vitgraft.data.DataSet, or a vitgraft.data.truth.DenseSet."
                )
            return found
    return None


def _layouts() -> list[Any]:
    return [m for m in plugins.modules() if callable(getattr(m, "recognise", None)) and callable(getattr(m, "read", 0))]
