"""Reading objects: COCO's JSON in our layout and as it is distributed, VOC's XML, YOLO's text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_dense import annotation, coco, index_mask, noise, object_set, polygon, problems_of, shared
from PIL import Image

from vitgraft.common.errors import RequestError
from vitgraft.data.objects import picture_size
from vitgraft.data.pictures import open_picture
from vitgraft.data.recognise import read_dense, recognise


def test_our_layout(tmp_path: Path) -> None:
    root = object_set(tmp_path)
    assert recognise(root) == "instance"
    data = read_dense(root, "instance")
    assert data.classes == ("cat", "dog")  # by id, not by place in the file
    split = data.split("train")
    assert [path.name for path in split.paths] == ["1.png", "2.png", "3.png"]
    first, second, third = split.objects
    assert first.size == (40, 60)
    assert first.boxes.dtype == np.float32
    assert first.boxes.tolist() == [[5, 6, 25, 16], [30, 2, 42.5, 32]]
    assert first.labels.tolist() == [0, 1]
    assert first.area.tolist() == [100, 187.5]
    assert first.segmentations == (polygon(5, 6, 20, 10), polygon(30, 2, 12.5, 30))
    assert len(second) == 1
    assert (third.boxes.shape, third.labels.dtype, third.segmentations) == ((0, 4), np.int64, ())
    assert read_dense(root, "detect").split("train").objects[0].segmentations is None
    assert "train 3 with 3 objects" in data.layout


def test_file_names_relative_to_images(tmp_path: Path) -> None:
    content = coco()
    for image in content["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    root = object_set(tmp_path, content, splits=("train",))
    assert read_dense(root, "detect").split("train").paths[0] == root / "images" / "train" / "1.png"


def test_coco_2017_as_distributed(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        for i in (1, 2, 3):
            noise(tmp_path / split / f"{i}.png")
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco()))
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    assert recognise(tmp_path) == "instance"
    data = read_dense(tmp_path, "instance")
    assert data.split("train").paths[0] == tmp_path / "train2017" / "1.png"
    assert data.split("val").paths[0] == tmp_path / "val2017" / "1.png"


def test_boxes_alone_are_for_detection(tmp_path: Path) -> None:
    content = coco()
    for entry, segmentation in zip(content["annotations"], ([], [], None), strict=True):
        entry["segmentation"] = segmentation
    del content["annotations"][2]["segmentation"]
    root = object_set(tmp_path, content)
    assert recognise(root) == "detect"
    assert sum(map(len, read_dense(root, "detect").split("train").objects)) == 3
    with pytest.raises(RequestError, match=r"no segmentation.*--task detect"):
        read_dense(root, "instance")


def test_segmentations_are_found_across_the_parts_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = object_set(tmp_path, coco(annotations=coco()["annotations"][:1]), splits=("train",))
    for size in range(64, 200):
        monkeypatch.setattr("vitgraft.data.coco.CHUNK", size)
        assert recognise(root) == "instance"


def test_masks_and_annotations_need_a_word(tmp_path: Path) -> None:
    root = object_set(tmp_path)
    for path in (root / "images" / "train").iterdir():
        index_mask(root / "masks" / "train" / path.name)
    with pytest.raises(RequestError, match="--task segment or --task instance"):
        recognise(root)


def test_a_crowd_stays_marked(tmp_path: Path) -> None:
    counts = {"size": [40, 60], "counts": [100, 300, 2000]}
    root = object_set(tmp_path, annotation(iscrowd=1, segmentation=counts))
    objects = read_dense(root, "instance").split("train").objects[0]
    assert objects.crowd.tolist() == [True, False]
    assert objects.segmentations is not None
    assert objects.segmentations[0] == counts


def test_boxes_are_cut_to_the_picture(tmp_path: Path) -> None:
    root = object_set(tmp_path, annotation(bbox=[-0.6, -1, 61.4, 41.5]))
    assert read_dense(root, "detect").split("train").objects[0].boxes[0].tolist() == [0, 0, 60, 40]


def test_area_is_that_of_the_box_where_none_is_given(tmp_path: Path) -> None:
    root = object_set(tmp_path, annotation(area=None))
    assert read_dense(root, "detect").split("train").objects[0].area.tolist() == [200, 187.5]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"bbox": [55, 6, 20, 10]},
            "from x 55, y 6 to x 75, y 16 lies for the most part outside its picture, which is 60 wide and 40 h",
        ),
        ({"bbox": [70, 6, 1, 1]}, "outside its picture"),
        ({"bbox": [60, 6, 0.5, 1]}, "outside its picture"),
        ({"bbox": [5, 6, 0, 10]}, "has no area"),
        ({"bbox": [5, 6, 20, -1]}, "has no area"),
        ({"bbox": [5, 6, float("nan"), 1]}, "finite"),
        ({"bbox": [5, 6, 20]}, "its bbox is [5, 6, 20], but a box is [x, y, width, height]"),
        ({"bbox": None, "segmentation": {"size": [40, 60], "counts": [0, 9, 2391]}}, "its bbox is None"),
        ({"category_id": 3}, "of the category 3, but the categories are 1, 7"),
        ({"category_id": [1]}, "of the category [1]"),
        ({"image_id": 9}, "the image 9, which is not in the file"),
        ({"image_id": {}}, "the image {}"),
        ({"id": 2}, "the id 2 is that of another annotation"),
        ({"segmentation": [[1, 2, 3, 4]]}, "2 points"),
        ({"segmentation": {"size": [60, 40], "counts": [2400]}}, "size of [60, 40]"),
    ],
)
def test_bad_annotations_are_named_and_left_out(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    root = object_set(tmp_path, annotation(**changes), splits=("train",))
    (problem,) = problems_of(root, "instance")
    assert problem.place == f"annotation {changes.get('id', 1)}"
    assert said in problem.sentence
    with pytest.raises(RequestError, match="--skip-bad leaves out"):
        read_dense(root, "instance")
    data = read_dense(root, "instance", skip_bad=True)
    # Trained on without an object that it shows, the picture would teach that there is none.
    expected = [1, 1, 0] if "image_id" in changes else [1, 0]
    assert [len(objects) for objects in data.split("train").objects] == expected


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = coco()
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "place", "said"),
    [
        (changed(lambda c: c["images"][0].update(file_name="gone.png")), "image 1", "'gone.png' is in none of"),
        (changed(lambda c: c["images"][0].update(width=0)), "image 1", "an id, a file_name, a height and a width"),
        (changed(lambda c: c["images"][0].pop("id")), "image number 1", "an image needs an id"),
        (changed(lambda c: c["images"][2].update(id=1)), "image 1", "the id 1 is that of another image"),
        (changed(lambda c: c["images"][2].update(file_name="2.png")), "image 3", "'2.png' is that of another image"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, content: dict[str, Any], place: str, said: str) -> None:
    root = object_set(tmp_path, content, splits=("train",))
    found = {problem.place: problem.sentence for problem in problems_of(root, "detect")}
    assert said in found[place]
    assert len(read_dense(root, "detect", skip_bad=True).split("train")) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(coco())[:-100], "cannot be read as JSON ("),
        ("", "cannot be read as JSON"),
        ("[1, 2]", "no COCO annotation file"),
        (json.dumps({"images": []}), "no COCO annotation file"),
        (json.dumps(coco(images=[5])), "no COCO annotation file"),
        ("[" * 100_000, "cannot be read as JSON"),
        (json.dumps(coco(categories=[])), "0 categories"),
        (
            json.dumps(coco(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}])),
            "an id and a name of its own",
        ),
        (json.dumps(coco(categories=[{"id": [], "name": {}}])), "an id and a name of its own"),
        (json.dumps(coco(images=[])), "none of its images is there"),
    ],
)
def test_files_that_are_of_no_use(tmp_path: Path, text: str, said: str) -> None:
    root = object_set(tmp_path)
    (root / "instances_train.json").write_text(text)
    problem = next(problem for problem in problems_of(root, "detect") if problem.fatal)
    assert problem.file == root / "instances_train.json"
    assert said in problem.sentence
    with pytest.raises(RequestError, match=r"instances_train\.json: "):
        read_dense(root, "detect", skip_bad=True)


def test_classes_must_agree(tmp_path: Path) -> None:
    root = object_set(tmp_path)
    for names in ("cat\ndog\n", "background\ncat\ndog\n"):
        (root / "classes.txt").write_text(names)
        assert read_dense(root, "detect").classes == ("cat", "dog")
    (root / "classes.txt").write_text("dog\ncat\n")
    data = read_dense(root, "detect")
    assert data.classes == ("dog", "cat")
    assert "the order of classes.txt" in data.notes[0]
    (root / "classes.txt").write_text("dog\ncow\n")
    with pytest.raises(RequestError, match=r"the categories are cat, dog, but .*classes\.txt has dog, cow; "):
        read_dense(root, "detect", skip_bad=True)
    (root / "classes.txt").unlink()
    other = coco(categories=[{"id": 1, "name": "cat"}, {"id": 7, "name": "cow"}])
    (root / "instances_val.json").write_text(json.dumps(other))
    with pytest.raises(RequestError, match=r"objects of 'cow', but the categories of .*train\.json are cat, dog"):
        read_dense(root, "detect")


def test_an_adapter_s_classes_go_by_name(tmp_path: Path) -> None:
    root = object_set(tmp_path)
    data = read_dense(root, "detect", classes=("dog", "cow", "cat"))
    assert data.split("val").objects[0].labels.tolist() == [2, 0]
    with pytest.raises(RequestError, match=r"annotation 2: .*of the class 'dog', but the classes are cat, cow"):
        read_dense(root, "detect", classes=("cat", "cow"))


def test_training_needs_an_object(tmp_path: Path) -> None:
    root = object_set(tmp_path, coco(annotations=[]))
    with pytest.raises(RequestError, match="no picture of its split train has an object"):
        read_dense(root, "detect")
    assert len(read_dense(root, "detect", classes=("cat", "dog")).split("train")) == 3


@pytest.mark.parametrize("task", ["segment", "instance", "detect"])
def test_a_folder_without_the_layout(tmp_path: Path, task: str) -> None:
    noise(tmp_path / "train" / "cat" / "1.png")
    assert recognise(tmp_path) == "classify"
    with pytest.raises(
        RequestError, match=f"for the task {task}, but it is not arranged so; arrange it as images/SPLIT"
    ):
        read_dense(tmp_path, task)
    with pytest.raises(RequestError, match="Did you mean 'detect'"):
        read_dense(tmp_path, "detekt")


# --- VOC

XML = """<annotation><filename>{stem}.png</filename>{size}
  <object><name>dog</name><difficult>0</difficult><bndbox>
    <xmin>6</xmin><ymin>7</ymin><xmax>25</xmax><ymax>16</ymax></bndbox></object>
  <object><name>cat</name><difficult>1</difficult>
    <bndbox><xmin>0</xmin><ymin>1</ymin><xmax>60</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""


