"""Protocols: how a number comes about, each with its source and with what flatters it.

A protocol is a file of `protocols/`. `strict` is ours; the others repeat what the papers' released code does, and list
where vitgraft's own loop differs from that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..common.errors import RequestError, near_misses
from ..common.settings import Settings
from . import shipped
from .suites import Suite
from .suites import find as find_suite

EPOCHS = ("last", "best on test", "unknown")
_KINDS = {
    **dict.fromkeys(("name", "title", "source"), str),
    **dict.fromkeys(("suites", "flags", "deviations"), list),
    **dict.fromkeys(("settings", "tasks", "choice", "methods"), dict),
    "seeds": int,
}


@dataclass(frozen=True)
class Recipe:
    """What a protocol says of one method: settings of the fit and arguments of the method, for all tasks or one."""

    options: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """How to fit and what to report.

    Args:
        suites: those that its values per task are for; none: any suite.
        backbone: the published weights, by timm's name; None: any, or not in timm.
        epoch: which epoch's number the source reports, one of EPOCHS.
        seeds: how many, at the least.
        settings: fields of `vitgraft.common.settings.Settings`, for every method.
        tasks: {task: the same, for every method on this task}.
        choice: the same, in their place while hyper-parameters are chosen.
        methods: {method: Recipe}.
        flags: what flatters the source's numbers; printed beside them.
        deviations: where a fit of vitgraft's differs from the source.
    """

    name: str
    title: str
    source: str
    suites: tuple[str, ...]
    backbone: str | None
    epoch: str
    seeds: int
    settings: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    choice: Mapping[str, Any]
    methods: Mapping[str, Recipe]
    flags: tuple[str, ...]
    deviations: tuple[str, ...]

    def options(self, method: str, task: str, *, choosing: bool = False) -> dict[str, Any]:
        """What `fit` is given for a method on a task: the settings, over these the task's, over these the method's,
        over these the method's on the task.

        task: by its name in the suite. choosing: on the splits where hyper-parameters are chosen. Raises RequestError
        where the protocol has values per task for this method, but none for this task.
        """
        recipe = self.methods.get(method, Recipe())
        if recipe.tasks and task not in recipe.tasks:
            raise RequestError(
                f"The protocol {self.name} has values of {method} for {', '.join(recipe.tasks)}, but none for "
                f"{task!r}: choose one of these tasks, or the protocol strict.{near_misses(task, recipe.tasks)}"
            )
        chosen = {**self.settings, **self.tasks.get(task, {}), **recipe.options, **recipe.tasks.get(task, {})}
        return {**chosen, **self.choice} if choosing else chosen

    def check_suite(self, suite: Suite) -> None:
        """RequestError where the protocol is for other suites than this one."""
        if self.suites and suite.name not in self.suites:
            raise RequestError(
                f"The protocol {self.name} is for {', '.join(self.suites)}, but the suite is {suite.name}: take the "
                "protocol strict, which is for any."
            )


def names() -> list[str]:
    """The protocols that exist: the files of `protocols/`."""
    return shipped.names("protocols")


def find(name: str) -> Protocol:
    """A protocol by name; RequestError with the near misses if there is none."""
    return load(shipped.path("protocols", name, names(), "protocol"))


def load(file: str | os.PathLike[str]) -> Protocol:
    """A protocol from a file; RequestError that says what is wrong with it."""
    file = Path(file)
    found = shipped.read(file, "protocol")
    shipped.check_fields(f"{file}", found, [f.name for f in fields(Protocol)])
    shipped.check_kinds(f"{file}", found, _KINDS)
    if found["epoch"] not in EPOCHS:
        raise RequestError(
            f"The epoch of {file} is {found['epoch']!r}, but there is {', '.join(EPOCHS)}: write one of these."
            f"{near_misses(str(found['epoch']), EPOCHS)}"
        )
    parts = {part: found[part] for part in ("settings", "choice")}
    parts |= {f"tasks, {task},": own for task, own in found["tasks"].items()}
    for part, own in parts.items():
        shipped.check_fields(f"The part {part} of {file}", own, (), Settings.names())
        Settings(**{**found["settings"], **own})  # refuses a value that no fit would take
    methods = {}
    for name, recipe in found["methods"].items():
        shipped.check_fields(f"The method {name} of {file}", recipe, (), ("options", "tasks"))
        shipped.check_kinds(f"The method {name} of {file}", recipe, {"options": dict, "tasks": dict})
        methods[name] = Recipe(**recipe)
    protocol = Protocol(
        **{**found, "methods": methods, **{n: tuple(found[n]) for n in ("suites", "flags", "deviations")}}
    )
    _check_tasks(file, protocol)
    return protocol


def _check_tasks(file: Path, protocol: Protocol) -> None:
    """Values per task are for tasks of the protocol's suites."""
    known = {task.name for name in protocol.suites for task in find_suite(name).tasks}
    named = {*protocol.tasks, *(task for recipe in protocol.methods.values() for task in recipe.tasks)}
    if extra := sorted(named - known):
        raise RequestError(
            f"{file} has values for the task {extra[0]!r}, but its suites ({', '.join(protocol.suites) or 'none'}) "
            f"have no such task: rename it as the suite does, or remove it.{near_misses(extra[0], known)}"
        )
