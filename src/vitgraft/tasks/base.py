"""What a visual task is.

Backbone, methods, training and the files of a run know nothing of tasks: all in which one differs from another is here
and in `tasks/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from lightning_fabric import Fabric

from ..backbones import Backbone
from ..common.settings import METHOD, NORMALISATIONS, Settings
from ..data import Batch, LoadedPictures, Preprocess
from ..engine.answers import Answer, ask
from ..measures import Evaluation
from ..measures.prediction import Prediction


class Task:
    """One visual task. A subclass is one file in `tasks/`."""

    metric: ClassVar[str] = ""
    method: ClassVar[str] = METHOD  # of a fit that names none
    recipe: ClassVar[dict[str, Any]] = {}  # settings of the fit whose default differs from the general one

    @classmethod
    def name(cls) -> str:
        return cls.__module__.rpartition(".")[2]

    def read(self, root: Path, *, seed: int = 0, classes: Sequence[str] | None = None, skip_bad: bool = False) -> Any:
        """The data set in a folder, or a RequestError. classes: those of an adapter that is evaluated on it."""
        raise NotImplementedError

    def head_options(self, settings: Settings, found: Any) -> dict[str, Any]:
        """What the settings of a fit and its data set say about the head."""
        return {}

    def unlabelled(self, paths: Sequence[Path]) -> Any:
        """A split of pictures without truth."""
        raise NotImplementedError

    def preprocess(self, backbone: Backbone, size: tuple[int, int] | None) -> Preprocess:
        """What happens to a picture file before the backbone sees it."""
        raise NotImplementedError

    def preprocessing(self, backbone: Backbone, size: tuple[int, int] | None, normalisation: str) -> Preprocess:
        """The same, normalised as the setting of this name says."""
        found, stated = self.preprocess(backbone, size), NORMALISATIONS[normalisation]
        return replace(found, mean=stated[0], std=stated[1]) if stated else found

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
    ) -> LoadedPictures:
        """The pictures of a split, checked; as a training split has them, with `training`."""
        raise NotImplementedError

    def answer(self, settings: Settings, preprocess: Preprocess) -> Answer:
        """How a model is asked about a batch that it does not train on."""
        return ask

    decoded_as: ClassVar[str] = "answers"

    def decoded(self, answer: Any) -> Any:
        """A head's answer about a batch as people read it, by the name `decoded_as`: where that is one tensor."""
        return answer

    def measure(
        self, answers: Iterable[tuple[Batch, Any]], pictures: Any, fabric: Fabric, *, split: str, classes: tuple
    ) -> Evaluation:
        """The predictions of all processes on every picture of a split, as one record; each process gets it."""
        raise NotImplementedError

    def predictions(self, answers: Iterable[tuple[Batch, Any]], pictures: Any, classes: tuple) -> Iterator[Prediction]:
        """What the model says about each picture, one after the other."""
        raise NotImplementedError

    def sections(self, evaluation: Any) -> str:
        """What the run's page shows of the answers, as HTML."""
        raise NotImplementedError
