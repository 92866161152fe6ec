"""The tasks that a bank holds: their adapters, in memory or away, by name."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import tasks as kinds
from ..adapters import file as adapter
from ..adapters.run import Run, settings_of
from ..backbones import Backbone
from ..common.errors import RequestError, WorkError, near_misses
from ..common.settings import Settings
from ..contacts import Contacts
from ..data import Preprocess
from ..engine.answers import Answer, ask
from ..model import Model
from ..tasks.base import Task

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # of a task: a file's, an address's


def check_name(name: str) -> None:
    """RequestError for what is no name of a task."""
    if not NAME.fullmatch(name):
        raise RequestError(
            f"{name!r:.80} is no name of a task: take up to 100 letters, digits, dots, hyphens and underlines, the "
            "first a letter or a digit."
        )


@dataclass(eq=False)
class Entry:
    """One task of a bank. The model may be away, and comes back by its file."""

    name: str
    file: Path
    digest: str
    header: Mapping[str, Any]
    task: Task
    preprocess: Preprocess
    settings: Settings
    ask: Answer
    detached: bool  # its method leaves the backbone alone
    alike: tuple[Any, ...]  # what its places must have in common with others to share a batch
    bytes: int  # of its tensors in memory
    file_bytes: int
    model: Model | None
    asked: int = 0  # pictures
    seconds: float = 0.0  # of what is its own, after a pass that it shares

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.header["classes"])

    @property
    def sees(self) -> tuple[Any, ...]:
        """What tasks that see the same of a picture have in common."""
        return type(self.task).load, self.preprocess, self.settings.sliding


class Shelf:
    """Adapters on one backbone, each by a name; any thread may ask for one, put it there, and take it away.

    alike: what the places of a method must have in common to share a batch, by its contacts. most_bytes: that adapters
    may take in memory, 0 for any; the least used leave it, and come back from their files.
    """

    def __init__(
        self,
        backbone: Backbone,
        alike: Callable[[Contacts], tuple[Any, ...]],
        *,
        device: torch.device,
        dtype: torch.dtype,
        most_bytes: int,
    ) -> None:
        self._backbone, self._alike = backbone, alike
        self._device, self._dtype = device, dtype
        self._most_bytes = most_bytes
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # the least used first
        self._lock = threading.RLock()

    @property
    def names(self) -> tuple[str, ...]:
        """In alphabetical order."""
        with self._lock:
            return tuple(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._entries

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def drop(self, name: str) -> None:
        """Off the shelf."""
        with self._lock:
            self.entry(name)
            del self._entries[name]

    def put(self, name: str, path: str | Path) -> None:
        """A run's folder or an adapter file under a name, in the place of what had it."""
        check_name(name)
        file = Run(path).file.absolute()
        loaded, digest = self._load(file)
        model, preprocess, header = loaded
        settings = replace(settings_of(header), workers=0, batch_size=1)
        task = kinds.find(header["task"])
        entry = Entry(
            name,
            file,
            digest,
            header,
            task,
            preprocess,
            settings,
            task.answer(settings, preprocess),
            not model.method.crosses_backbone,
            self._alike(model.method.contacts),
            sum(t.numel() * t.element_size() for t in model.state().values()),
            file.stat().st_size,
            model,
        )
        with self._lock:
            self._entries[name] = entry
            self._entries.move_to_end(name)
            self._make_room(keep=entry)

    def _load(self, file: Path) -> tuple[adapter.Adapter, str]:
        """The adapter, ready to be asked, and what its file holds, in a word."""
        digest = adapter.digest_of(file)
        found = adapter.load(file, self._backbone)
        for part in (found.model.method, found.model.neck, found.model.head):
            part.to(self._device, self._dtype).eval().requires_grad_(False)
        return found, digest

    def _make_room(self, keep: Entry) -> None:
        """Drops models from memory, the least used first, until the rest is within the limit; never the one."""
        if not self._most_bytes:
            return
        held = sum(entry.bytes for entry in self._entries.values() if entry.model)
        for entry in self._entries.values():
            if held <= self._most_bytes:
                break
            if entry.model and entry is not keep:
                entry.model = None
                held -= entry.bytes

    def model(self, entry: Entry) -> Model:
        """The model of a task, from its file if it is away."""
        with self._lock:
            if self._entries.get(entry.name) is entry:
                self._entries.move_to_end(entry.name)
            if (model := entry.model) is None:
                found, digest = self._load(entry.file)
                if digest != entry.digest:
                    raise WorkError(
                        f"{entry.file} is another file than when task {entry.name!r} was added: replace the task, or "
                        "put the old file back."
                    )
                model = entry.model = found.model
                self._make_room(keep=entry)
            return model

    def entry(self, name: str) -> Entry:
        """By its name; RequestError with the near misses."""
        with self._lock:
            if name in self._entries:
                return self._entries[name]
            some = ", ".join(sorted(self._entries)[:20]) or "none"
            raise RequestError(
                f"The bank has no task {name!r:.120}: there are {some}; name one of these."
                f"{near_misses(name, self._entries)}"
            )

    def table(self) -> list[dict[str, Any]]:
        """What each task costs, in alphabetical order: its method, classes, bytes in memory and on disk, whether it is
        in memory, whether it shares a picture's pass with others or needs its own, how many pictures it was asked about
        and how many milliseconds one took beside the pass."""
        with self._lock:
            entries = sorted(self._entries.values(), key=lambda entry: entry.name)
            return [
                {
                    "name": entry.name,
                    "task": entry.task.name(),
                    "method": entry.header["method"],
                    "classes": len(entry.classes),
                    "bytes": entry.bytes,
                    "file_bytes": entry.file_bytes,
                    "in_memory": entry.model is not None,
                    "shares_pass": entry.detached and entry.ask is ask,
                    "asked": entry.asked,
                    "milliseconds": round(1000 * entry.seconds / entry.asked, 3) if entry.asked else None,
                }
                for entry in entries
            ]
