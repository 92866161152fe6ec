"""What a model says about one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True, repr=False)
class Prediction:
    """What a model says about one picture, as rows ready for JSON; its properties are what there is of it.

    A classifier has one row, {"picture", "class", "probability", "probabilities": {class: p}}, of several labels
    {"picture", "labels", "probabilities"}, of a number {"picture", "name", "value"}; a detector one for each object, as
    in COCO's results, with the picture and the category's name; a segmenter one for each class that is in the picture,
    with its RLE.
    """

    index: int  # of the picture among those that were given
    picture: str  # its path, or "picture 3" where it had none
    rows: list[dict[str, Any]]
    text: str  # the same in words
    drawing: Callable[[], Image.Image] | None = None
    source: str = ""  # the file of the picture, where `picture` is another name
    keeps: Any = field(default=None, compare=False)  # the folder in which a picture lies that was no file

    @property
    def label(self) -> str:
        """The one class of a whole picture; empty where there is none."""
        return str(self.rows[0]["class"]) if self.rows and "class" in self.rows[0] else ""

    @property
    def probability(self) -> float:
        """Of the `label`; 0 where there is none."""
        return float(self.rows[0]["probability"]) if self.label else 0.0

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes or labels of a whole picture, with their probabilities."""
        found = self.rows[0].get("probabilities", {}).items() if self.rows else ()
        return sorted(found, key=lambda pair: -pair[1])[:count]

    @property
    def value(self) -> float | None:
        """The number of a whole picture, if that is what was asked."""
        return self.rows[0].get("value") if self.rows else None

    @property
    def labels(self) -> list[str]:
        """The labels of a whole picture; the class of each object, or each class that is in the picture."""
        if self.rows and "labels" in self.rows[0]:
            return list(self.rows[0]["labels"])
        return [str(row["category"]) for row in self.rows if "category" in row]

    @property
    def scores(self) -> np.ndarray:
        """Of each object, float32 [n]."""
        return np.array([row["score"] for row in self.rows if "score" in row], dtype=np.float32)

    @property
    def boxes(self) -> np.ndarray:
        """Of each object, float32 [n, 4], xyxy in pixels of the picture."""
        boxes = np.array([row["bbox"] for row in self.rows if "bbox" in row], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    @property
    def masks(self) -> np.ndarray:
        """Of each object or class, bool [n, H, W]; [0, 0, 0] where there are none."""
        from faster_coco_eval import mask

        found = [mask.decode(row["segmentation"]) for row in self.rows if "segmentation" in row]
        return np.stack(found).astype(bool) if found else np.zeros((0, 0, 0), dtype=bool)

    def draw(self) -> Image.Image:
        """The picture with masks, boxes and names; of a classifier as it is."""
        return self.drawing() if self.drawing else Image.open(self.source or self.picture)

    def detections(self) -> Any:
        """The same as `supervision.Detections`, where that package is installed (ModuleNotFoundError otherwise)."""
        import supervision

        names = np.array(self.labels)
        number = {name: k for k, name in enumerate(sorted(set(self.labels)))}
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks if any("segmentation" in row for row in self.rows) else None,
            confidence=self.scores,
            class_id=np.array([number[name] for name in names], dtype=int),
            data={"class_name": names},
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"picture": self.picture, "rows": self.rows}

    def __repr__(self) -> str:
        return f"<{self.picture}: {self.text}>"
