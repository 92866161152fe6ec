"""Folders of classes as people bring them: each is read as what it is, and what was guessed is said.

Every maker writes a small set, of whose kind public reports tell that it was refused, or taken for something else.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers_brought import classes, masks, notes_of, pictures
from PIL import Image

from vitgraft.common.errors import RequestError
from vitgraft.data import read
from vitgraft.data.check import check
from vitgraft.data.pictures import measured_levels, open_picture
from vitgraft.data.recognise import recognise


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
        (
            'filename,label\n0.png,"a\n' + "1.png,b\n" * 20_000,
            r"labels.csv:\d+ cannot be read .* quotation marks that are opened and not closed",
        ),
    ],
    ids=lambda text: text[:20],
)
def test_tables_that_cannot_be_meant(tmp_path: Path, rows: str, said: str) -> None:
    pictures(tmp_path / "images", 2)
    (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(RequestError, match=said):
        read(tmp_path)


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pictures(tmp_path / "images", 2)
    (tmp_path / "train.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(RequestError, match=r"train\.parquet cannot be read as Parquet \(.+\): write it again"):
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
