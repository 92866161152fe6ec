"""The folder of a run: empty, begun, or finished; nothing that lies there is written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.console import Console, first_process
from ..common.errors import RequestError
from ..common.files import check_folder, read_json
from ..common.settings import FREE
from ..data import in_memory

FILES = ("adapter.safetensors", "result.json", "metrics.jsonl", "report.html", "checkpoint.safetensors")


def as_folder(data: Any, out: Path, resume: bool, quiet: bool) -> tuple[Path, str]:
    """A data set in memory as a folder in that of its run, and its task. What a fit has begun with stays as it was."""
    folder = out / "pictures"
    begun = (out / "settings.json").is_file()
    if begun and not resume:
        raise _holds_a_run(out)
    if (begun or not first_process()) and folder.is_dir():
        return folder, read_json(folder / in_memory.TASK)["task"]
    check_folder(out)
    with Console(quiet) as console:
        task = in_memory.as_folder(data, folder, progress=console.bar("writing", "pictures"))
        console.line(f"written   {folder}: the pictures as the data set gives them, once")
    return folder, task


def _holds_a_run(out: Path) -> RequestError:
    return RequestError(f"{out} already holds a run: choose another --out, or continue it with --resume.")


def already_done(out: Path, root: Path, asked: dict[str, Any], resume: bool) -> bool:
    """Whether `out` holds this very run, finished. A run there without `resume`, or another run, is a RequestError."""
    check_folder(out)
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise RequestError(f"{out} lies in {root}, where it would pass for pictures: choose another --out.")
    if not (out / "settings.json").is_file():
        if there := [name for name in FILES if (out / name).exists()]:
            raise RequestError(f"{out} holds {', '.join(there)} but no run of this version: choose another --out.")
        return False
    if not resume:
        raise _holds_a_run(out)
    told, asked = _flat(read_json(out / "settings.json")), _flat(json.loads(json.dumps(asked)))
    changed = [
        f"{key} was {told.get(key)} and is now {asked.get(key)}"
        for key in {**asked, **told}
        if told.get(key) != asked.get(key) and key not in FREE
    ]
    if changed:
        raise RequestError(
            f"{out} holds a run with other settings ({'; '.join(changed)}): give the same, or choose another --out."
        )
    return (out / "result.json").is_file()


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by spaces."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{before}{key} ") if isinstance(item, dict) else {f"{before}{key}": item}
    return flat
