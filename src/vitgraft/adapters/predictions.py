"""Predictions as a folder: one drawing for each picture, and predictions.json, which is written last."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import RequestError
from ..common.files import check_folder, make_folder, write_bytes, write_json
from ..tasks.base import Prediction


def make_new_folder(out: str | Path) -> Path:
    """An empty folder; a RequestError where there is something in it."""
    out = Path(out)
    check_folder(out)
    if out.is_dir() and any(out.iterdir()):
        raise RequestError(f"The folder {out} is not empty: choose another --out.")
    make_folder(out)
    return out


def save_predictions(predictions: Sequence[Prediction], out: str | Path) -> None:
    """STEM.jpg for each picture (with its number where two pictures have one name), and the rows of all."""
    stems = [Path(prediction.picture).stem for prediction in predictions]
    for stem, prediction in zip(stems, predictions, strict=True):
        if prediction.draw is not None:
            name = stem if stems.count(stem) == 1 else f"{stem}-{prediction.index + 1}"
            drawn = io.BytesIO()
            prediction.draw().save(drawn, "JPEG", quality=90)
            write_bytes(Path(out) / f"{name}.jpg", drawn.getvalue())
    write_json(Path(out) / "predictions.json", [row for prediction in predictions for row in prediction.rows])
