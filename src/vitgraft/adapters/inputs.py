"""Pictures to predict, in whatever form they come: paths, folders, patterns, addresses, or what lies in memory."""

from __future__ import annotations

import glob
import tempfile
import urllib.request
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..common.errors import RequestError, WorkError
from ..data.folders import folders_in, pictures_in
from ..data.in_memory import encoded
from ..measures.prediction import Prediction

SECONDS, BYTES = 30, 1 << 28  # that an address may take, and that may come from it
FORMS = (
    "a path, a folder, a pattern such as 'new/*.jpg', an address, bytes, a PIL picture, an array uint8 [H, W, 3] or "
    "[H, W], a tensor [3, H, W] of uint8 or of floats 0..1, or several of these"
)


class Inputs(NamedTuple):
    """The files of the pictures, what each is called, whether one picture alone was given, and the folder, which goes
    with this, of those that were no files."""

    paths: list[Path]
    names: list[str]
    single: bool
    folder: Any


def named(found: Prediction, taken: Inputs, k: int) -> Prediction:
    """The prediction with the name and the place of its picture, the k-th of those that were given."""
    rows = [{**row, "picture": taken.names[k]} for row in found.rows]
    return replace(found, index=k, picture=taken.names[k], rows=rows, source=str(taken.paths[k]), keeps=taken.folder)


def inputs(given: Any) -> Inputs:
    """Every picture as a file; what lies in memory is written without loss. RequestError for what is no picture."""
    folder: Any = tempfile.TemporaryDirectory(prefix="vitgraft-")
    several = isinstance(given, (list, tuple, set)) or (
        isinstance(given, Iterable) and not isinstance(given, (str, bytes, np.ndarray, torch.Tensor, Image.Image))
    )
    found = Inputs([], [], not several and _is_one(given), folder)
    for each in given if several else (given,):
        _add(each, found)
    if not found.paths:
        raise RequestError(f"Pictures were to be predicted, but {given!r:.80} holds none: give {FORMS}.")
    return found


def _is_one(given: Any) -> bool:
    if isinstance(given, (str, Path)):
        return not (Path(given).is_dir() or _is_pattern(str(given)))
    return not (isinstance(given, torch.Tensor) and given.ndim == 4)


def _is_pattern(text: str) -> bool:
    return glob.has_magic(text) and not Path(text).exists()


def _add(given: Any, found: Inputs) -> None:
    if isinstance(given, (str, Path)):
        _add_path(str(given), found)
    elif isinstance(given, torch.Tensor) and given.ndim == 4:
        for each in given:
            _add(each, found)
    elif isinstance(given, (bytes, Image.Image, np.ndarray, torch.Tensor)):
        _keep(encoded(given), found)
    else:
        raise RequestError(f"A {type(given).__name__} is no picture: give {FORMS}.")


def _add_path(text: str, found: Inputs) -> None:
    path = Path(text).expanduser()
    if text.startswith(("http://", "https://")):
        _keep(_fetched(text), found, text)
        return
    if path.is_dir():
        paths = _below(path)
    elif _is_pattern(text):
        paths = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]
    elif path.is_file():
        paths = [path]
    else:
        raise RequestError(f"There is no picture {text}: name files that exist.")
    found.paths.extend(paths)
    found.names.extend(map(str, paths))


def _below(folder: Path) -> list[Path]:
    """The pictures of a folder and of those inside it."""
    return [*pictures_in(folder, []), *(path for inner in folders_in(folder) for path in _below(inner))]


def _keep(content: bytes, found: Inputs, name: str = "") -> None:
    path = Path(found.folder.name) / f"{len(found.paths)}.png"  # Pillow looks at the content, not at the ending
    path.write_bytes(content)
    found.paths.append(path)
    found.names.append(name or f"picture {len(found.paths)}")


def _fetched(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            content = answer.read(BYTES + 1)
    except OSError as error:
        raise WorkError(f"{address} could not be fetched ({error}): give a file, or try again.") from error
    if len(content) > BYTES:
        raise WorkError(f"{address} has more than {BYTES >> 20} MiB: give a smaller picture.")
    return content
