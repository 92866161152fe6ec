"""COCO's panoptic form: PNGs of segments with a JSON that says what they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers_dense import PANOPTIC_SIZE as SIZE
from helpers_dense import ids_of, panoptic_set, write_png
from PIL import Image

from vitgraft.data.check import check
from vitgraft.data.dense import examine
from vitgraft.data.recognise import read_dense, recognise, survey
from vitgraft.data.segmentations import sample


def test_every_category_is_a_class_to_segment(tmp_path):
    root = panoptic_set(tmp_path)
    assert recognise(root) == "panoptic"
    found = read_dense(root, "segment")
    assert found.classes == ("car", "person", "sky"), "by their ids"
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 2, "val": 2}
    (seen, _) = examine(found.split("train+val"), 3, 0)[::3]
    expected = {"car": 200, "person": 120 + 144, "sky": 300}
    assert dict(zip(found.classes, seen.pixels.tolist(), strict=False)) == expected
    assert seen.pixels[255] == SIZE[0] * SIZE[1] - sum(expected.values())
    assert any("pixels of no segment are 255" in note for note in found.notes)
    assert check(root, "segment").problems == []


def test_every_segment_is_an_object_of_a_thing_or_of_stuff(tmp_path):
    found = read_dense(panoptic_set(tmp_path), "panoptic")
    assert (found.classes, found.things) == (("car", "person", "sky"), ("car", "person"))
    split = found.split("train+val")
    assert split.things == (0, 1)
    assert split.objects[3].labels.tolist() == [1, 1, 2, 0]
    assert split.objects[3].area.tolist() == [120, 144, 300, 200]
    assert check(tmp_path).counts["val"]["sky"] == {"pictures": 2, "objects": 2}


def test_things_are_objects(tmp_path):
    root = panoptic_set(tmp_path)
    for task in ("instance", "detect"):
        found = read_dense(root, task)
        assert found.classes == ("car", "person")
        (objects, _) = found.splits["train"].objects
        assert objects.labels.tolist() == [1, 1, 0]
        assert objects.crowd.tolist() == [False, False, True]
        assert objects.boxes.tolist() == [[3, 5, 11, 20], [40, 18, 52, 30], [0, 30, 20, 40]]
        assert objects.area.tolist() == [120, 144, 200]
    rows, columns = np.arange(SIZE[0]), np.arange(SIZE[1])
    masks = read_dense(root, "instance").splits["train"].objects[0].segmentations
    for number, segmentation in zip((300, 70_000, 5), masks, strict=True):
        assert np.array_equal(sample(segmentation, SIZE, rows, columns), ids_of() == number)


def test_beside_instances_it_is_for_who_asks(tmp_path):
    root = panoptic_set(tmp_path)
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 6, 1, 6, 6]], "id": 1}
    content = {"images": [{"id": 1, "file_name": f"{1:012}.jpg"}], "annotations": [box]}
    content["categories"] = [{"id": 1, "name": "cat"}]
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    assert recognise(root) == "instance"
    assert read_dense(root, "instance").classes == ("cat",)
    assert read_dense(root, "segment").classes == ("car", "person", "sky")


def test_in_a_folder_of_each_split(tmp_path):
    """Without splits in the folders' names but those of the files; grey PNGs of small numbers."""
    root = panoptic_set(tmp_path, ("train", "val"))
    for path in (root / "annotations").glob("*/*.png"):
        ids = np.where(ids_of() == 300, 30, np.where(ids_of() == 70_000, 70, ids_of()))
        Image.fromarray(ids.astype(np.uint8)).save(path)
    for path in (root / "annotations").glob("*.json"):
        path.write_text(path.read_text().replace("70000", "70").replace("300", "30"))
    found = read_dense(root, "instance")
    assert found.splits["val"].objects[0].area.tolist() == [120, 144, 200]


def without(key):
    def change(content):
        del content["annotations"][0][key]
        return content

    return change


def unknown_category(content):
    content["annotations"][0]["segments_info"][0]["category_id"] = 99
    return content


@pytest.mark.parametrize("task", ["segment", "instance", "panoptic"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("file_name"), "its PNG None is in none of"),
        (unknown_category, "a segment has the id 300 and the category 99, but the categories are"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, task, change, said):
    root = panoptic_set(tmp_path, change=change)
    data, problems = survey(root, task)
    assert len(problems) == 2
    assert said in str(problems[0])
    assert len(data.splits["train"]) == 1, "the other picture is there"


def test_a_segment_that_no_row_names(tmp_path):
    ids = ids_of()
    ids[39, 59] = 12345
    (problem, *_) = check(panoptic_set(tmp_path, ids=ids), "segment").problems
    assert "x 59, y 39: the segment 12345 is not in the JSON" in str(problem)


def test_a_segment_without_a_pixel_and_a_png_of_another_size(tmp_path):
    root = panoptic_set(tmp_path, ids=ids_of() * (ids_of() != 300))
    _, problems = survey(root, "instance")
    assert "segment 300: no pixel of the PNG is of it" in str(problems[0])
    write_png(root / "annotations" / "panoptic_val2017" / f"{2:012}.png", np.zeros((4, 6), dtype=np.int64))
    assert "it has 6 x 4 pixels, but its picture 60 x 40" in str(survey(root, "instance")[1][-1])
    (root / "annotations" / "panoptic_val2017" / f"{2:012}.png").write_bytes(b"no picture")
    assert "cannot be read as a PNG of segments" in str(survey(root, "instance")[1][-1])
