"""`check` lists every problem of a data set, whatever its task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_dense import annotation, index_mask, noise, object_set, segment_set, shared
from PIL import Image

from vitgraft.common.errors import RequestError
from vitgraft.data.check import check


def lines(root: Path, task: str | None = None, **options: object) -> list[str]:
    found = check(root, task, **options).problems  # type: ignore[arg-type]
    assert all("\n" not in str(problem) for problem in found)
    return [str(problem).replace(str(root), "R") for problem in found]


@pytest.mark.parametrize("make", [segment_set, object_set])
def test_sound_sets_have_no_problem(tmp_path: Path, make) -> None:
    seen: list[tuple[int, int]] = []
    assert not check(make(tmp_path), workers=2, progress=lambda done, total: seen.append((done, total))).problems
    assert seen == [(3, 6), (6, 6)]


def test_every_problem_of_masks(tmp_path: Path) -> None:
    root = segment_set(tmp_path)
    (root / "masks" / "train" / "1.png").unlink()
    index_mask(root / "masks" / "val" / "0.png", 9, (40, 60))
    Image.new("RGB", (55, 43), "red").save(root / "masks" / "val" / "1.png")
    (root / "images" / "val" / "2.png").write_text("")
    index_mask(root / "masks" / "val" / "other.png")
    missing, orphan, value, colour, empty = lines(root)
    assert missing.startswith("R/images/train/1.png: the picture has no mask")
    assert orphan.startswith("R/masks/val/other.png: there is no picture")
    assert value.startswith("R/masks/val/0.png, x 0, y 0: the value is 9, one of 2400")
    assert colour.startswith("R/masks/val/1.png: its pixels are RGB")
    assert empty.startswith("R/images/val/2.png: it cannot be read as a picture (the file is empty)")


def test_every_problem_of_objects(tmp_path: Path) -> None:
    content = annotation(bbox=[0, 0, 0, 0])
    content["annotations"][1]["category_id"] = 5
    content["images"][2]["file_name"] = "gone.png"
    content["images"][1]["height"] = 50
    root = object_set(tmp_path, content)
    (root / "instances_val.json").write_text(json.dumps(content)[:300])
    found = lines(root, "instance")
    starts = [
        "R/instances_val.json: it cannot be read as JSON",
        "R/instances_train.json, image 3: its picture 'gone.png'",
        "R/instances_train.json, annotation 1: the box from x 0",
        "R/instances_train.json, annotation 2: it is of the category 5",
        "R/images/train/2.png: the picture is 60 x 40 (width x height), but the size in its annotation is 60 x 50",
    ]
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True))


def test_every_problem_of_class_folders(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        noise(tmp_path / "train" / name)
    assert lines(tmp_path) == []
    (tmp_path / "train" / "cat" / "2.png").write_text("text")
    (tmp_path / "train" / "dog" / "1.png").write_text("")
    assert [line.partition(":")[0] for line in lines(tmp_path)] == ["R/train/cat/2.png", "R/train/dog/1.png"]
    (tmp_path / "train" / "cow").mkdir()
    first, *rest = lines(tmp_path)
    assert "cow was taken for a class, but it holds no picture" in first
    assert [line.partition(":")[0] for line in rest] == ["R/train/cat/2.png", "R/train/dog/1.png"]


def test_every_problem_of_lists(tmp_path: Path) -> None:
    for i in range(3):
        noise(tmp_path / f"{i} a.png")
    (tmp_path / "1 a.png").write_text("text")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text("0 a.png cat\n1 a.png 1\ngone.png cat\n2 a.png cow\n\n2 a.png\n")
    (tmp_path / "val.txt").write_text("0 a.png 2\n")
    found = lines(tmp_path)
    assert [line.partition(":")[0] for line in found] == [
        "R/train.txt, line 3",
        "R/train.txt, line 4",
        "R/train.txt, line 6",
        "R/val.txt, line 1",
        "R/1 a.png",
    ]
    (tmp_path / "train.txt").write_text("0 a.png cat\n2 a.png 1\n")
    (tmp_path / "val.txt").write_text("0 a.png 1\n")
    (only,) = lines(tmp_path)
    assert "has the label 'cat'" in only or "'1'" in only  # names and numbers cannot be mixed


def test_folders_that_are_nothing(tmp_path: Path) -> None:
    assert len(lines(tmp_path)) == 1
    assert "neither class folders nor lists" in lines(tmp_path)[0]
    assert "not arranged so" in lines(tmp_path, "segment")[0]
    with pytest.raises(RequestError, match="there is no folder"):
        check(tmp_path / "a" / "b")


@pytest.mark.real
@pytest.mark.parametrize("name", ["bccd", "pennfudan"])
def test_real_sets_are_sound(name: str) -> None:
    assert lines(shared(name), workers=2) == []


def test_arrays_of_the_helpers_differ(tmp_path: Path) -> None:
    """Pictures of different seeds are different, or the tests of order would see nothing."""
    one, other = (np.asarray(Image.open(noise(tmp_path / f"{s}.png", seed=s))) for s in (0, 1))
    assert not np.array_equal(one, other)
