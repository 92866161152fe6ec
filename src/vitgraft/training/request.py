"""What is asked of a fit, settled: every option has its value before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import heads, methods, tasks
from ..backbones import Backbone
from ..common import recipes
from ..common.errors import RequestError, near_misses
from ..common.settings import BACKBONE, Settings, check_task
from ..data.recognise import recognise
from ..tasks.base import Task
from .start import Start


@dataclass(frozen=True)
class Request:
    """A fit that is asked for: what was given, what follows from the data and from the run to start from, defaults."""

    root: Path
    task: Task
    method: str
    arguments: dict[str, Any]  # of the method
    head: str
    head_options: dict[str, Any]  # those given; the settings and the data may add some
    backbone: str | Backbone
    settings: Settings
    start: Start | None = None
    recipe: str | None = None

    def told(self) -> dict[str, Any]:
        """The options of `fit` that ask for this, by name: what `--config` reads."""
        return {
            "data": str(self.root.resolve()),
            "task": self.task.name(),
            "method": self.method,
            "backbone": self.backbone if isinstance(self.backbone, str) else self.backbone.name,
            **({"start": str(self.start.path.resolve())} if self.start else {}),
            "head": self.head,
            "head_options": self.head_options,
            **asdict(self.settings),
            **self.arguments,
        }


def settle(
    root: Path,
    *,
    method: str | None = None,
    backbone: str | Backbone | None = None,
    start: str | Path | None = None,
    task: str | None = None,
    recipe: str | None = None,
    head: str | None = None,
    head_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Request:
    """The arguments of `fit`, as there, with what was left out; RequestError for what cannot be meant."""
    begun = None
    if start is not None:
        begun = Start(start)
        begun.check(task=task, method=method, head=head)
        if options.get("head_start", "random") != "random":
            raise RequestError(
                f"A fit that starts from {start} has that run's head, but head_start {options['head_start']} was asked "
                "for: leave one of the two out."
            )
        task, method, head, backbone = begun.task, method or begun.method, begun.head, backbone or begun.backbone
        head_options, options = {**begun.head_options, **(head_options or {})}, {**begun.options, **options}
    kind = tasks.find(task or recognise(root))
    if recipe is not None:
        chosen = recipes.find(recipe, kind.name())
        if method not in (None, chosen.method):
            raise RequestError(
                f"The recipe {recipe} is one of the method {chosen.method}, but {method} was asked for as well"
                f"{' by the run to start from' if begun else ''}: leave one of the two out."
            )
        method, options = chosen.method, {**chosen.options, **options}
    method, head = method or kind.method, head or heads.names(kind.name())[0]
    settings, arguments = sort_options(kind, method, head, options)
    return Request(
        root, kind, method, arguments, head, dict(head_options or {}), backbone or BACKBONE, settings, begun, recipe
    )


def sort_options(task: Task, method: str, head: str, options: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Options into settings of the fit and arguments of the method; what belongs to neither is a RequestError."""
    cls, answers = methods.find(method), heads.find(task.name(), head)
    check_task(task.name(), options)
    given = {name: value for name, value in options.items() if name in Settings.names()}
    arguments = {name: value for name, value in options.items() if name not in given}
    unknown = [name for name in arguments if name not in cls.defaults()]
    elsewhere = unknown and any(unknown[0] in methods.find(other).defaults() for other in methods.names())
    if unknown and not elsewhere and (near := near_misses(unknown[0], Settings.names())):
        raise RequestError(f"There is no option {unknown[0]!r}: see `vitgraft fit --help`.{near}")
    made = methods.create(method, dense=answers.levels > 0, **arguments)
    recipe = {**made.recipe, **task.recipe, **getattr(answers, "recipe", {})}
    if rates := [of["lr"] for of in (made.recipe, task.recipe) if "lr" in of]:
        recipe["lr"] = min(rates)  # full fine-tuning wants less than any task does, a probe of one layer bears more
    return Settings(**{**recipe, **given}), made.arguments()
