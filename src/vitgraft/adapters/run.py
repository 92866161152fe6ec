"""A run's folder, or an adapter file alone: predict, evaluate, describe.

adapter.safetensors     the result: all that is needed beside the backbone
result.json             what was done and what came out; written last
metrics.jsonl           one record per epoch
report.html             a page to look at
settings.json           what was asked for; written first
checkpoint.safetensors  what a killed fit continues from
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from .. import tasks
from ..backbones import Backbone
from ..common.console import Console
from ..common.errors import RequestError, near_misses
from ..common.files import make_folder, read_json
from ..common.settings import ANSWERED, Settings, check_task
from ..data import Batch, LoadedPictures
from ..data.in_memory import as_folder
from ..engine.activations import activation_store
from ..engine.answers import Answer, answers
from ..engine.devices import fabric
from ..measures import Evaluation
from ..measures.accuracy import among
from ..pages import report
from ..tasks.base import Task
from . import file as adapter
from . import hub
from .inputs import inputs, named


class Run:
    """A finished run, or an adapter file alone: ready to predict, to evaluate and to be described.

    path: the folder that `fit` made, an adapter file, or hf://OWNER/NAME on the hub. backbone: a name, a file or a
    loaded Backbone in the place of the one that the adapter names (its fingerprint must agree). evaluation: the answers
    at the end of the fit, if the run comes from one.
    """

    def __init__(
        self, path: str | Path, backbone: str | Backbone | None = None, *, evaluation: Evaluation | None = None
    ) -> None:
        self.path = hub.fetched(str(path)) if str(path).startswith(hub.ADDRESS) else Path(path)
        self.evaluation = evaluation
        self.file = self.path / "adapter.safetensors" if self.path.is_dir() else self.path
        if not self.path.exists():
            raise RequestError(
                f"There is no run {path}: give the folder that `vitgraft fit --out` made, or its adapter file."
            )
        if not self.file.exists():
            begun = (self.path / "settings.json").is_file()
            raise RequestError(
                f"{path} holds a run that is not finished: finish it with the same command and --resume."
                if begun
                else f"{path} holds no run: give the folder that `vitgraft fit --out` made, or its adapter file."
            )
        self._backbone = backbone

    @cached_property
    def result(self) -> dict[str, Any]:
        """What was done and what came out: result.json, or the header of an adapter file that stands alone."""
        written = self.file.with_name("result.json")
        if self.path.is_dir() and written.is_file():
            return read_json(written)
        header = adapter.read(self.file)[1]
        return {**header, **header["metrics"], "adapter_bytes": self.file.stat().st_size}

    @cached_property
    def adapter(self) -> adapter.Adapter:
        """The loaded adapter; the backbone is loaded at the first use."""
        return adapter.load(self.file, self._backbone)

    @property
    def task(self) -> Task:
        return tasks.find(self.adapter.header["task"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.adapter.header["classes"])

    def evaluate(
        self,
        root: Any,
        split: str = "test",
        *,
        shown_only: bool = False,
        skip_bad: bool = False,
        quiet: bool = True,
        **how: Any,
    ) -> Evaluation:
        """The answers on a split of a data set.

        root: a folder, or a data set in memory, as `fit` takes them; one alone is the split.
        shown_only: a classifier answers with one of the classes that the data set shows, not with any that it knows.
        how: settings in the place of the fit's: `sliding`, `mirror`, `batch_size`, `precision`, `device`, `workers`.
        """
        if not isinstance(root, (str, Path)):
            with tempfile.TemporaryDirectory(prefix="vitgraft-") as folder:
                as_folder(root, Path(folder) / "pictures", alone=split)
                written = Path(folder) / "pictures"
                return self.evaluate(written, split, shown_only=shown_only, skip_bad=skip_bad, quiet=quiet, **how)
        settings = self._settings(how)
        found = self.task.read(Path(root), seed=settings.seed, classes=self.classes, skip_bad=skip_bad)
        ask = self.task.answer(settings, self.adapter.preprocess)
        if shown_only:
            ask = among(ask, {label for part in found.splits.values() for label in part.labels})
        with Console(quiet) as console:
            pictures, given, used = self._answers(found.split(split), settings, skip_bad, console, ask)
            return self.task.measure(given, pictures, used, split=split, classes=self.classes)

    def write_page(self, found: Evaluation, path: str | Path, *, data: str, **how: Any) -> None:
        """The page of an evaluation, as a fit writes that of its own; data: the name of what was evaluated, how: the
        settings that were given anew."""
        told = self.result
        fitted = {"fitted_on": told["data"]["root"]} if "data" in told else {}  # an adapter file alone does not know
        make_folder(Path(path).parent)
        about = {"root": data, **fitted, "classes": list(self.classes), "pictures": {found.split: len(found)}}
        result = {**told, "data": about, "protocol": {**told["protocol"], **how}}
        report.write(
            path, result=result, metrics=[], evaluation=found, sections=self.task.sections(found), of=self.path
        )

    def predict(self, pictures: Any, *, skip_bad: bool = False, quiet: bool = True, **how: Any) -> Any:
        """What the model says: a `Prediction` about one picture, a list of them, in their order, about several.

        pictures: a path, a folder, a pattern, an address, bytes, a PIL picture, an array uint8 [H, W, 3] or [H, W], a
        tensor [3, H, W] of uint8 or of floats 0..1, or several of these. skip_bad: leave out what cannot be read as a
        picture, which is an error otherwise. how: settings in the place of the fit's, as of `evaluate`.
        """
        taken = inputs(pictures)
        settings = self._settings({"workers": 0, **how})
        split = self.task.unlabelled(taken.paths)
        with Console(quiet) as console:
            ask = self.task.answer(settings, self.adapter.preprocess)
            loaded, given, _ = self._answers(split, settings, skip_bad, console, ask)
            index = {str(path): k for k, path in enumerate(taken.paths)}
            every = len(index) == len(taken.paths)  # no path comes twice
            found = [
                named(each, taken, index[each.picture] if every else each.index)
                for each in self.task.predictions(given, loaded, self.classes)
            ]
        found.sort(key=lambda each: each.index)
        return found[0] if taken.single and found else found

    @classmethod
    def from_hub(
        cls, repository: str, backbone: str | Backbone | None = None, *, revision: str = "", **how: Any
    ) -> Run:
        """A run that `push_to_hub` published as OWNER/NAME. how: `endpoint`, `token`."""
        at = f"@{revision}" if revision else ""
        return cls(hub.fetched(f"{hub.ADDRESS}{repository}{at}", **how), backbone)

    def push_to_hub(self, repository: str, *, picture: Any = None, private: bool = False, **how: Any) -> str:
        """Publishes the adapter as OWNER/NAME with a model card, on which `picture` is answered; gives the commit's
        address. how: `message`, `endpoint`, `token`. Needs a login (`hf auth login`)."""
        return hub.push(self, repository, picture=picture, private=private, **how)

    def __repr__(self) -> str:
        told = self.result
        number = (
            "not measured" if told.get("value") is None else f"{told['metric']} {told['value']:.2%} on {told['split']}"
        )
        return f"<Run {self.path}: {told.get('task')} with {told.get('method')}, {number}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the head of the run's page."""
        page = self.path / "report.html"
        return report.head(self.result, page if page.is_file() else None)

    def _settings(self, how: dict[str, Any]) -> Settings:
        """The fit's, with those that are given anew."""
        for name in how:
            if name not in ANSWERED:
                raise RequestError(
                    f"{name} cannot be chosen anew when a run answers: what can are {', '.join(ANSWERED)}; leave it "
                    f"out.{near_misses(name, ANSWERED)}"
                )
        check_task(self.task.name(), how)
        return replace(settings_of(self.adapter.header), **how)

    def _answers(
        self, split: Any, settings: Settings, skip_bad: bool, console: Console, ask: Answer
    ) -> tuple[LoadedPictures, Iterator[tuple[Batch, Any]], Fabric]:
        """The pictures of a split, what the model says about them, and where."""
        model, preprocess, _ = self.adapter
        bar = console.bar(f"decoding  {split.name}", "pictures")
        pictures = self.task.load(
            split, preprocess, classes=len(self.classes), settings=settings, skip_bad=skip_bad, progress=bar
        )
        console.skipped(pictures.skipped)
        used = fabric(settings)
        used.setup_module(model.float())  # to the device, in the precision
        store = activation_store(model, pictures, preprocess, settings, used, keep=False)
        given = answers(model, pictures, preprocess, used, ask, batch_size=settings.batch_size, store=store)
        return pictures, given, used


def settings_of(header: dict[str, Any]) -> Settings:
    """The settings of the fit that wrote an adapter of this header, for one device, whichever there is."""
    told = header["protocol"]
    return Settings(
        **{name: told[name] for name in Settings.names() if name in told} | {"devices": 1, "device": "auto"}
    )
