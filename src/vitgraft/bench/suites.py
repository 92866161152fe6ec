"""Suites: which tasks are measured together, where their folders are, and how their values become one number.

A suite is a file of `suites/`; `local` is made from a folder of data sets.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..common.errors import RequestError, near_misses
from . import shipped

if TYPE_CHECKING:
    from ..data import DataSet

LOCAL = "local"


@dataclass(frozen=True)
class TaskOf:
    """One task of a suite.

    Args:
        name: of its folder, as the suite's source names it.
        aliases: other names of that folder, in other code bases.
        classes: how many there are.
        group: whose mean is taken first in the mean of groups.
        metric: what is reported, the higher the better.
        title: as tables print it.
        sizes: pictures of each split; a split that is not named here may have any number.
        trained_on: another task of the suite whose model is tested on this one; None: this task's own.
    """

    name: str
    aliases: tuple[str, ...]
    classes: int
    group: str
    metric: str
    title: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
    trained_on: str | None = None


@dataclass(frozen=True)
class Suite:
    """Tasks in the order of a published row, with both ways to average over them."""

    name: str
    title: str
    source: str
    tasks: tuple[TaskOf, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, in the order of their first tasks."""
        return tuple(dict.fromkeys(task.group for task in self.tasks))

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def task(self, name: str) -> TaskOf:
        """The task of a name or an alias; RequestError with the near misses if there is none."""
        for task in self.tasks:
            if name == task.name or name in task.aliases:
                return task
        raise RequestError(
            f"The suite {self.name} has no task {name!r}: it has {', '.join(self.task_names)}; choose from these."
            f"{near_misses(name, self.task_names)}"
        )

    def mean(self, values: Mapping[str, float]) -> float:
        """The plain mean over all tasks ("mean of 19"); RequestError where a task has no value."""
        return fmean(self._complete(values).values())

    def mean_of_groups(self, values: Mapping[str, float]) -> float:
        """The mean of the groups' means; RequestError where a task has no value."""
        return fmean(self.group_means(values).values())

    def group_means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each group; RequestError where a task has no value."""
        known = self._complete(values)
        return {group: fmean(known[t.name] for t in self.tasks if t.group == group) for group in self.groups}

    def _complete(self, values: Mapping[str, float]) -> dict[str, float]:
        missing = [n for n in self.task_names if values.get(n) is None or not math.isfinite(values[n])]
        if missing:
            raise RequestError(
                f"An average of {self.name} is over {len(self.tasks)} tasks, but {len(missing)} have no value "
                f"({', '.join(missing)}): measure these, or compare task by task."
            )
        return {name: values[name] for name in self.task_names}


def names() -> list[str]:
    """The suites that exist: the files of `suites/`, and `local`."""
    return sorted([*shipped.names("suites"), LOCAL])


def find(name: str, root: str | os.PathLike[str] | None = None) -> Suite:
    """A suite by name; RequestError with the near misses if there is none. root: the folder of data sets of `local`."""
    file = shipped.path("suites", name, names(), "suite")
    if name == LOCAL:
        if root is None:
            raise RequestError("The suite local is made from a folder of data sets, but none came: name the folder.")
        return local(root)
    return load(file)


def load(file: str | os.PathLike[str]) -> Suite:
    """A suite from a file; RequestError that says what is wrong with it."""
    return made_of(shipped.read(Path(file), "suite"), f"{file}")


def made_of(found: Any, file: str) -> Suite:
    """A suite from what a file says of it (its fields, tasks as objects); RequestError that says what is wrong."""
    shipped.check_fields(file, found, [f.name for f in fields(Suite)])
    shipped.check_kinds(file, found, {"name": str, "tasks": list})
    needed = ("name", "aliases", "classes", "group", "metric")
    tasks = []
    for number, task in enumerate(found["tasks"], 1):
        where = f"Task {number} of {file}"
        shipped.check_fields(where, task, needed, ("title", "sizes", "trained_on"))
        shipped.check_kinds(where, task, {"name": str, "aliases": list, "classes": int, "group": str, "sizes": dict})
        tasks.append(TaskOf(**{**task, "aliases": tuple(task["aliases"])}))
    suite = Suite(found["name"], found["title"], found["source"], tuple(tasks))
    known = [name for task in suite.tasks for name in (task.name, *task.aliases)]
    if repeated := sorted({name for name in known if known.count(name) > 1}):
        raise RequestError(f"{file} has the task or alias {repeated[0]!r} twice: name each task differently.")
    if not tasks:
        raise RequestError(f"{file} was to be read as a suite, but has no task: add one.")
    return suite


def local(root: str | os.PathLike[str], groups: Mapping[str, str] | None = None) -> Suite:
    """The suite of a folder of data sets: each sub-folder in a classification layout (`data.read`) is a task.

    groups: {task: group}; tasks that it does not name, or all, are in one group "local". Raises RequestError where
    there is no such sub-folder, where one is broken, and where `root` is itself a data set.
    """
    from ..data.dataset import check_data_folder, read
    from ..data.folders import folders_in, some
    from ..data.layouts import LISTS

    root = Path(root).expanduser()
    check_data_folder(root)
    inner = folders_in(root)
    splits = [folder.name for folder in inner if folder.name in ("train", "val", "valid", "validation", "test")]
    if splits or any((root / name).is_file() for name in LISTS):
        raise RequestError(
            f"A folder of data sets was expected at {root}, but it is one data set itself: name the folder that "
            "holds it."
        )
    tasks = []
    for folder in inner:
        if _to_classify(folder):
            group = (groups or {}).get(folder.name, LOCAL)
            tasks.append(TaskOf(folder.name, (), len(read(folder).classes), group, "top-1 accuracy", folder.name))
    if not tasks:
        raise RequestError(
            f"Data sets to classify were expected in {root}, but it holds "
            f"{some(f.name for f in inner) if inner else 'no folder'}: put each data set into a folder of its own "
            "there."
        )
    suite = Suite(LOCAL, f"data sets of {root.name}", "a folder of data sets", tuple(tasks))
    for name in groups or {}:
        suite.task(name)  # a group of a task that is not there is a slip
    return suite


def _to_classify(folder: Path) -> bool:
    """Whether a folder holds lists or class folders, and is not arranged for a dense task."""
    from ..data.folders import folders_in
    from ..data.layouts import LISTS
    from ..data.recognise import recognise

    if not any((folder / name).is_file() for name in LISTS) and not folders_in(folder):
        return False
    try:
        return recognise(folder) == "classify"
    except RequestError:  # it fits two dense tasks
        return False


def locate(suite: Suite, root: str | os.PathLike[str], tasks: Sequence[str] | None = None) -> dict[str, Path]:
    """The folder of each task in `root`, under its name or an alias; {task name: folder} in the suite's order.

    tasks: only these, by name or alias. Raises RequestError where a task has no folder, or two different ones.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise RequestError(
            f"The data of {suite.name} were expected at {root}, but that is no folder: correct the path."
        )
    chosen = {suite.task(name).name for name in tasks} if tasks is not None else set(suite.task_names)
    found = {task.name: _folders_of(task, root) for task in suite.tasks if task.name in chosen}
    if missing := [name for name, there in found.items() if not there]:
        present = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
        raise RequestError(
            f"{suite.name} was expected in {root}, but {len(missing)} of its {len(found)} tasks have no folder there "
            f"({', '.join(_with_aliases(suite.task(name)) for name in missing)}): add them, or choose among the other "
            f"tasks.{near_misses(missing[0], set(present) - _used(found))}"
        )
    for name, there in found.items():
        if len(there) > 1:
            raise RequestError(
                f"The task {name} of {suite.name} was to be found in {root}, but {' and '.join(f.name for f in there)} "
                "both mean it: keep one."
            )
    return {name: there[0] for name, there in found.items()}


