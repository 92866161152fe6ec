"""Folders of masks as people bring them: each is read as what it is, and what was guessed is said.

Every maker writes a small set, of whose kind public reports tell that it was refused, or taken for something else.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_brought import masks, notes_of, pictures
from PIL import Image

from vitgraft.common.errors import RequestError
from vitgraft.data.check import check
from vitgraft.data.mask_values import load_mask
from vitgraft.data.recognise import read_dense, recognise

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
