"""Writing files so that nothing is ever half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import RequestError, WorkError

TEMPORARY = ".{name}.{process}.tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` when the block ends well.

    Killed or failing at any moment, `path` is what it was before. An OSError (a full disk, no permission) is a
    WorkError.
    """
    temporary = path.with_name(TEMPORARY.format(name=path.name, process=os.getpid()))
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise WorkError(
            f"{path} could not be written ({error.strerror or error}); what stood there before is untouched: "
            "make room or choose another folder, then run the same command again (a fit: with --resume)."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, indented, or nothing."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds; RequestError where it was altered."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read ({error}): take an intact copy, or fit again elsewhere.") from error


def check_new_file(path: Path) -> None:
    """RequestError where there is something at `path`, or where no file could be written."""
    if path.exists():
        raise RequestError(f"{path} was to be written, but exists already: choose another --out, or remove it first.")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """RequestError where no folder `path` could be made or written to."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is a file"
        raise RequestError(f"The folder {path} was to be made, but {there} {reason}: choose another --out.")


def make_folder(path: Path) -> None:
    """Makes the folder, if need be, and removes what writers that were killed have left in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"The folder {path} could not be made ({error.strerror}): choose another --out.") from error
    for left in path.glob(TEMPORARY.format(name="*", process="*")):
        left.unlink(missing_ok=True)
