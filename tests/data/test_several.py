"""Pictures with several labels, or with a number, in the forms that people have."""

import csv
import json

import pytest
from PIL import Image

from vitgraft.common.errors import RequestError
from vitgraft.data import check as checking
from vitgraft.data import several
from vitgraft.data.recognise import recognise

NAMES = [f"p{i}.png" for i in range(10)]
TAGS = [["cat"], ["cat", "dog"], [], ["dog"], ["bird", "cat"], ["dog"], ["cat"], ["bird", "dog"], ["dog"], ["bird"]]
SIZES = [0.5, 1.25, 2.0, 3.5, 1.0, 2.25, 3.0, 0.75, 1.5, 2.5]


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(NAMES):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / "images" / name)
    return tmp_path


def table(file, rows, delimiter=","):
    with open(file, "w", newline="") as opened:
        csv.writer(opened, delimiter=delimiter).writerows(rows)


def cells(root):
    rows = [("file", "tags"), *((name, ";".join(own)) for name, own in zip(NAMES, TAGS, strict=True))]
    table(root / "labels.csv", rows)


def flags(root):
    names = ("bird", "cat", "dog")
    rows = [(name, *(int(tag in own) for tag in names)) for name, own in zip(NAMES, TAGS, strict=True)]
    table(root / "labels.tsv", [("image", *names), *rows], "\t")


def json_lines(root):
    rows = [{"file_name": f"images/{name}", "labels": own} for name, own in zip(NAMES, TAGS, strict=True)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("write", [cells, flags, json_lines])
def test_several_labels_of_a_picture(write, root):
    write(root)
    assert recognise(root) == "multilabel"
    data = several.read(root, "multilabel", seed=0)
    assert data.classes == ("bird", "cat", "dog")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 2}
    assert "2 of 10 pictures held out by seed 0; 3 labels" in data.layout
    found = {
        path.name: own for split in data.splits.values() for path, own in zip(split.paths, split.labels, strict=True)
    }
    index = {"bird": 0, "cat": 1, "dog": 2}
    assert found == {name: tuple(index[tag] for tag in own) for name, own in zip(NAMES, TAGS, strict=True)}
    again = several.read(root, "multilabel", seed=0)
    assert again.splits == data.splits


def test_a_split_whose_pictures_have_one_label_each(root):
    """What stands between labels is seen in all tables together."""
    table(root / "train.csv", [("file", "tags"), ("p0.png", "cat;dog"), ("p1.png", "dog"), ("p2.png", "cat")])
    table(root / "test.csv", [("file", "tags"), ("p3.png", "dog"), ("p4.png", "cat")])
    data = several.read(root, "multilabel")
    assert data.splits["test"].labels == ((1,), (0,))


def test_lists_of_several_labels(root):
    (root / "classes.txt").write_text("bird\ncat\ndog\n")
    (root / "train.txt").write_text("images/p0.png 1\nimages/p1.png 1 2\nimages/p4.png 0,1\n")
    (root / "test.txt").write_text("images/p7.png 0 2\n")
    assert recognise(root) == "multilabel"
    data = several.read(root, "multilabel")
    assert data.classes == ("bird", "cat", "dog")
    assert data.splits["train"].labels == ((1,), (1, 2), (0, 1))
    assert data.splits["test"].labels == ((0, 2),)


def test_a_number_for_a_picture(root):
    table(
        root / "train.csv", [("path", "age", "weight"), *((n, s, "a") for n, s in zip(NAMES[:7], SIZES, strict=False))]
    )
    table(
        root / "test.csv", [("path", "age", "weight"), *((n, s, "b") for n, s in zip(NAMES[7:], SIZES, strict=False))]
    )
    assert recognise(root) == "regress"
    data = several.read(root, "regress")
    assert data.classes == ("age",)
    assert data.splits["train"].labels == tuple(SIZES[:7])
    assert data.splits["train"].paths[0] == root / "images" / "p0.png"
    assert len(data.splits["test"]) == 3
    assert "train.csv: the columns weight were not read" in data.notes
    other = several.read(root, "regress", classes=("years",))  # of an adapter, whose column had another name
    assert other.classes == ("years",)


def test_a_list_of_numbers(root):
    (root / "train.txt").write_text("images/p0.png 0.5\nimages/p1.png -1e-1\n")
    assert recognise(root) == "regress"
    assert several.read(root, "regress").splits["train"].labels == (0.5, -0.1)


def test_what_stays_one_class(root):
    """A name with a comma, whole numbers, and a column of 0 and 1 beside one that is called label."""
    for rows in (
        [("path", "label"), *((name, ("dog, big", "cat")[i % 2]) for i, name in enumerate(NAMES))],
        [("path", "label"), *((name, i % 3) for i, name in enumerate(NAMES))],
        [("path", "label", "a", "b"), *((name, "xy"[i % 2], 0, 1) for i, name in enumerate(NAMES))],
    ):
        table(root / "labels.csv", rows)
        assert recognise(root) == "classify"


def test_whole_numbers_are_classes_unless_the_task_is_given(root):
    table(root / "labels.csv", [("path", "count"), *((name, i % 4) for i, name in enumerate(NAMES))])
    found = checking.check(root)
    assert found.task == "classify"
    assert any("--task regress takes them as amounts" in note for note in found.notes)
    assert several.read(root, "regress", val_share=0.5).classes == ("count",)


def test_what_cannot_be_read(root, tmp_path):
    with pytest.raises(RequestError, match="holds no such table; give a table with a path and a column of numbers"):
        several.read(root, "regress")
    table(root / "labels.csv", [("path", "name"), *((name, "x") for name in NAMES)])
    with pytest.raises(RequestError, match="columns name, none of which holds several labels"):
        several.read(root, "multilabel")
    with pytest.raises(RequestError, match="none holds numbers alone; call the one that is meant value"):
        several.read(root, "regress")
    table(root / "labels.csv", [("path", "a", "b"), *((name, 0.5, 1.5) for name in NAMES)])
    with pytest.raises(RequestError, match="the numbers are in a, b; call the one"):
        several.read(root, "regress")
    table(root / "labels.csv", [("path", "a"), *((name, 0.5) for name in NAMES)])
    with pytest.raises(RequestError, match="the same number, of which nothing can be learned"):
        several.read(root, "regress")
    cells(root)
    with pytest.raises(RequestError, match=r"has the label 'bird', but those known are cat, dog; .*"):
        several.read(root, "multilabel", classes=("cat", "dog"))
    table(root / "labels.csv", [("path", "tags"), ("p0.png", "a;b"), ("nope.png", "b;a")])
    with pytest.raises(RequestError, match=r"labels\.csv:3 names the picture 'nope\.png', but there is no such file"):
        several.read(root, "multilabel")


def test_check_counts_each_label(root):
    cells(root)
    found = checking.check(root)
    assert found.task == "multilabel"
    assert found.problems == []
    together = {tag: sum(found.counts[split][tag]["pictures"] for split in ("train", "val")) for tag in ("bird", "cat")}
    assert together == {"bird": 3, "cat": 4}
    (root / "images" / "p3.png").write_bytes(b"no picture")
    assert [problem.file.name for problem in checking.check(root).problems] == ["p3.png"]
