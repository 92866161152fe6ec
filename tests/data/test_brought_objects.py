"""Folders of objects as people bring them: each is read as what it is, and what was guessed is said.

Every maker writes a small set, of whose kind public reports tell that it was refused, or taken for something else.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_brought import LINE, SIZE, XML, coco_of, notes_of, pictures, put
from helpers_dense import index_mask, noise
from PIL import Image

from vitgraft.common.errors import RequestError
from vitgraft.data.check import check
from vitgraft.data.recognise import read_dense, recognise


def roboflow_coco(root: Path) -> None:
    for split in ("train", "valid"):
        put(root / split / "_annotations.coco.json", json.dumps(coco_of(pictures(root / split), parent=True)))


def cvat(root: Path) -> None:
    put(root / "annotations" / "instances_default.json", json.dumps(coco_of(pictures(root / "images" / "default"))))


def label_studio(root: Path) -> None:
    put(root / "result.json", json.dumps(coco_of(pictures(root / "images"))))


def plain_json(root: Path) -> None:
    for split in ("train", "val"):
        put(root / f"{split}.json", json.dumps(coco_of(pictures(root / split))))


def roboflow_yolo(root: Path) -> None:
    for split in ("train", "valid"):
        for i, path in enumerate(pictures(root / split / "images")):
            put(root / split / "labels" / f"{path.stem}.txt", LINE.format(i % 2))
    put(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")


def coco128(root: Path) -> None:
    for i, path in enumerate(pictures(root / "images" / "train2017")):
        put(root / "labels" / "train2017" / f"{path.stem}.txt", LINE.format(i % 2))
    text = "path: ../datasets/coco128\ntrain: images/train2017\nval: images/train2017\nnames:\n  0: cat\n  1: dog\n"
    put(root / "coco128.yaml", text)


def darknet(root: Path) -> None:
    files = pictures(root / "obj_train_data")
    for i, path in enumerate(files):
        put(path.with_suffix(".txt"), LINE.format(i % 2))
    put(root / "train.txt", "".join(f"data/obj_train_data/{path.name}\n" for path in files))
    put(root / "obj.names", "cat\ndog\n")


def flat_yolo(root: Path) -> None:
    for i, path in enumerate(pictures(root / "images")):
        put(root / "labels" / f"{path.stem}.txt", LINE.format(i % 2))
    put(root / "classes.txt", "cat\ndog\n")


def labelimg(root: Path) -> None:
    for path in pictures(root):
        put(path.with_suffix(".xml"), XML)


def roboflow_voc(root: Path) -> None:
    for split in ("train", "valid"):
        for path in pictures(root / split):
            put(path.with_suffix(".xml"), XML)


def kaggle_voc(root: Path) -> None:
    for path in pictures(root / "images"):
        put(root / "annotations" / f"{path.stem}.xml", XML)


EXPORTS = (
    roboflow_coco, cvat, label_studio, plain_json, roboflow_yolo, coco128, darknet, flat_yolo, labelimg, roboflow_voc,
    kaggle_voc,
)  # fmt: skip


@pytest.mark.parametrize("make", EXPORTS, ids=lambda make: make.__name__)
def test_exports_of_objects(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    assert recognise(tmp_path) == "detect"
    data = read_dense(tmp_path, "detect")
    assert data.classes == (("cat",) if "voc" in make.__name__ or make is labelimg else ("cat", "dog"))
    for split in data.splits.values():
        for objects in split.objects:
            assert objects.boxes == pytest.approx(np.array([[5, 6, 25, 16]]), abs=1e-3)
    assert not check(tmp_path).problems


def test_a_category_above_others_is_no_class(tmp_path: Path) -> None:
    roboflow_coco(tmp_path)
    assert "the category pets has no object and stands above others" in notes_of(tmp_path)


DIALECTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "ids as texts": lambda c: [
        row.update({key: str(row[key]) for key in ("category_id", "image_id")}) for row in c["annotations"]
    ],
    "sizes as floats": lambda c: [image.update(height=40.0, width=60.0) for image in c["images"]],
    "no sizes": lambda c: [(image.pop("height"), image.pop("width")) for image in c["images"]],
    "crowds as texts": lambda c: [row.update(iscrowd="0") for row in c["annotations"]],
    "numbers as texts": lambda c: [row.update(bbox=[str(n) for n in row["bbox"]]) for row in c["annotations"]],
    "other paths": lambda c: [image.update(file_name=f"C:\\data\\x\\{image['file_name']}") for image in c["images"]],
    "areas that are none": lambda c: [row.update(area=float("nan")) for row in c["annotations"]],
    "boxes by polygons": lambda c: [
        row.update(bbox=None, segmentation=[[5, 6, 25, 6, 25, 16, 5, 16]]) for row in c["annotations"]
    ],
}  # fmt: skip


@pytest.mark.parametrize("change", DIALECTS.values(), ids=DIALECTS)
def test_dialects_of_coco(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = coco_of(pictures(tmp_path / "images" / "train"))
    change(content)
    (tmp_path / "instances_train.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    data = read_dense(tmp_path, "detect")
    assert [found.labels.tolist() for found in data.split("train").objects] == [[0], [1], [0], [1]]
    assert all(found.boxes.tolist() == [[5, 6, 25, 16]] for found in data.split("train").objects)


def test_a_split_may_name_some_of_the_categories(tmp_path: Path) -> None:
    plain_json(tmp_path)
    content = json.loads((tmp_path / "val.json").read_text())
    content["categories"] = [{"id": 9, "name": "dog"}]
    for row in content["annotations"]:
        row["category_id"] = 9
    put(tmp_path / "val.json", json.dumps(content))
    assert [found.labels.tolist() for found in read_dense(tmp_path, "detect").split("val").objects] == [[1]] * 4


def test_boxes_are_cut_and_contradictions_said(tmp_path: Path) -> None:
    content = coco_of(pictures(tmp_path / "images" / "train"), segmentation=[[50, 30, 59, 30, 59, 39]])
    content["annotations"][0]["bbox"] = [45, 6, 20, 10]
    put(tmp_path / "instances_train.json", json.dumps(content))
    assert read_dense(tmp_path, "detect").split("train").objects[0].boxes.tolist() == [[45, 6, 60, 16]]
    assert "1 boxes reached out of their pictures" in notes_of(tmp_path)
    assert "4 boxes contradict their polygons" in notes_of(tmp_path)


def test_crowds_alone_are_said_before_training(tmp_path: Path) -> None:
    put(tmp_path / "instances_train.json", json.dumps(coco_of(pictures(tmp_path / "images" / "train"), iscrowd=1)))
    with pytest.raises(RequestError, match="every object of its split train is marked as a crowd"):
        read_dense(tmp_path, "detect")
    assert "crowd" in str(check(tmp_path).problems[0])


def test_corners_for_a_size_are_recognised(tmp_path: Path) -> None:
    put(
        tmp_path / "instances_train.json",
        json.dumps(coco_of(pictures(tmp_path / "images" / "train"), bbox=[40, 20, 58, 38])),
    )
    with pytest.raises(RequestError, match="as x0, y0, x1, y1 it would fit"):
        read_dense(tmp_path, "detect")


@pytest.mark.parametrize(
    ("line", "yaml", "classes"),
    [
        ("0.000000 0.25 0.275 0.333333 0.25", "names: [cat, dog]\n", ("cat", "dog")),
        ("0e0 0.25 0.275 0.333333 0.25", "names: [cat, dog]\n", ("cat", "dog")),
        ("0 0.25 0.275 0.333333 0.25 0.93", "names: [cat, dog]\n", ("cat", "dog")),
        ("0 0.25 0.275 0.333333 0.25", "names: [Yes, No]\n", ("Yes", "No")),
        ("0 0.25 0.275 0.333333 0.25", "names:\n  0: 010\n  1: 1e3\n", ("010", "1e3")),
        ("0 0.25 0.275 0.333333 0.25", "names: cat\n", ("cat",)),
        ("0 0.25 0.275 0.333333 0.25", "nc: 2\n", ("0", "1")),
    ],
)
def test_dialects_of_yolo(tmp_path: Path, line: str, yaml: str, classes: tuple[str, ...]) -> None:
    for path in pictures(tmp_path / "images" / "train"):
        put(tmp_path / "labels" / "train" / f"{path.stem}.txt", f"{line}\n")
    put(tmp_path / "data.yml", yaml)
    data = read_dense(tmp_path, "detect")
    assert data.classes == classes
    assert data.split("train").objects[0].boxes == pytest.approx(np.array([[5, 6, 25, 16]]), abs=1e-3)


def test_fiftyone_s_data_and_labels(tmp_path: Path) -> None:
    for k in range(5):
        for kind in ("voc", "masks"):
            noise(tmp_path / kind / "data" / f"{k}.png", SIZE, seed=k)
        put(tmp_path / "voc" / "labels" / f"{k}.xml", XML)
        index_mask(tmp_path / "masks" / "labels" / f"{k}.png", (np.arange(SIZE[1]) > 30) * 255, SIZE)
    assert recognise(tmp_path / "voc") == "detect"
    assert sum(len(split) for split in read_dense(tmp_path / "voc", "detect").splits.values()) == 5
    assert recognise(tmp_path / "masks") == "segment"
    assert read_dense(tmp_path / "masks", "segment").classes == ("background", "foreground")


def test_oriented_boxes_of_yolo(tmp_path: Path) -> None:
    """As their enclosing boxes, said; as polygons for who asks."""
    for split in ("train", "val"):
        for k in range(2):
            noise(tmp_path / "images" / split / f"{k}.png", (40, 60), seed=k)
            label = tmp_path / "labels" / split / f"{k}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n0 0.1 0.2 0.2 0.1 0.4 0.3 0.3 0.4\n")
    (tmp_path / "classes.txt").write_text("ship\n")
    assert recognise(tmp_path) == "detect"
    found = read_dense(tmp_path, "detect")
    assert found.splits["train"].objects[0].boxes.tolist()[0] == [15, 10, 45, 30]
    assert any("polygons were read as the boxes around them" in note for note in found.notes)
    assert read_dense(tmp_path, "instance").splits["train"].objects[0].segmentations is not None


def test_polygons_of_yolo(tmp_path: Path) -> None:
    for path in pictures(tmp_path / "images" / "train"):
        put(tmp_path / "labels" / "train" / f"{path.stem}.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    put(tmp_path / "classes.txt", "cat\n")
    assert recognise(tmp_path) == "instance"
    objects = read_dense(tmp_path, "instance").split("train").objects[0]
    assert objects.boxes == pytest.approx(np.array([[6, 4, 30, 20]]))
    assert objects.segmentations is not None
    assert objects.segmentations[0][0] == pytest.approx([6, 4, 30, 4, 30, 20])
    assert "4 polygons were read as the boxes around them" in read_dense(tmp_path, "detect").notes


def test_lists_of_voc_name_whole_lines(tmp_path: Path) -> None:
    for name in ("scan", "scan 1", "scan 2"):
        noise(tmp_path / "JPEGImages" / f"{name}.png", SIZE)
        put(tmp_path / "Annotations" / f"{name}.xml", XML)
    put(tmp_path / "ImageSets" / "Main" / "train.txt", "scan\nscan 1\n")
    put(tmp_path / "ImageSets" / "Main" / "val.txt", "scan 2.png\n")
    data = read_dense(tmp_path, "detect")
    assert [[path.stem for path in split.paths] for split in data.splits.values()] == [["scan", "scan 1"], ["scan 2"]]
    put(tmp_path / "ImageSets" / "Main" / "val.txt", "scan 1\n")
    with pytest.raises(RequestError, match=r"the picture scan 1 stands in train\.txt:2 too"):
        read_dense(tmp_path, "detect")


def test_xml_in_an_encoding_that_nobody_knows(tmp_path: Path) -> None:
    labelimg(tmp_path)
    put(tmp_path / "0.xml", '<?xml version="1.0" encoding="klingon"?>' + XML)
    with pytest.raises(RequestError, match=r"0\.xml: it cannot be read as XML"):
        read_dense(tmp_path, "detect")


def test_run_lengths_beyond_every_picture(tmp_path: Path) -> None:
    rle = {"size": [*SIZE], "counts": [10**30, 5]}
    put(
        tmp_path / "instances_train.json",
        json.dumps(coco_of(pictures(tmp_path / "images" / "train"), segmentation=rle)),
    )
    with pytest.raises(RequestError, match="its run lengths hold no lengths"):
        read_dense(tmp_path, "instance")


def test_turned_pictures_are_counted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    files = pictures(tmp_path / "images" / "train")
    Image.open(files[0]).save(files[0], exif=exif)
    put(tmp_path / "instances_train.json", json.dumps(coco_of(files)))
    assert "1 of 4 pictures looked at are turned by their EXIF orientation (0.png)" in notes_of(tmp_path)