def voc_set(root: Path, **lists: str) -> Path:
    sizes = ["<size><width>60</width><height>40</height></size>", "<size><width>0</width><height>0</height></size>", ""]
    for stem, size in zip("abc", sizes, strict=True):
        noise(root / "JPEGImages" / f"{stem}.png")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(XML.format(stem=stem, size=size))
    (root / "Annotations" / "b.xml").write_text(f"<annotation>{sizes[1]}</annotation>")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, text in (lists or {"train": "a\nb\n", "val": "c\n", "trainval": "a\nb\nc", "dog_train": "a 1\n"}).items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return root


def test_voc(tmp_path: Path) -> None:
    root = voc_set(tmp_path)
    assert recognise(root) == "detect"
    data = read_dense(root, "detect")
    assert data.classes == ("cat", "dog")
    assert {name: [path.stem for path in split.paths] for name, split in data.splits.items()} == {
        "train": ["a", "b"],
        "val": ["c"],
    }
    a, b = data.split("train").objects
    assert a.boxes.tolist() == [[5, 6, 25, 16], [0, 0, 60, 40]]
    assert a.labels.tolist() == [1, 0]
    assert a.crowd.tolist() == [False, True]
    assert (len(b), b.size) == (0, (40, 60))
    assert data.split("val").objects[0].size == (40, 60)
    with pytest.raises(RequestError, match="for the task instance"):
        read_dense(root, "instance")


