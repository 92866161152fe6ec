"""Classes that are found by their file's name: methods and tasks."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TypeVar

from .errors import RequestError, near_misses

Kind = TypeVar("Kind")


def names(package: str) -> list[str]:
    """The files of a package."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))


def find(package: str, name: str, base: type[Kind], word: str, known: list[str] | None = None) -> type[Kind]:
    """The class of a kind in the file of that name; RequestError with the near misses if it is not among the `known`
    ones, all files unless given."""
    known = names(package) if known is None else known
    if name not in known:
        raise RequestError(
            f"There is no {word} {name!r}: there are {', '.join(known)}; choose one of these.{near_misses(name, known)}"
        )
    module = importlib.import_module(f"{package}.{name}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    )
