"""Classes that are found by their file's name: methods and tasks, those of the package and those from outside.

What comes from outside is a module: a file that `--plugin` or VITGRAFT_PLUGINS names, or an entry point of an installed
package in one of GROUPS. Its own name is the name of the method or task that it holds, as in the package.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from .errors import RequestError, near_misses

Kind = TypeVar("Kind")
GROUPS = ("vitgraft.methods", "vitgraft.heads", "vitgraft.tasks", "vitgraft.layouts")
VARIABLE = "VITGRAFT_PLUGINS"  # files, joined as in PATH; a variable, because worker processes have it too
_PACKAGE = "vitgraft_plugins"  # under which such files are imported


def names(package: str, base: type[Any] | None = None) -> list[str]:
    """The files of a package; with a base, those from outside as well that have a class of that kind."""
    own = {module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)}
    return sorted(own | set(_outside(base, own) if base else ()))


def find(package: str, name: str, base: type[Kind], word: str, known: list[str] | None = None) -> type[Kind]:
    """The class of a kind in the file of that name; RequestError with the near misses if it is not among the `known`
    ones, all files unless given."""
    known = names(package, base) if known is None else known
    if name not in known:
        raise RequestError(
            f"There is no {word} {name!r}: there are {', '.join(known)}; choose one of these, or add the file of your "
            f"own with --plugin.{near_misses(name, known)}"
        )
    return _outside(base).get(name) or classes_in(importlib.import_module(f"{package}.{name}"), base)[0]


def add(*files: str | Path) -> list[ModuleType]:
    """Takes in these files, for this process and those that it starts; RequestError where one cannot be imported."""
    given = [str(Path(file).expanduser().resolve()) for file in files]
    found = [_of_file(file) for file in given]
    there = [file for file in os.environ.get(VARIABLE, "").split(os.pathsep) if file]
    if given:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*there, *given]))
    return found


def modules() -> list[ModuleType]:
    """What comes from outside, each imported once."""
    files = [file for file in os.environ.get(VARIABLE, "").split(os.pathsep) if file]
    return [*map(_of_file, files), *_of_entry_points()]


def _outside(base: type[Kind], taken: Any = ()) -> dict[str, type[Kind]]:
    """The classes of a kind from outside, by name."""
    found: dict[str, type[Kind]] = {}
    for module in modules():
        for cls in classes_in(module, base)[:1]:
            name = module.__name__.rpartition(".")[2]
            if name in taken or name in found:
                raise RequestError(
                    f"{module.__file__} holds a {base.__name__.lower()} called {name!r}, but there is one of that name "
                    "already: rename the file."
                )
            found[name] = cls
    return found


def classes_in(module: ModuleType, base: type[Kind]) -> list[type[Kind]]:
    """The classes of a kind that a module makes."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]


def _of_file(file: str) -> ModuleType:
    path = Path(file)
    name = f"{_PACKAGE}.{path.stem}"
    if name in sys.modules:
        if Path(sys.modules[name].__file__ or "") != path:
            raise RequestError(f"{file} and {sys.modules[name].__file__} have the same name: rename one of them.")
        return sys.modules[name]
    if not path.is_file() or path.suffix != ".py" or not path.stem.isidentifier():
        raise RequestError(f"The plugin {file} is no file of Python that could be imported: name one, such as mine.py.")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RequestError(
            f"The plugin {file} cannot be imported ({type(error).__name__}: {error}): correct it, or leave it out."
        ) from error
    return module


@cache
def _entry_points() -> tuple[str, ...]:
    points = (point for group in GROUPS for point in importlib.metadata.entry_points(group=group))
    return tuple(sorted({point.module for point in points}))


def _of_entry_points() -> Iterator[ModuleType]:
    for name in _entry_points():
        try:
            yield importlib.import_module(name)
        except Exception as error:
            raise RequestError(
                f"The plugin {name}, of an installed package, cannot be imported ({type(error).__name__}: {error}): "
                "correct it, or remove the package."
            ) from error
