"""What a server holds on disk: a bank's file, and the folder of what was uploaded since.

    backbone: vit_base_patch16_224   # the one that the adapters name, unless given
    tasks:
      birds: runs/birds              # a run's folder or an adapter file, seen from this file
      cars: runs/cars/adapter.safetensors
    batch: 1                         # these are options of `Bank`
    wait: 0.005
    memory: 2
    folder: uploads                  # where uploaded adapters are kept; FILE.tasks unless given

The folder holds adapters by their content, and tasks.json, which says who is which: name -> file, or null for a task
that was dropped. Both are written whole or not at all, so a server that is killed starts with what it had answered for.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ..adapters.hub import ADDRESS
from ..adapters.inputs import inputs
from ..common.errors import RequestError, near_misses
from ..common.files import make_folder, write_bytes, write_json
from ..measures.prediction import Prediction
from .bank import Bank

Told = dict[str, Any]  # what a task says of a picture: text, rows, perhaps a drawing

OPTIONS = ("backbone", "tasks", "batch", "wait", "memory", "precision", "device", "backbone_dtype", "folder")
STATE = "tasks.json"
KEPT = 600  # seconds for which the file of a task that is no more stays: questions about it may be under way


class Stored:
    """The bank of a file, and a place for adapters that are uploaded to it."""

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        told = _read(self.file)
        self.folder = Path(self.file.parent, told.pop("folder", None) or f"{self.file.stem}.tasks").absolute()
        make_folder(self.folder)
        self._state = self._read_state()
        given = {name: self._seen(path) for name, path in (told.pop("tasks", None) or {}).items()}
        for name, kept in self._state.items():
            given.pop(name, None)
            if kept is not None:
                given[name] = self.folder / kept
        if isinstance(backbone := told.pop("backbone", None), str) and Path(self.file.parent, backbone).exists():
            backbone = str(Path(self.file.parent, backbone).absolute())
        try:
            self.bank = self.made(backbone, given, told)
        except TypeError as error:
            raise RequestError(f"{self.file} has an option of another kind than it takes ({error}).") from error
        self._tidy()

    def made(self, backbone: Any, adapters: dict[str, str | Path], options: dict[str, Any]) -> Any:
        """What holds the tasks."""
        return Bank(backbone, adapters, **options)

    def answer(self, pictures: Sequence[bytes], names: Sequence[str], tasks: Sequence[str], draw: bool) -> list[Told]:
        """What tasks say of each picture, by their names, ready for JSON; in the thread that asks."""
        return asked(self.bank, pictures, names, tasks, draw)

    def close(self) -> None:
        """Answers what was asked, and no more."""
        self.bank.close()

    def _seen(self, path: str) -> str | Path:
        """A run as the file names it, from the file's folder; or one on the hub."""
        return path if path.startswith(ADDRESS) else Path(self.file.parent, path)

    def put(self, name: str, content: bytes) -> bool:
        """An adapter under a name, new or in the place of another; True if it is new. RequestError for one that cannot
        be used, and nothing is changed."""
        kept = f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
        path = self.folder / kept
        there = path.exists()
        if not there:
            write_bytes(path, content)
        new = name not in self.bank
        try:
            (self.bank.add if new else self.bank.replace)(name, path)
        except BaseException:
            if not there and kept not in self._state.values():
                path.unlink(missing_ok=True)
            raise
        self._remember({**self._state, name: kept})
        return new

    def drop(self, name: str) -> None:
        """A task less, for good."""
        self.bank.drop(name)
        self._remember({**self._state, name: None})

    def _remember(self, state: dict[str, str | None]) -> None:
        write_json(self.folder / STATE, state)
        self._state = state
        self._tidy(KEPT)

    def _read_state(self) -> dict[str, str | None]:
        path = self.folder / STATE
        if not path.exists():
            return {}
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            if not all(kept is None or Path(kept).name == kept for kept in state.values()):
                raise ValueError("a file lies elsewhere")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RequestError(f"{path} cannot be read ({error}): put an intact copy back, or remove it.") from error
        return state

    def _tidy(self, least: float = 0) -> None:
        """Removes adapters that no task has had for so many seconds."""
        for path in self.folder.glob("*.safetensors"):
            if path.name not in self._state.values() and time.time() - path.stat().st_mtime >= least:
                path.unlink(missing_ok=True)


def asked(bank: Bank, pictures: Sequence[bytes], names: Sequence[str], tasks: Sequence[str], draw: bool) -> list[Told]:
    """What tasks of a bank say of each picture, of these names, ready for JSON."""
    taken = inputs(list(pictures))._replace(names=list(names))
    found: Any = bank.ask(taken, [list(tasks)] * len(pictures))
    return [{task: _as_told(of[task], draw) for task in tasks} for of in found]


def _as_told(found: Prediction, draw: bool) -> Told:
    """A prediction ready for JSON, with its drawing as a JPEG in an address of its own, if there is one."""
    told: Told = {"text": found.text, "rows": found.rows}
    if draw and found.drawing is not None:
        drawn = io.BytesIO()
        found.draw().save(drawn, "JPEG", quality=88)
        told["drawing"] = "data:image/jpeg;base64," + base64.b64encode(drawn.getvalue()).decode()
    return told


def _read(file: Path) -> dict[str, Any]:
    """What a bank's file says, or RequestError."""
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(
            f"There is no file {file}: give the YAML file of a bank, with NAME: RUN under tasks."
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RequestError(f"{file} cannot be read as YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(told, dict):
        raise RequestError(f"{file} is no bank: give {', '.join(OPTIONS)} by name, with NAME: RUN under tasks.")
    for name in told:
        if name not in OPTIONS:
            raise RequestError(
                f"{file} has {name!r}, but there are {', '.join(OPTIONS)}: take one of these."
                f"{near_misses(str(name), OPTIONS)}"
            )
    tasks = told.get("tasks") or {}
    if not isinstance(tasks, dict) or not all(isinstance(x, str) for pair in tasks.items() for x in pair):
        raise RequestError(f"The tasks of {file} are not names with runs: give a line NAME: RUN for each.")
    return told