def test_voc_with_trainval_alone(tmp_path: Path) -> None:
    data = read_dense(voc_set(tmp_path, trainval="a\n", test="c\n"), "detect")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1, "test": 1}


def test_bad_voc(tmp_path: Path) -> None:
    root = voc_set(tmp_path, train="a\nb\ngone\nc\n")
    text = (root / "Annotations" / "a.xml").read_text()
    (root / "Annotations" / "a.xml").write_text(text.replace("<xmax>25", "<xmax>195").replace("<xmin>0", "<xmin>none"))
    (root / "Annotations" / "b.xml").write_text("<annotation><object>")
    (root / "classes.txt").write_text("dog\nbird\n")
    found = {(problem.file.name, problem.place): problem.sentence for problem in problems_of(root, "detect")}
    assert "outside its picture" in found[("a.xml", "object 1")]
    assert "its corners are ['none', '1', '60', '40']" in found[("a.xml", "object 2")]
    assert "cannot be read as XML (no element found: line 1" in found[("b.xml", "")]
    assert "no picture gone" in found[("train.txt", "line 3")]
    assert "of the class 'cat', but the classes are dog, bird" in found[("c.xml", "object 2")]
    assert len(found) == 5
    with pytest.raises(RequestError, match="no picture of its split train has an object; annotate some; 5 problems"):
        read_dense(root, "detect", skip_bad=True)


