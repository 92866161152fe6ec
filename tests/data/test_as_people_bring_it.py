"""Folders as tools export them and people arrange them: each is read as what it is, and what was guessed is said.

Every maker writes a small set, of whose kind public reports tell that it was refused, or taken for something else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_dense import index_mask, noise
from PIL import Image

from vitgraft.common.errors import RequestError
from vitgraft.data import read
from vitgraft.data.check import check
from vitgraft.data.mask_values import load_mask
from vitgraft.data.pictures import measured_levels, open_picture
from vitgraft.data.recognise import read_dense, recognise

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


# --- classes


def classes(root: Path, *splits: str, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for k, split in enumerate(splits):
        for c, name in enumerate(names):
            pictures(root / split / name, first=100 * k + 10 * c)
    return root


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("Train", "Test"), ["train", "test"]),
        (("training", "validation"), ["train", "val"]),
        (("training_set", "test_set"), ["train", "test"]),
        (("seg_train", "seg_test"), ["train", "test"]),
        (("train", "Validation"), ["train", "val"]),
        (("TRAIN", "VAL"), ["train", "val"]),
        (("train", "dev"), ["train", "val"]),
        (("train", "eval"), ["train", "val"]),
        (("train", "validate"), ["train", "val"]),
    ],
)
def test_splits_by_other_names(tmp_path: Path, folders: tuple[str, ...], splits: list[str]) -> None:
    root = classes(tmp_path, *folders)
    assert list(read(root).splits) == splits
    assert "was read as" in notes_of(root)


def test_a_folder_that_is_not_read_is_named(tmp_path: Path) -> None:
    root = classes(tmp_path, "train")
    pictures(root / "test")
    assert "test in" in notes_of(root)


def test_what_systems_leave_is_left_out_and_said(tmp_path: Path) -> None:
    root = classes(tmp_path, "")
    (root / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "cat" / "notes.txt").write_text("x")
    (root / "dog" / "._0.png").write_text("x")
    (root / "dog" / "@eaDir").mkdir()
    (root / "dog" / "@eaDir" / "0.png").write_text("x")
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / "__MACOSX" / "cat" / "._0.png").write_text("x")
    assert read(root).classes == ("cat", "dog")
    for name in ("Thumbs.db", "notes.txt", "._0.png", "@eaDir"):
        assert name in notes_of(root)


def test_folders_around_and_inside_the_classes(tmp_path: Path) -> None:
    root = classes(tmp_path / "around" / "archive", "train", "val")
    assert read(tmp_path / "around").classes == ("cat", "dog")
    assert "archive alone" in notes_of(tmp_path / "around")
    root = classes(tmp_path / "inside", "train", "val")
    pictures(root / "train" / "cat" / "batch 1", first=50)
    assert len(read(root).split("train")) == 12
    assert "4 pictures lie in folders inside it" in notes_of(root)


def test_splits_inside_the_classes(tmp_path: Path) -> None:
    for c, name in enumerate(("cat", "dog")):
        for k, split in enumerate(("train", "valid")):
            pictures(tmp_path / name / split, first=100 * k + 10 * c)
    data = read(tmp_path)
    assert {name: split.labels for name, split in data.splits.items()} == {
        "train": (0,) * 4 + (1,) * 4,
        "val": (0,) * 4 + (1,) * 4,
    }
    assert "were read as splits" in notes_of(tmp_path)


@pytest.mark.parametrize("between", [",", "\t", ";"])
@pytest.mark.parametrize("ending", [True, False])
def test_a_table_labels_the_pictures(tmp_path: Path, between: str, ending: bool) -> None:
    pictures(tmp_path / "images", 10)
    rows = [f"{i}.png" if ending else f"{i}" for i in range(10)]
    text = "\n".join(
        [between.join(("filename", "label")), *(between.join((row, "ab"[i % 2])) for i, row in enumerate(rows))]
    )
    (tmp_path / ("labels.tsv" if between == "\t" else "labels.csv")).write_text(text)
    data = read(tmp_path)
    assert (data.classes, {name: len(split) for name, split in data.splits.items()}) == (
        ("a", "b"),
        {"train": 8, "val": 2},
    )
    assert "columns filename and label" in data.layout


def test_tables_of_splits_and_json_lines(tmp_path: Path) -> None:
    for i, path in enumerate(pictures(tmp_path / "all", 6)):
        row = {"path": f"all\\{path.name}", "class": "ab"[i % 2], "split": "train" if i < 4 else "Validation"}
        with open(tmp_path / "rows.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
    assert {name: split.labels for name, split in read(tmp_path).splits.items()} == {
        "train": (0, 1, 0, 1),
        "val": (0, 1),
    }


def test_columns_that_are_not_read_are_said(tmp_path: Path) -> None:
    pictures(tmp_path / "train", 4)
    pictures(tmp_path / "test", 2, first=9)
    rows = "".join(f"{i},{'ab'[i % 2]},{i > 2}\n" for i in range(4))
    (tmp_path / "train.csv").write_text(f"id,label,is_valid\n{rows}")
    assert read(tmp_path).split("train").labels == (0, 1, 0, 1)
    assert "train.csv: the columns is_valid were not read" in notes_of(tmp_path)


def test_annotations_that_nobody_reads_are_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "annotations.xml").write_text("<annotations/>")
    with pytest.raises(RequestError, match=r"annotations\.xml: if those are boxes or masks, export them as COCO"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("filename,label\n0.png,a\ngone.png,b\n", "labels.csv:3 names the picture 'gone.png'"),
        ("filename,label\n0.png,a\n1.png,\n", "labels.csv:3 has no 'label'"),
        ("filename,label\n0.png,a,7\n", "not as many cells"),
        ("filename,one,two\n0.png,a,b\n", "which of them is the class is not clear"),
    ],
)
def test_tables_that_cannot_be_meant(tmp_path: Path, rows: str, said: str) -> None:
    pictures(tmp_path / "images", 2)
    (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(RequestError, match=said):
        read(tmp_path)


@pytest.mark.parametrize(
    "lines",
    [
        "im/0.png\t0\nim/1.png\t1\n",
        "im/0.png,0\nim/1.png,1\n",
        "im\\0.png 0\nim\\1.png 1\n",
        "im/0.png a b\nim/1.png c d\n",
    ],
)
def test_lines_of_lists(tmp_path: Path, lines: str) -> None:
    pictures(tmp_path / "im", 2)
    (tmp_path / "train.txt").write_text(lines)
    assert len(read(tmp_path).classes) == 2
    assert not check(tmp_path).problems


def test_numbers_that_are_no_indices_are_names(tmp_path: Path) -> None:
    pictures(tmp_path / "im", 3)
    (tmp_path / "train.txt").write_text("im/0.png 1\nim/1.png 500\nim/2.png 7\n")
    assert read(tmp_path).classes == ("1", "7", "500")
    assert "the labels are the numbers 1, 7, 500" in notes_of(tmp_path)
    (tmp_path / "train.txt").write_text("im/0.png 0 1\nim/1.png 1\n")
    with pytest.raises(RequestError, match="several of one picture"):
        read(tmp_path)


def test_the_same_picture_in_two_splits_is_said(tmp_path: Path) -> None:
    root = classes(tmp_path, "train", "val")
    (root / "val" / "cat" / "copy.png").write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    assert "1 pictures of val are in train too, byte for byte (copy.png is 0.png)" in notes_of(root)


def test_a_name_that_is_no_text_is_refused_before_training(tmp_path: Path) -> None:
    root = classes(tmp_path, "")
    (root / "cat").rename(root / os.fsdecode(b"caf\xe9"))
    with pytest.raises(RequestError, match="is not UTF-8"):
        read(root)


# --- never a classifier


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("imgs", "Masks"), ("JPEGImages", "Annotations"), ("images", "depth")]
)
def test_folders_of_another_task_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        pictures(tmp_path / name, 4 + ("depth" in names))
        (tmp_path / name / "odd.png").write_bytes(b"so that no masks pair")
    if recognise(tmp_path) == "classify":
        with pytest.raises(RequestError, match="no class"):
            read(tmp_path)


def test_classes_may_be_called_mask(tmp_path: Path) -> None:
    root = classes(tmp_path, "train", "val", names=("mask", "no_mask"))
    assert recognise(root) == "classify"
    assert read(root).classes == ("mask", "no_mask")


def test_two_folders_whose_stems_pair_are_no_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "photo", ending=".jpg")
    masks(tmp_path / "cutout")
    with pytest.raises(RequestError, match="those in cutout look like masks"):
        read(tmp_path)
    for path in (tmp_path / "cutout").iterdir():
        path.rename(path.with_name(f"{path.stem}_segmentation.png"))
    with pytest.raises(RequestError, match="those in cutout look like masks"):
        read(tmp_path)
    assert read(classes(tmp_path / "equal names", "")).classes == ("cat", "dog")


# --- masks

PLACES = {
    "images and masks": ("images/train", "masks/train", "images/val", "masks/val"),
    "split first": ("train/images", "train/masks", "val/images", "val/masks"),
    "CamVid's": ("train", "trainannot", "val", "valannot"),
    "UNet's": ("imgs", "masks"),
    "VOC's": ("JPEGImages", "SegmentationClass"),
    "annotations": ("img/train", "annotations/train"),
    "labels": ("images/train", "labels/train", "images/val", "labels/val"),
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_masks_in_other_folders(tmp_path: Path, places: tuple[str, ...]) -> None:
    for photos, truth in zip(places[::2], places[1::2], strict=True):
        pictures(tmp_path / photos, ending=".jpg")
        masks(tmp_path / truth)
    assert recognise(tmp_path) == "segment"
    data = read_dense(tmp_path, "segment")
    assert data.classes == ("0", "1")
    assert sum(map(len, data.splits.values())) == 2 * len(places)
    assert "named by the numbers 0 to 1" in notes_of(tmp_path)


def segmented(root: Path, **how: Any) -> Path:
    for k, split in enumerate(("train", "val")):
        pictures(root / "images" / split, first=10 * k)
        masks(root / "masks" / split, **how)
    (root / "classes.txt").write_text("background\nblob\n")
    return root


@pytest.mark.parametrize(
    ("mode", "ending"), [("L", ".png"), ("P", ".png"), ("RGB", ".bmp"), ("L", ".tif"), ("1", ".png")]
)
def test_0_and_255_are_two_classes(tmp_path: Path, mode: str, ending: str) -> None:
    root = segmented(tmp_path, values=(0, 255), mode=mode, ending=ending)
    split = read_dense(root, "segment").split("train")
    labels = load_mask(split.masks[0], 2, split.coding)
    assert np.unique(labels).tolist() == [0, 1]
    assert labels[15, 15] == 1
    found = check(root)
    assert found.counts["train"]["blob"]["pixels"] == 4 * 20 * 25
    if mode != "1":
        assert "255 was read as the class 'blob'" in "\n".join(found.notes)


def test_a_class_without_a_pixel_is_said(tmp_path: Path) -> None:
    root = segmented(tmp_path)
    (root / "classes.txt").write_text("background\nblob\nrod\n")
    assert "train has no pixel of 'rod'" in notes_of(root)


def test_pixels_that_are_ignored_are_said(tmp_path: Path) -> None:
    root = segmented(tmp_path, values=(255, 1))
    masks(root / "masks" / "train", 1, values=(0, 1))
    assert "of the pixels of train are ignored" in notes_of(root)


def test_colours_need_names(tmp_path: Path) -> None:
    root = segmented(tmp_path)
    for path in (root / "masks").rglob("*.png"):
        array = np.asarray(Image.open(path))
        Image.fromarray(np.stack([array * 200, array * 10, array * 0], -1).astype(np.uint8)).save(path)
    with pytest.raises(RequestError, match="are 0 0 0, 200 10 0: write lines 'name r g b' into"):
        read_dense(root, "segment")
    (root / "classes.txt").write_text("background 0 0 0\nblob 200 10 0\n")
    split = read_dense(root, "segment").split("val")
    assert np.unique(load_mask(split.masks[0], 2, split.coding)).tolist() == [0, 1]
    (root / "classes.txt").unlink()
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nblob:200,10,0::\n")
    assert read_dense(root, "segment").classes == ("background", "blob")


def test_palettes_that_differ_are_no_numbers(tmp_path: Path) -> None:
    root = segmented(tmp_path)
    for k, path in enumerate(sorted((root / "masks").rglob("*.png"))):
        image = Image.fromarray(np.asarray(Image.open(path)) ^ k % 2, "P")
        image.putpalette([0, 0, 0, 250, 0, 0] if k % 2 == 0 else [250, 0, 0, 0, 0, 0])
        image.save(path)
    with pytest.raises(RequestError, match="its palette is not that of the others"):
        read_dense(root, "segment")
    (root / "classes.txt").write_text("background 0 0 0\nblob 250 0 0\n")
    split = read_dense(root, "segment").split("train")
    assert all((load_mask(mask, 2, split.coding)[15, 15]) == 1 for mask in split.masks)


def test_suffixes_of_masks(tmp_path: Path) -> None:
    root = segmented(tmp_path)
    for path in (root / "masks").rglob("*.png"):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    assert len(read_dense(root, "segment").split("train")) == 4
    assert "as 0.png with 0_mask.png" in notes_of(root)


def test_masks_beside_their_pictures(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for path in pictures(tmp_path / split, ending=".jpg"):
            masks(tmp_path / "made", 4)
            (tmp_path / "made" / f"{path.stem}.png").rename(tmp_path / split / f"{path.stem}_mask.png")
    shutil.rmtree(tmp_path / "made")
    assert recognise(tmp_path) == "segment"
    data = read_dense(tmp_path, "segment")
    assert list(data.splits) == ["train", "val"]
    assert all([path.name for path in split.paths] == [f"{i}.jpg" for i in range(4)] for split in data.splits.values())
    assert "as 0.jpg with 0_mask.png" in notes_of(tmp_path)


def test_masks_of_carvana(tmp_path: Path) -> None:
    pictures(tmp_path / "train", ending=".jpg")
    masks(tmp_path / "train_masks", ending=".gif", mode="P")
    for path in (tmp_path / "train_masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.gif"))
    assert recognise(tmp_path) == "segment"
    assert len(read_dense(tmp_path, "segment").split("train")) == 4


# --- objects


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


# --- grey levels of more than 8 bits


@pytest.mark.parametrize(
    ("dtype", "high", "white"),
    [(np.uint16, 4095, 4095), (np.float32, 1.05, 1.05), (np.int32, 255, 255), (np.uint16, 60000, 65535)],
)
def test_one_scale_for_a_set(tmp_path: Path, dtype: type, high: float, white: float) -> None:
    ramp = np.linspace(0, high, 60)[None].repeat(40, 0)
    files = [tmp_path / f"{i}.tif" for i in range(3)]
    for path, share in zip(files, (1, 0.5, 0.25), strict=True):
        Image.fromarray((ramp * share).astype(dtype)).save(path)
    found = measured_levels(files)
    assert found is not None
    levels, few = found
    assert levels == (0, pytest.approx(white, rel=1e-6))
    assert not few
    brightest = [np.asarray(open_picture(path, levels)).max() for path in files]
    assert brightest == pytest.approx([255 * high / white * share for share in (1, 0.5, 0.25)], abs=1)


def test_pictures_of_few_levels_are_named(tmp_path: Path) -> None:
    for k, c in enumerate(("cat", "dog")):
        (tmp_path / c).mkdir()
        for i in range(3):
            Image.fromarray((np.arange(60)[None].repeat(40, 0) // 10 * 300 + k + i).astype(np.uint16)).save(
                tmp_path / c / f"{i}.tif"
            )
    assert "have fewer than 16 of 256 levels then" in notes_of(tmp_path)