def _folders_of(task: TaskOf, root: Path) -> list[Path]:
    """The folders that a task's names lead to, each once, however many links there are to it."""
    there = [root / name for name in (task.name, *task.aliases) if (root / name).is_dir()]
    return list({folder.resolve(): folder for folder in reversed(there)}.values())


def _used(found: Mapping[str, Collection[Path]]) -> set[str]:
    return {folder.name for there in found.values() for folder in there}


def _with_aliases(task: TaskOf) -> str:
    return f"{task.name} (or {', '.join(task.aliases)})" if task.aliases else task.name


def read(task: TaskOf, folder: str | os.PathLike[str], classes: Sequence[str] | None = None) -> DataSet:
    """The data set of a task, held against what the suite says of it: its number of classes, its lists' lengths.

    classes: of the model that is tested, where the task is `trained_on` another; its pictures show some of them.
    Raises RequestError where a list names a picture that is not there or a label that is out of range (with file and
    line), and where the number of classes or of a split's pictures is another.
    """
    from ..data.dataset import read as read_folder

    folder = Path(folder)
    if task.trained_on and classes is None:
        raise RequestError(
            f"{task.name} is only tested, with the model of {task.trained_on}, but no classes came: give that model's."
        )
    found = read_folder(folder, classes=classes)
    seen = {label for split in found.splits.values() for label in split.labels}
    count = len(seen if classes is not None else found.classes)
    names = [str(label) for label in range(task.classes)]
    if classes is None and count > task.classes and list(found.classes[: task.classes]) == names:
        read_folder(folder, classes=names)  # says in which line of which list the label is
    if count != task.classes:
        raise RequestError(
            f"{folder} shows {count} classes, but {task.name} has {task.classes}: take the whole data set and the "
            "suite's own labels."
        )
    _check_sizes(task, folder, {name: len(split) for name, split in found.splits.items()})
    return found


def _check_sizes(task: TaskOf, folder: Path, counts: Mapping[str, int]) -> None:
    for split, size in task.sizes.items():
        if split not in counts:
            raise RequestError(
                f"{folder} has the splits {', '.join(counts)}, but {task.name} has {', '.join(task.sizes)}: add the "
                f"list of {split}."
            )
        if counts[split] != size:
            raise RequestError(
                f"The split {split} of {folder} has {counts[split]} pictures, but that of {task.name} has {size}: take "
                "the suite's own lists."
            )
