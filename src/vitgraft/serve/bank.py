"""Many tasks on one frozen backbone: what they share of a picture is computed once.

A pass through the backbone is shared by all tasks whose method leaves it alone. Tasks that touch it have a place each
in a batch, in which the layers that none has touched are one product for all (`contacts.side_by_side`).

An answer is bit for bit the same whether the bank holds one task or fifty, and whatever else is asked at the time:
every product that it goes through has the same shape always. Batches of a pass are full, filled up where pictures are
missing; what is one task's own sees one picture.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters import file as adapter
from ..adapters.inputs import Inputs, inputs, named
from ..adapters.run import Run
from ..backbones import Backbone
from ..common.errors import RequestError, WorkError
from ..common.settings import BACKBONE_DTYPES, Settings
from ..data import BadPicture, Batch, LoadedPictures, open_picture
from ..engine.answers import ask
from ..engine.devices import kind_of, resolved_precision
from ..engine.workers import Workers
from ..features import Activations
from ..measures.prediction import Prediction
from ..model import Model
from .passes import Passes, Wanted
from .shelf import Entry, Shelf

DECODERS = 4  # threads, of one request
ON_A_GPU = 16  # pictures of one pass; a processor is as quick with one


class Question(NamedTuple):
    """One picture and one task. Tasks that see the same of a picture have one batch of it."""

    entry: Entry
    pictures: LoadedPictures  # that picture alone
    batch: Batch

    def predicted(self, answer: Any) -> Prediction:
        """What the head's answer says."""
        return next(self.entry.task.predictions([(self.batch, answer)], self.pictures, self.entry.classes))


