"""One file per visual task, beside `base`, what a task is, and `whole` and `dense`, what three each share."""

from __future__ import annotations

from ..common import plugins
from .base import Task

_SHARED = ("base", "dense", "whole")


def names() -> list[str]:
    """The tasks that exist: the files of this folder, and those from outside."""
    return [name for name in plugins.names(__name__, Task) if name not in _SHARED]


def find(name: str) -> Task:
    """A task by name; RequestError with the near misses if there is no such file."""
    cls: type[Task] = plugins.find(__name__, name, Task, "task", names())
    return cls()
