"""Whatever stands in the files of a data set, a reader ends in a data set or in an error of ours.

VITGRAFT_FUZZ=2000 pytest tests/data/test_fuzz.py      # so many inputs for each form, instead of a hundred
"""

from __future__ import annotations

import copy
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers_brought import XML, coco_of
from helpers_dense import noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitgraft.common.errors import VitgraftError
from vitgraft.data.check import check
from vitgraft.data.recognise import recognise, survey

EXAMPLES = int(os.environ.get("VITGRAFT_FUZZ", "100"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 100,
    suppress_health_check=list(HealthCheck),
    database=None,
)

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["0", "1", "1e400", "nan", "../0.png", "/etc/passwd", "0.png", "\x00", "\ud800", "9" * 400]),
)
anything = st.recursive(
    odd, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def read(root: Path) -> None:
    """Everything that a command does before it decodes pictures; only our own errors may come of it."""
    said = []
    for task in ("", "classify", "segment", "detect", "instance"):
        try:
            said += check(root, task or recognise(root)).problems
        except VitgraftError as error:
            said.append(error)
    assert all("\n" not in str(each) for each in said)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return noise(tmp_path_factory.mktemp("picture") / "0.png", (40, 60)).read_bytes()


def folder(picture: bytes, files: dict[str, bytes]) -> tempfile.TemporaryDirectory[str]:
    made = tempfile.TemporaryDirectory()
    for name, content in files.items():
        path = Path(made.name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture if content is None else content)
    return made


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """The way to every value of a JSON document."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


SOUND = coco_of([Path("0.png"), Path("1.png")], segmentation=[[5, 6, 25, 6, 25, 16, 5, 16]])
SOUND["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [100, 300, 2000]}


ODD = (None, True, -1, 0, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "7", "\x00", [], [[]], {}, {"a": 1})


def test_every_value_of_coco_is_replaced_by_every_odd_one(picture):
    """Chance takes long to come to some: a run length beyond 64 bits is one of 700."""
    pictures = {"images/train/0.png": None, "images/train/1.png": None}
    for *way, last in (place for place in places(SOUND) if place):
        for value in ODD:
            content = copy.deepcopy(SOUND)
            node: Any = content
            for key in way:
                node = node[key]
            node[last] = value
            with folder(picture, {**pictures, "instances_train.json": json.dumps(content).encode()}) as root:
                said = []
                for task in ("detect", "instance"):
                    try:
                        said += survey(Path(root), task)[1]
                    except VitgraftError as error:
                        said.append(error)
                assert all("\n" not in str(each) for each in said)


@fuzzed
@given(st.data())
def test_coco(picture, data):
    content = copy.deepcopy(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        every = [place for place in places(content) if place]
        numbers = [place for place in every if {"counts", "size", "bbox", "segmentation"} & {*place}] or every
        *way, last = data.draw(st.sampled_from(every) | st.sampled_from(numbers))
        node = content
        for key in way:
            node = node[key]
        node[last] = data.draw(anything)
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    pictures = {"images/train/0.png": None, "images/train/1.png": None}
    with folder(picture, {**pictures, "instances_train.json": text}) as root:
        read(Path(root))


PANOPTIC = {
    "images": [{"id": 1, "file_name": "0.png", "height": 40, "width": 60}],
    "annotations": [
        {"image_id": 1, "file_name": "0.png", "segments_info": [{"id": 1, "category_id": 3, "iscrowd": 0}] * 2}
    ],
    "categories": [{"id": 3, "name": "cat", "isthing": 1}, {"id": 4, "name": "sky", "isthing": 0}],
}


@pytest.mark.parametrize("way", [place for place in places(PANOPTIC) if place], ids=str)
def test_every_value_of_a_panoptic_file_is_replaced_by_every_odd_one(picture, way):
    segments = io.BytesIO()
    Image.new("RGB", (60, 40), (1, 0, 0)).save(segments, "PNG")
    for value in ODD:
        content = copy.deepcopy(PANOPTIC)
        node: Any = content
        for key in way[:-1]:
            node = node[key]
        node[way[-1]] = value
        files = {"train/0.png": None, "annotations/panoptic_train/0.png": segments.getvalue()}
        with folder(picture, {**files, "annotations/panoptic_train.json": json.dumps(content).encode()}) as root:
            said = []
            for task in ("segment", "instance"):
                try:
                    said += check(root, task).problems
                except VitgraftError as error:
                    said.append(error)
            assert all("\n" not in str(each) for each in said)


number = st.one_of(
    st.floats(), st.floats(0, 1), st.integers(-2, 5), st.sampled_from(["0", "1", "cat", "1e999", "-", "0x1", ""])
)


@fuzzed
@given(
    st.lists(st.lists(number, max_size=9).map(lambda row: " ".join(map(str, row))), max_size=4),
    st.one_of(anything.map(lambda names: json.dumps({"names": names})), st.text(max_size=40)),
)
def test_yolo(picture, lines, yaml):
    text = "\n".join(["0 0.5 0.5 0.2 0.2", *lines]).encode("utf-8", "replace")
    files = {"images/train/0.png": None, "labels/train/0.txt": text, "data.yaml": yaml.encode("utf-8", "replace")}
    with folder(picture, files) as root:
        read(Path(root))


@fuzzed
@given(st.data())
def test_voc(picture, data):
    cut = data.draw(st.integers(0, len(XML)))
    more = data.draw(st.one_of(st.text(max_size=20), st.sampled_from(["nan", "<object/>", "&x;", "1e999", "-5"])))
    head = data.draw(st.sampled_from(["", '<?xml version="1.0" encoding="klingon"?>', '<?xml encoding="utf-16"?>']))
    text = head + XML[:cut] + more + XML[cut + data.draw(st.integers(0, 12)) :]
    lists = data.draw(st.text("01 \n-a", max_size=20))
    files = {"JPEGImages/0.png": None, "Annotations/0.xml": text.encode("utf-8", "replace")}
    with folder(picture, {**files, "ImageSets/Main/train.txt": lists.encode()}) as root:
        read(Path(root))
    with folder(picture, {"0.png": None, "0.xml": text.encode("utf-8", "replace")}) as root:
        read(Path(root))


@fuzzed
@given(st.text(max_size=60), st.text(max_size=60), st.binary(max_size=30))
def test_lists_tables_and_names(picture, lines, classes, junk):
    text = f"a/0.png 0\n{lines}".encode("utf-8", "replace")
    with folder(
        picture, {"a/0.png": None, "train.txt": text, "classes.txt": classes.encode("utf-8", "replace")}
    ) as root:
        read(Path(root))
    table = f"path,label\na/0.png,x\n{lines}".encode("utf-8", "replace")
    with folder(picture, {"a/0.png": None, "labels.csv": table}) as root:
        read(Path(root))
    with folder(picture, {"a/0.png": None, "labels.csv": junk, "rows.jsonl": junk, "train.txt": junk}) as root:
        read(Path(root))


@fuzzed
@given(st.binary(max_size=60), st.integers(0, 255), st.text(max_size=30))
def test_masks(picture, junk, value, classes):
    from io import BytesIO

    from PIL import Image

    whole = BytesIO()
    Image.new("L", (60, 40), value).save(whole, "PNG")
    files = {"images/train/0.png": None, "images/train/1.png": None, "masks/train/0.png": whole.getvalue()}
    files |= {"masks/train/1.png": whole.getvalue()[:30] + junk, "classes.txt": classes.encode("utf-8", "replace")}
    with folder(picture, files) as root:
        read(Path(root))