# --- YOLO


def yolo_set(root: Path, names: str = "names: [cat, dog]\n") -> Path:
    for split in ("train", "val"):
        for i in (1, 2):
            noise(root / "images" / split / f"{i}.png")
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / "1.txt").write_text("1 0.25 0.5 0.5 0.25\n\n0 0.5 0.5 1 1\n")
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\n{names}")
    return root


@pytest.mark.parametrize("names", ["names: [cat, dog]\n", "names:\n  0: cat\n  1: dog\nnc: 2\n"])
def test_yolo(tmp_path: Path, names: str) -> None:
    root = yolo_set(tmp_path, names)
    assert recognise(root) == "detect"
    data = read_dense(root, "detect")
    assert data.classes == ("cat", "dog")
    first, second = data.split("train").objects
    assert first.boxes.tolist() == [[0, 15, 30, 25], [0, 0, 60, 40]]
    assert first.labels.tolist() == [1, 0]
    assert (len(second), second.size) == (0, (40, 60))
    assert read_dense(root, "detect", classes=("dog", "cat")).split("val").objects[0].labels.tolist() == [0, 1]


def test_yolo_with_classes_txt_and_a_turned_picture(tmp_path: Path) -> None:
    root = yolo_set(tmp_path)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(root / "images" / "train" / "1.png", exif=exif)
    data = read_dense(root, "detect")
    assert data.classes == ("cat", "dog")
    assert data.split("train").objects[0].size == (60, 40)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 0.5 0.5 0.1 0.1", "the class is 2, but there are classes 0 to 1"),
        ("cat 0.5 0.5 0.1 0.1", "the class is cat"),
        ("0 0.5 0.5 0.1", "is no box, which is 'class x y width height'"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "is no box"),
        ("0 0.5 0.5 0 0.1", "has no area"),
        ("0 1.2 0.5 0.5 0.1", "outside its picture"),
        ("0 nan 0.5 0.5 0.1", "finite"),
    ],
)
def test_bad_yolo_lines(tmp_path: Path, line: str, said: str) -> None:
    root = yolo_set(tmp_path)
    (root / "labels" / "train" / "2.txt").write_text(f"0 0.5 0.5 1 1\n{line}\n")
    (problem,) = problems_of(root, "detect")
    assert (problem.file, problem.place) == (root / "labels" / "train" / "2.txt", "line 2")
    assert said in problem.sentence


def test_bad_yolo_files(tmp_path: Path) -> None:
    root = yolo_set(tmp_path)
    (root / "images" / "train" / "2.png").write_text("no picture")
    (root / "labels" / "val" / "2.txt").write_bytes(b"\xff\xfe")
    (root / "classes.txt").write_text("dog\ncat\n")
    found = {problem.file.name: problem for problem in problems_of(root, "detect")}
    assert "cannot be read as a picture" in found["2.png"].sentence
    assert "not in UTF-8" in found["2.txt"].sentence
    assert found["data.yaml"].fatal
    (root / "data.yaml").write_text("names: {a: 1}")
    with pytest.raises(RequestError, match=r"data\.yaml: it has no names of classes"):
        read_dense(root, "detect", skip_bad=True)
    (root / "data.yaml").write_text("names: [cat\n")
    with pytest.raises(RequestError, match=r"data\.yaml: it cannot be read as YAML"):
        read_dense(root, "detect", skip_bad=True)


@pytest.mark.parametrize("inner", ["images/old", "labels"])
def test_no_split(tmp_path: Path, inner: str) -> None:
    for name in ("images", "labels", inner):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(RequestError, match="it is not arranged so"):
        read_dense(tmp_path, "detect")


@pytest.mark.real
@pytest.mark.parametrize(("name", "task", "count"), [("pennfudan", "instance", 126), ("bccd", "detect", 1137)])
def test_real_objects(name: str, task: str, count: int) -> None:
    root = shared(name)
    assert recognise(root) == task
    assert sum(map(len, read_dense(root, task).split("val").objects)) == count


@pytest.mark.parametrize("ending", ["jpg", "tif", "png", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 9])
def test_the_size_from_the_head_is_that_of_the_decoded_picture(ending, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / f"1.{ending}", exif=exif)
    h, w = picture_size(tmp_path / f"1.{ending}")
    assert (w, h) == open_picture(tmp_path / f"1.{ending}").size
