"""Object detection: a box, a class and a score for every object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from PIL import Image

from ..data import Batch, open_picture
from ..data.dense import DensePictures
from ..measures.average_precision import DetectScores
from ..measures.coco import results
from ..measures.prediction import Prediction
from ..pages.drawing import draw_objects, found_shapes
from .dense import DenseTask, each_picture

SHOWN = 0.5  # the least score of an object that is drawn, or counted in a line of text


class Detect(DenseTask):
    """COCO's average precision, in the pixels of the picture files."""

    metric = "box AP"
    masks: ClassVar[bool] = False

    def count(self, answers: Iterable[tuple[Batch, Any]], pictures: DensePictures, classes: tuple) -> DetectScores:
        scores = DetectScores(pictures.split.objects, masks=self.masks)
        for i, found, size in each_picture(answers):
            scores.add(i, found, size)
        return scores

    def predictions(
        self, answers: Iterable[tuple[Batch, Any]], pictures: DensePictures, classes: tuple
    ) -> Iterator[Prediction]:
        for i, found, size in each_picture(answers):
            yield _prediction(i, str(pictures.paths[i]), results(found, i + 1, size, pictures.sizes[i]), classes)


def _prediction(i: int, path: str, found: list[dict[str, Any]], classes: tuple[str, ...]) -> Prediction:
    named = [{"picture": path, "category": classes[row["category_id"] - 1], **row} for row in found]
    likely = [f"{row['category']} {row['score']:.0%}" for row in named if row["score"] >= SHOWN]

    def draw() -> Image.Image:
        picture = open_picture(path)
        return draw_objects(picture, found_shapes(found, picture.size[::-1], least=SHOWN), classes)

    return Prediction(i, path, named, ", ".join(likely) or f"nothing with a score of {SHOWN:.0%} or more", draw)
