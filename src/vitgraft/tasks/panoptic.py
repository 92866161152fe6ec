"""Panoptic segmentation: a class for every pixel, and for those of things which object it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..common.settings import Settings
from ..data import Batch, open_picture
from ..data.dense import DensePictures
from ..data.truth import DenseSet
from ..measures.panoptic import PanopticEvaluation, PanopticScores, segments
from ..measures.prediction import Prediction
from ..pages.drawing import draw_objects, found_shapes
from .dense import DenseTask, each_picture


class Panoptic(DenseTask):
    """Panoptic quality, in the pixels of the picture files. Which classes are countable is the data set's to say, and
    an option of the head, by which an adapter knows it."""

    metric = PanopticEvaluation.metric

    def head_options(self, settings: Settings, found: DenseSet) -> dict[str, Any]:
        return {"things": [found.classes.index(name) for name in found.things]}

    def count(self, answers: Iterable[tuple[Batch, Any]], pictures: DensePictures, classes: tuple) -> PanopticScores:
        scores = PanopticScores(pictures.split.objects, len(classes), pictures.split.things)
        for i, found, size in each_picture(answers):
            scores.add(i, found, size)
        return scores

    def predictions(
        self, answers: Iterable[tuple[Batch, Any]], pictures: DensePictures, classes: tuple
    ) -> Iterator[Prediction]:
        for i, found, size in each_picture(answers):
            rows = segments(found, i + 1, size, pictures.sizes[i])
            yield _prediction(i, str(pictures.paths[i]), rows, classes)


def _prediction(i: int, path: str, found: list[dict[str, Any]], classes: tuple[str, ...]) -> Prediction:
    named = [{"picture": path, "category": classes[row["category_id"] - 1], **row} for row in found]
    names = [row["category"] for row in named]
    counts = [f"{names.count(name)} {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]

    def draw() -> Image.Image:
        picture = open_picture(Path(path))
        shapes = found_shapes(found, picture.size[::-1], least=0.0)
        return draw_objects(picture, shapes, classes, boxes=False)

    return Prediction(i, path, named, ", ".join(counts) or "nothing that is sure enough", draw)
