"""Predictions as a folder: one drawing for each picture, and predictions.json, which is written last."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import RequestError
from ..common.files import check_folder, check_new_file, make_folder, write_bytes, write_json
from ..measures.prediction import Prediction


def make_new_folder(out: str | Path) -> Path:
    """An empty folder; a RequestError where there is something in it."""
    out = Path(out)
    check_folder(out)
    if out.is_dir() and any(out.iterdir()):
        raise RequestError(f"The folder {out} is not empty: choose another --out.")
    make_folder(out)
    return out


def all_rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """What is said of every picture, in their order."""
    return [row for prediction in predictions for row in prediction.rows]


def save_rows(predictions: Sequence[Prediction], out: str | Path) -> None:
    """All rows as one new file, .json or .csv; in CSV what has parts of its own is JSON in its cell."""
    out = Path(out)
    check_new_file(out)
    rows = all_rows(predictions)
    if out.suffix.lower() == ".json":
        write_json(out, rows)
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(key, "") for key in columns)
        writer.writerow([json.dumps(c, ensure_ascii=False) if isinstance(c, (dict, list)) else c for c in cells])
    write_bytes(out, text.getvalue().encode("utf-8", "replace"))


def _free_name(stem: str, index: int, taken: set[str]) -> str:
    """A name that no other drawing has, also where capital letters do not count."""
    name = stem
    while name.casefold() in taken:
        name, index = f"{stem}-{index + 1}", index + 1
    taken.add(name.casefold())
    return name


def save_predictions(predictions: Sequence[Prediction], out: str | Path) -> None:
    """STEM.jpg for each picture (with its number where two pictures have one name), and the rows of all."""
    taken: set[str] = set()
    for prediction in predictions:
        if prediction.drawing is not None:
            name = _free_name(Path(prediction.picture).stem, prediction.index, taken)
            drawn = io.BytesIO()
            prediction.draw().save(drawn, "JPEG", quality=90)
            write_bytes(Path(out) / f"{name}.jpg", drawn.getvalue())
    write_json(Path(out) / "predictions.json", all_rows(predictions))
