"""What a visual task is, and how one is found by the name of its file.

Backbone, methods, training and the files of a run know nothing of tasks: all in which one differs from another is here
and in `tasks/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from . import plugins, tasks
from .backbone import Backbone
from .data import Batch, Preprocess
from .features import Activations
from .model import Model
from .settings import Settings

Answer = Callable[[Model, Tensor, Activations | None, list[tuple[int, int]]], Any]


class Loaded(Protocol):
    """The pictures of one split, known to be good."""

    skipped: list[tuple[Path, str]]  # bad pictures that were left out, with the reason
    views: tuple[str, ...]  # of each picture, by name; epochs take turns at them; none: every epoch sees another one

    def __len__(self) -> int: ...
    @property
    def paths(self) -> list[Path]: ...
    def even_batches(self, batch_size: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """All indices once, for evaluation: this process's share."""
        ...

    def batches(self, indices: Sequence[Sequence[int]], *, epoch: int | None = None) -> Iterator[Batch]:
        """For each list of indices, in order, a batch; with an epoch as training sees it then."""
        ...


class Evaluation(Protocol):
    """What a model answered on the pictures of one split, and the numbers that follow from it."""

    def __len__(self) -> int: ...
    @property
    def metric(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def paths(self) -> list[str]: ...
    @property
    def value(self) -> float:
        """The metric, 0..1."""
        ...

    @property
    def interval(self) -> tuple[float, float] | None:
        """The value's 95 % interval, where there is one."""
        ...

    @property
    def numbers(self) -> dict[str, Any]:
        """Every number over the whole split, by name; the `value` is one of them."""
        ...

    @property
    def note(self) -> str:
        """A sentence that helps to judge the value; may be empty."""
        ...

    def lines(self) -> list[str]:
        """The numbers in words."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the pictures, ready for JSON."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What a model says about one picture: rows ready for JSON, a line of text, and, of the dense tasks, a drawing."""

    index: int  # of the picture
    picture: str
    rows: list[dict[str, Any]]
    text: str
    draw: Callable[[], Image.Image] | None = None


class Task:
    """One visual task. A subclass is one file in `tasks/`."""

    metric: ClassVar[str] = ""
    recipe: ClassVar[dict[str, Any]] = {}  # settings of the fit whose default differs from the general one

    @classmethod
    def name(cls) -> str:
        return cls.__module__.rpartition(".")[2]

    def read(self, root: Path, *, seed: int = 0, classes: Sequence[str] | None = None, skip_bad: bool = False) -> Any:
        """The data set in a folder, or a RequestError. classes: those of an adapter that is evaluated on it."""
        raise NotImplementedError

    def head_options(self, settings: Settings) -> dict[str, Any]:
        """What the settings of a fit say about the head."""
        return {}

    def unlabelled(self, paths: Sequence[Path]) -> Any:
        """A split of pictures without truth."""
        raise NotImplementedError

    def preprocess(self, backbone: Backbone, size: tuple[int, int] | None) -> Preprocess:
        """What happens to a picture file before the backbone sees it."""
        raise NotImplementedError

    def load(
        self,
        split: Any,
        preprocess: Preprocess,
        *,
        classes: int,
        settings: Settings,
        training: bool = False,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Loaded:
        """The pictures of a split, checked; as a training split has them, with `training`."""
        raise NotImplementedError

    def answer(self, settings: Settings, preprocess: Preprocess) -> Answer:
        """How a model is asked about a batch that it does not train on."""
        return ask

    def measure(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Any, fabric: Fabric, *, split: str, classes: tuple
    ) -> Evaluation:
        """The predictions of all processes on every picture of a split, as one record; each process gets it."""
        raise NotImplementedError

    def predictions(self, answers: Iterable[tuple[Batch, Any]], pictures: Any, classes: tuple) -> Iterator[Prediction]:
        """What the model says about each picture, one after the other."""
        raise NotImplementedError

    def sections(self, evaluation: Any) -> list[str]:
        """What the run's page shows of the answers, as HTML."""
        raise NotImplementedError


def ask(model: Model, images: Tensor, activations: Activations | None, sizes: list[tuple[int, int]]) -> Any:
    """The head's predictions on images [B, 3, H, W]."""
    return model(images, None, activations, sizes)


def names() -> list[str]:
    """The tasks that exist: the files of `tasks/`."""
    return plugins.names(tasks)


def find(name: str) -> Task:
    """A task by name; RequestError with the near misses if there is no such file."""
    cls: type[Task] = plugins.find(tasks, name, Task, "task")
    return cls()
