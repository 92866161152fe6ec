"""Small sets as people arrange them."""

from pathlib import Path
from typing import Any

import numpy as np
from helpers_dense import noise
from PIL import Image

from vitgraft.data.check import check

SIZE = (40, 60)  # (h, w) of each picture


def pictures(folder: Path, n: int = 4, ending: str = ".png", first: int = 0) -> list[Path]:
    return [noise(folder / f"{i}{ending}", SIZE, seed=first + i) for i in range(n)]


def masks(folder: Path, n: int = 4, values: tuple[int, int] = (0, 1), ending: str = ".png", mode: str = "L") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        array = np.full(SIZE, values[0], np.uint8)
        array[10:30, 5 + i : 30 + i] = values[1]
        image = Image.fromarray(array)
        (image if mode == "L" else image.convert(mode)).save(folder / f"{i}{ending}")


def notes_of(root: Path) -> str:
    found = check(root)
    assert not found.problems
    return "\n".join(found.notes)


def classes(root: Path, *splits: str, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for k, split in enumerate(splits):
        for c, name in enumerate(names):
            pictures(root / split / name, first=100 * k + 10 * c)
    return root


def coco_of(files: list[Path], *, parent: bool = False, **more: Any) -> dict[str, Any]:
    """One object of 20 x 10 pixels in each picture, of two classes in turn."""
    categories = [{"id": 1, "name": "cat", "supercategory": "pets"}, {"id": 2, "name": "dog", "supercategory": "pets"}]
    rows = [
        {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0, **more}
        for i in range(len(files))
    ]
    images = [{"id": i, "file_name": file.name, "height": SIZE[0], "width": SIZE[1]} for i, file in enumerate(files)]
    return {
        "images": images,
        "annotations": rows,
        "categories": [*([{"id": 0, "name": "pets", "supercategory": "none"}] if parent else []), *categories],
    }


XML = (
    "<annotation><size><width>60</width><height>40</height></size><object><name>cat</name><bndbox><xmin>6</xmin>"
    "<ymin>7</ymin><xmax>25</xmax><ymax>16</ymax></bndbox></object></annotation>"
)
LINE = "{} 0.25 0.275 0.333333 0.25\n"  # the same box


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