class Bank:
    """Adapters of many tasks on one backbone, each by a name; they may be added, replaced and dropped while it answers.

    backbone: a name, a file or a loaded Backbone; the one that the first adapter names, unless given. adapters: name ->
    a run's folder, an adapter file, or hf://OWNER/NAME. batch: pictures of one pass, 0 for 16 on a GPU and one
    elsewhere, where more are no quicker. wait: seconds for which a pass that is not full waits for more questions.
    memory: GiB that adapters may take, 0 for any, beside those that are being asked; the least used leave it and come
    back from their files.
    precision, device: as in a fit. backbone_dtype: as the adapters were trained on, unless given.

    Answers are the same to the bit whatever else the bank holds and is asked, on one machine with one batch.
    """

    def __init__(
        self,
        backbone: str | Path | Backbone | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        *,
        batch: int = 0,
        wait: float = 0.0,
        memory: float = 0.0,
        precision: str = "auto",
        device: str = "auto",
        backbone_dtype: str = "",
    ) -> None:
        if batch < 0 or memory < 0 or wait < 0:
            raise RequestError(
                f"A bank was asked for with batch {batch}, wait {wait} and memory {memory}, but none can be below 0: "
                "give 0 or more."
            )
        settings = Settings(precision=precision, device=device)
        self._kind = kind_of(settings.device)
        self._device = torch.device(settings.device if settings.device != "auto" else self._kind)
        self.precision = resolved_precision(settings.precision, settings.device)
        self.batch = batch or (ON_A_GPU if self._kind == "cuda" else 1)
        self.wait = wait
        self._waiting: list[tuple[list[Question], Future[list[Any]]]] = []
        self._more = threading.Condition()
        self._closed = False
        # One thread computes, so that sums are cut among its threads in one way always; small ones are not cut.
        self._workers = Workers()
        self._thread = threading.Thread(target=self._work, name="vitgraft-bank", daemon=True)
        given = dict(adapters or {})
        if backbone is None or not isinstance(backbone, Backbone):
            backbone = self._loaded(backbone, given, backbone_dtype)
        self.backbone: Backbone = backbone.to(self._device, self._dtype)
        self._passes = Passes(self.backbone, self.batch)
        self._shelf = Shelf(
            self.backbone,
            self._passes.alike,
            device=self._device,
            dtype=self._dtype,
            most_bytes=int(memory * 2**30),
        )
        for name, path in given.items():
            self.add(name, path)
        self._thread.start()

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "64" else torch.float32

    @staticmethod
    def _loaded(backbone: str | Path | None, adapters: Mapping[str, str | Path], dtype: str) -> Backbone:
        header: dict[str, Any] = {}
        if adapters:
            header = adapter.read(Run(next(iter(adapters.values()))).file)[1]
        elif backbone is None:
            raise RequestError("A bank needs a backbone, but neither one nor an adapter that names one came: give one.")
        kept = dtype or header.get("protocol", {}).get("backbone_dtype", BACKBONE_DTYPES[0])
        return Backbone.load(str(backbone or header["backbone"]["name"]), dtype=kept)

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Answers what was asked, and no more."""
        with self._more:
            self._closed = True
            self._more.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._workers.close()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of all tasks, in alphabetical order."""
        return self._shelf.names

    def __contains__(self, name: str) -> bool:
        return name in self._shelf

    def __len__(self) -> int:
        return len(self._shelf)

    def add(self, name: str, path: str | Path) -> None:
        """A task more: a run's folder or an adapter file under a new name."""
        if name in self:
            raise RequestError(f"The bank has a task {name!r} already: choose another name, or replace it.")
        self._shelf.put(name, path)

    def replace(self, name: str, path: str | Path) -> None:
        """Another adapter in the place of a task's; what was asked before is answered by the old one."""
        self._shelf.entry(name)
        self._shelf.put(name, path)

    def drop(self, name: str) -> None:
        """A task less; what was asked before is answered."""
        self._shelf.drop(name)

    def predict(self, pictures: Any, tasks: Any = None, *, skip_bad: bool = False) -> Any:
        """What tasks say of pictures, given in any form that `Run.predict` takes.

        tasks: a name: this one, of every picture. None, or a set of names: all of these, of every picture. A list, with
        one picture: these names; with several: an entry for each picture, a name or a list of names.
        A picture that is asked one task by its name has a `Prediction`; one that is asked several a dict of them, by
        the tasks' names. Several pictures have a list of these; skip_bad leaves out those that cannot be read.
        """
        taken = inputs(pictures)
        asked = self._asked(tasks, len(taken.paths), taken.single)
        wanted = [[asked] if isinstance(asked, str) else list(asked) for asked in asked]
        found = self.ask(taken, wanted, skip_bad=skip_bad)
        told: list[Any] = [
            each[words] if isinstance(words, str) else each
            for words, each in zip(asked, found, strict=True)
            if each is not None
        ]
        return told[0] if taken.single and told else told

    def _asked(self, tasks: Any, n: int, single: bool) -> list[Any]:
        """For each picture a name or a list of names."""
        if tasks is None or isinstance(tasks, (set, frozenset)):
            names = sorted(self.tasks if tasks is None else tasks)
            return [names] * n
        if isinstance(tasks, str):
            return [tasks] * n
        tasks = list(tasks)
        if single:
            return [tasks]
        if len(tasks) != n:
            raise RequestError(
                f"{n} pictures came with {len(tasks)} entries of tasks: give one entry for each picture, a name or a "
                "list of names; or one name, or a set of names, for all of them."
            )
        return tasks

    def ask(
        self, taken: Inputs, tasks: Sequence[Iterable[str]], *, skip_bad: bool = False
    ) -> list[dict[str, Prediction] | None]:
        """For each picture the predictions of its tasks by their names; None for a bad one that is left out."""
        entries = [[self._shelf.entry(name) for name in names] for names in tasks]
        if not any(entries):
            raise RequestError("Tasks were to be asked, but none was named: name one or more.")
        given = [*zip(taken.paths, taken.names, entries, [skip_bad] * len(entries), strict=True)]
        if len(given) == 1:
            decoded = [self._decoded(*given[0])]
        else:
            with ThreadPoolExecutor(min(DECODERS, len(given)), "vitgraft-decode") as threads:
                decoded = list(threads.map(lambda each: self._decoded(*each), given))
        answers = iter(self._answered([question for of in decoded for question in of or ()]))
        return [
            None if of is None else {q.entry.name: named(q.predicted(next(answers)), taken, k) for q in of}
            for k, of in enumerate(decoded)
        ]

    def _decoded(self, path: Path, name: str, entries: Sequence[Entry], skip_bad: bool) -> list[Question] | None:
        """The questions about one picture, which is decoded once for all tasks that see the same of it."""
        seen: dict[Any, tuple[LoadedPictures, Batch]] = {}
        for entry in entries:
            if (key := entry.sees) in seen:
                continue
            task = entry.task
            try:
                pictures = task.load(
                    task.unlabelled([path]), entry.preprocess, classes=len(entry.classes), settings=entry.settings
                )
                seen[key] = pictures, next(iter(pictures.batches([[0]])))
            except WorkError as error:
                if skip_bad:
                    return None
                try:
                    open_picture(path)
                except BadPicture as bad:
                    raise BadPicture(Path(name), bad.reason) from bad
                raise error
        return [Question(entry, *seen[entry.sees]) for entry in entries]

    def _answered(self, questions: list[Question]) -> list[Any]:
        """What the heads say to each."""
        done: Future[list[Any]] = Future()
        with self._more:
            if self._closed:
                raise RequestError("The bank is closed: make another one.")
            self._waiting.append((questions, done))
            self._more.notify_all()
        return done.result()

    def _work(self) -> None:
        """Takes what waits, until the bank is closed and nothing does."""
        while jobs := self._next():
            jobs = [job for job in jobs if job[1].set_running_or_notify_cancel()]
            try:
                answers = iter(self._computed([question for of, _ in jobs for question in of]))
                for of, done in jobs:
                    done.set_result([next(answers) for _ in of])
            except Exception as error:
                if len(jobs) == 1:
                    jobs[0][1].set_exception(error)
                    continue
                for of, done in jobs:  # the fault of one is no other's
                    try:
                        done.set_result(self._computed(of))
                    except Exception as own:
                        done.set_exception(own)

    def _next(self) -> list[tuple[list[Question], Future[list[Any]]]]:
        """What is computed together: one request, or as many as fill a batch; nothing at the end."""

        def full() -> bool:
            return self._closed or sum(len(of) for of, _ in self._waiting) >= self.batch

        with self._more:
            self._more.wait_for(lambda: self._waiting or self._closed)
            if self.wait and self._waiting:
                self._more.wait_for(full, self.wait)
            taken = self._waiting[:1]
            for job in self._waiting[1:]:
                if sum(len(of) for of, _ in taken) + len(job[0]) > self.batch:
                    break
                taken.append(job)
            del self._waiting[: len(taken)]
            return taken

    def _computed(self, questions: Sequence[Question]) -> list[Any]:
        """What the heads say to each, in their order."""
        answers: list[Any] = [None] * len(questions)
        with self._numbers():
            images: dict[int, tuple[Batch, Tensor]] = {}  # of each batch
            for q in questions:
                if id(q.batch) not in images:
                    batch = q.batch.to(self._device)
                    images[id(q.batch)] = batch, q.entry.preprocess.normalise(batch.pixels).to(self._dtype)
            models = [self._shelf.model(q.entry) for q in questions]
            for k, q in enumerate(questions):
                if q.entry.ask is not ask:  # of windows, of mirror images: by passes of its own
                    began = time.perf_counter()
                    answers[k] = q.entry.ask(models[k], images[id(q.batch)][1], None, q.batch.sizes)
                    self._count(q.entry, began)
            wanted = (
                Wanted(k, id(q.batch), images[id(q.batch)][1], models[k], q.entry.detached, q.entry.alike)
                for k, q in enumerate(questions)
                if q.entry.ask is ask
            )
            for places in self._passes.of(wanted):
                for place, found in self._passes.take(places):
                    for k in place.questions:
                        q, model = questions[k], models[k]
                        own = self._passes.own(found, model, place)
                        work = partial(self._finished, q, model, images[id(q.batch)][1], own)
                        answers[k] = self._workers.begun(work) if self._small(model) else work()
        return [answer.result() if isinstance(answer, Future) else answer for answer in answers]

    def _small(self, model: Model) -> bool:
        """Whether what is the task's own is too little for more threads than one. Maps are enough for all."""
        return self._kind == "cpu" and not model.head.levels

    def _finished(self, q: Question, model: Model, images: Tensor, found: Activations) -> Any:
        """What a head says, from what a pass gave."""
        began = time.perf_counter()
        with self._numbers():
            answer = model(images, None, found, q.batch.sizes)
        self._count(q.entry, began)
        return answer

    @contextmanager
    def _numbers(self) -> Iterator[None]:
        """The bank's precision, without gradients."""
        bf16 = torch.autocast(self._kind, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.no_grad(), bf16:
            yield

    @staticmethod
    def _count(entry: Entry, began: float) -> None:
        entry.asked += 1
        entry.seconds += time.perf_counter() - began

    @property
    def passes(self) -> Counter[int]:
        """How many passes there were, by the number of pictures in them."""
        return self._passes.taken

    def header(self, name: str) -> Mapping[str, Any]:
        """What a task's adapter says of itself."""
        return self._shelf.entry(name).header

    def table(self) -> list[dict[str, Any]]:
        """As `Shelf.table` has it."""
        return self._shelf.table()

    def __repr__(self) -> str:
        return f"<Bank of {len(self)} tasks on {self.backbone.name}>"
