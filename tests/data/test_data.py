"""Pictures, preprocessing and layouts, on small real files."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitgraft.common.errors import RequestError, WorkError
from vitgraft.data import BadPicture, DataSet, Preprocess, open_picture, read, to_rgb

GREY = Preprocess(size=(4, 6), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))


def picture(path: Path, colour: tuple[int, int, int] = (200, 30, 40), size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def folder(root: Path, counts: dict[str, int]) -> Path:
    """`counts`: {"train/cat": 3} makes train/cat/0.png, 1.png, 2.png."""
    for name, count in counts.items():
        for index in range(count):
            picture(root / name / f"{index}.png")
    return root


def lists(root: Path, **contents: str) -> Path:
    for name, content in contents.items():
        (root / f"{name}.txt").write_text(content, encoding="utf-8")
    return root


def refusal(root: Path, **options: object) -> str:
    """The message of the RequestError that reading `root` raises: one line, three parts."""
    with pytest.raises(RequestError) as caught:
        read(root, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    return message


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


# --- pictures


def test_grey_and_one_bit_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (5, 4), 77).save(tmp_path / "grey.png")
    Image.new("1", (5, 4), 1).save(tmp_path / "bit.png")
    assert pixel(open_picture(tmp_path / "grey.png")) == (77, 77, 77)
    assert pixel(open_picture(tmp_path / "bit.png")) == (255, 255, 255)


def test_palette_with_a_transparent_entry_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    opened = open_picture(tmp_path / "palette.png")
    assert pixel(opened, 0, 0) == (255, 255, 255)
    assert pixel(opened, 1, 0) == (0, 0, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (90, 255), (90, 90, 90)),
    ],
)
def test_alpha_is_composited_on_white(
    tmp_path: Path, mode: str, colour: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    Image.new(mode, (4, 4), colour).save(tmp_path / "alpha.png")
    assert pixel(open_picture(tmp_path / "alpha.png")) == expected


def test_rgb_with_a_transparent_colour_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert pixel(open_picture(tmp_path / "key.png")) == (255, 255, 255)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red, green, blue = pixel(open_picture(tmp_path / "print.jpg"))
    assert red > 240
    assert max(green, blue) < 15


def test_16_bit_png_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    opened = open_picture(tmp_path / "deep.png")
    assert [pixel(opened, x)[0] for x in range(4)] == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0, 514, 65535]], dtype=np.float32), [0, 2, 255]),
        (np.array([[0, 257, 65535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 1, 4_000_000]], dtype=np.float32), [0, 0, 255]),
    ],
)
def test_integer_and_float_levels(levels: np.ndarray, expected: list[int], tmp_path: Path) -> None:
    Image.fromarray(levels).save(tmp_path / "levels.tiff")
    opened = open_picture(tmp_path / "levels.tiff")
    assert [pixel(opened, x)[0] for x in range(3)] == expected


def test_levels_that_are_not_finite_are_bad(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(BadPicture, match="not finite"):
        open_picture(tmp_path / "nan.tiff")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_exif_orientation_is_applied(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turn clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    opened = open_picture(tmp_path / "turned.png")
    assert opened.size == (4, 8)
    assert pixel(opened, 0, 0) == (255, 255, 255)
    assert pixel(opened, 0, 7) == (0, 0, 0)


def test_bad_files_say_why(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture at all")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    reasons = {
        "cut.jpg": "truncated",
        "text.jpg": "no picture format",
        "empty.jpg": "empty",
        "folder.jpg": "is a folder",
        "gone.jpg": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(BadPicture, match=reason) as caught:
            open_picture(tmp_path / name)
        assert isinstance(caught.value, WorkError)
        assert caught.value.path == tmp_path / name
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# --- preprocessing


def test_pixels_are_squashed_to_the_size(tmp_path: Path) -> None:
    path = picture(tmp_path / "wide.png", (10, 20, 30), size=(100, 7))
    pixels = GREY.load(path)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 4, 6))
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert GREY.pixels(Image.new("L", (3, 3), 9)).unique().tolist() == [9]


def test_the_resize_is_pillows_antialiased_one() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((6, 4), Image.Resampling.BICUBIC))
    assert np.array_equal(GREY.pixels(Image.fromarray(noise)).permute(1, 2, 0).numpy(), expected)


def test_normalise() -> None:
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 6)
    out = GREY.normalise(pixels)
    assert (out.dtype, out.shape) == (torch.float32, pixels.shape)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([-2.0, (128 / 255 - 0.5) / 0.5, 0.5]))


def test_preprocess_goes_through_json_and_prints_one_line() -> None:
    assert Preprocess.from_dict(json.loads(json.dumps(GREY.to_dict()))) == GREY
    line = str(GREY)
    assert "\n" not in line
    assert "4x6" in line
    assert "bicubic" in line


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
        ({"size": [224]}, "height, width"),
        ({"std": [1, 1, 0]}, "std above 0"),
        ({"colour": 1}, "size, mean, std"),
    ],
)
def test_preprocess_refuses(change: dict[str, object], word: str) -> None:
    with pytest.raises(RequestError, match=word):
        Preprocess.from_dict({**GREY.to_dict(), **change})


def test_to_rgb_leaves_rgb_alone() -> None:
    image = Image.new("RGB", (2, 2))
    assert to_rgb(image) is image


# --- layouts: folders


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_class_file(tmp_path: Path, val: str) -> None:
    counts = {"train/dog": 2, "train/cat": 3, f"{val}/cat": 1, f"{val}/dog": 1, "test/dog": 2}
    data = read(folder(tmp_path, counts))
    assert data.classes == ("cat", "dog")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 5, "val": 2, "test": 2}
    assert data.split("train").labels == (0, 0, 0, 1, 1)
    assert data.split("train").paths[0] == tmp_path / "train/cat/0.png"
    assert data.split("test").labels == (1, 1)
    assert "2 classes" in data.layout
    assert "train 5, val 2, test 2" in data.layout


def test_union_of_splits_and_unknown_splits(tmp_path: Path) -> None:
    data = read(folder(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1}))
    union = data.split("train+val")
    assert union.name == "train+val"
    assert union.labels == (0, 1, 0)
    assert data.split("val+train").labels == (0, 0, 1)
    with pytest.raises(RequestError, match=r"train, val; .*Did you mean 'val'"):
        data.split("vall")
    with pytest.raises(RequestError, match="train, val"):
        data.split("train+test")
    with pytest.raises(RequestError, match="none twice"):
        data.split("train+train")


def test_class_file_is_split_class_by_class(tmp_path: Path) -> None:
    data = read(folder(tmp_path, {"a": 20, "b": 10, "c": 2, "d": 1}))
    assert Counter(data.split("val").labels) == {0: 4, 1: 2, 2: 1}
    assert Counter(data.split("train").labels) == {0: 16, 1: 8, 2: 1, 3: 1}
    both = data.split("train+val").paths
    assert len(set(both)) == len(both) == 33
    assert list(data.split("train").paths) == sorted(data.split("train").paths)
    assert "20%" in data.layout
    assert "seed 0" in data.layout


def test_class_file_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    names = [f"{index:02d}.png" for index in range(20)]
    for root, order in (("one", names), ("two", names[::-1])):
        for name in order:
            picture(tmp_path / root / "a" / name)
            picture(tmp_path / root / "b" / name)

    def chosen(data: DataSet) -> list[str]:
        return [f"{path.parent.name}/{path.name}" for path in data.split("val").paths]

    first = chosen(read(tmp_path / "one"))
    assert chosen(read(tmp_path / "two")) == first == chosen(read(tmp_path / "one", classes=["b", "a"]))
    assert chosen(read(tmp_path / "one", seed=1)) != first
    assert "val" not in read(tmp_path / "one", val_share=0).splits
    assert len(read(tmp_path / "one", val_share=0.5).split("val")) == 20


def test_files_beside_the_class_folders_and_hidden_ones_are_no_pictures(tmp_path: Path) -> None:
    folder(tmp_path, {"train/a": 1, "train/b": 1, ".git": 1, "train/.cache": 1})
    for name in ("README.txt", "files.csv", "objects.json", "classes.txt", "train/notes.txt", "train/a/.DS_Store"):
        (tmp_path / name).write_text("text")
    (tmp_path / "train/a/odd.png").write_text("reported by decoding, not here")
    (tmp_path / "train/a/odd.txt").write_text("left out, and said")
    data = read(tmp_path)
    assert data.classes == ("a", "b")
    assert [path.name for path in data.split("train").paths] == ["0.png", "odd.png", "0.png"]
    assert any("odd.txt left out" in note for note in data.notes)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert read(folder(tmp_path, {"train": 2, "plane": 2})).classes == ("plane", "train")


def test_classes_of_an_adapter_give_the_labels(tmp_path: Path) -> None:
    root = folder(tmp_path, {"test/cat": 1, "test/dog": 2})
    data = read(root, classes=["zebra", "dog", "cat"])
    assert data.classes == ("zebra", "dog", "cat")
    assert data.split("test").labels == (2, 1, 1)
    message = refusal(root, classes=["cat", "dogs"])
    assert "'dog'" in message
    assert "Did you mean 'dogs'" in message


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "flowers", {"rose": 2, "tulip": 2})
    assert "Did you mean 'flowers'" in refusal(tmp_path / "flower")
    assert "there is no folder" in refusal(tmp_path / "nowhere" / "flowers")
    assert "that is a file" in refusal(root / "rose/0.png")
    assert "validation share" in refusal(root, val_share=1.0)
    (root / "lily").mkdir()
    message = refusal(root)
    assert "lily" in message
    assert "holds no picture" in message


def test_nothing_is_recognised(tmp_path: Path) -> None:
    picture(tmp_path / "loose" / "0.png")
    assert "CLASS/picture" in refusal(tmp_path / "loose")
    assert "no class folders inside test, train" in refusal(folder(tmp_path / "flat", {"train": 2, "test": 1}))
    deep = read(folder(tmp_path / "deep", {"set/train/a": 1, "set/train/b": 1}))
    assert deep.classes == ("a", "b")
    assert "holds the folder set alone" in deep.notes[0]


def test_training_pictures_must_show_two_classes_and_all_of_them(tmp_path: Path) -> None:
    assert "only the class 'a'" in refusal(folder(tmp_path / "one", {"train/a": 2}))
    assert "only the split val and test" in refusal(folder(tmp_path / "none", {"val/a": 1, "test/a": 1}))
    unseen = folder(tmp_path / "unseen", {"train/cat": 1, "train/dog": 1, "val/cats": 1})
    assert "'cats', but training shows cat, dog" in refusal(unseen)
    both = folder(tmp_path / "both", {"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1})
    assert "both mean the split 'val'" in refusal(both)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 1, "b": 1})
    (root / "a").chmod(0)
    try:
        assert "permission" in refusal(root)
    finally:
        (root / "a").chmod(0o755)


# --- layouts: lists


def test_lists_with_class_names_and_spaces(tmp_path: Path) -> None:
    for name in ("my cat.png", "dog.png", "cat  2.png"):
        picture(tmp_path / "im" / name)
    lists(tmp_path, train="im/my cat.png cat\r\n\r\nim/dog.png\tdog\r\n", test="\ufeffim/cat  2.png   cat\n")
    data = read(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.split("train").paths == (tmp_path / "im/my cat.png", tmp_path / "im/dog.png")
    assert data.split("test").paths == (tmp_path / "im/cat  2.png",)
    assert data.split("train").labels == (0, 1)
    assert data.layout.startswith("lists train.txt, test.txt; 2 classes; pictures: train 2, test 1")


def test_classes_txt_names_indices_in_order(tmp_path: Path) -> None:
    folder(tmp_path, {"im": 3})
    lists(tmp_path, train="im/0.png 1\nim/1.png 0\n", test="im/2.png 2\n", classes="zebra\n\nant\nbee\n")
    data = read(tmp_path)
    assert data.classes == ("zebra", "ant", "bee")
    assert data.split("train").labels == (1, 0)
    assert "3 classes (1 without a training picture)" in data.layout
    assert read(tmp_path, classes=["ant", "bee", "zebra"]).split("test").labels == (1,)


def test_integer_labels_keep_their_value_and_digits_may_be_names(tmp_path: Path) -> None:
    folder(tmp_path, {"im": 3})
    lists(tmp_path, train="im/0.png 2\nim/1.png 0\nim/2.png 2\n")
    assert read(tmp_path).classes == ("0", "1", "2")
    assert read(tmp_path).split("train").labels == (2, 0, 2)
    assert read(tmp_path, classes=["a", "b", "c"]).split("train").labels == (2, 0, 2)
    lists(tmp_path, train="im/0.png 3\nim/1.png 1\n", classes="1\n3\n")
    assert read(tmp_path).split("train").labels == (1, 0)


def test_vtab_lists(tmp_path: Path) -> None:
    folder(tmp_path, {"images": 5})
    lists(
        tmp_path,
        train800="images/0.png 0\nimages/1.png 1\n",
        val200="images/2.png 2\n",
        train800val200="images/2.png 2\nimages/0.png 0\nimages/1.png 1\n",
        test="images/3.png 3\nimages/4.png 0\n",
    )
    data = read(tmp_path)  # classes 2 and 3 are not trained: VTAB-1k has such tasks
    assert data.split("train+val").labels == (0, 1, 2)
    assert data.classes == ("0", "1", "2", "3")
    assert "2 without a training picture" in data.layout
    lists(tmp_path, train800val200="images/2.png 2\nimages/0.png 0\n")
    assert "1 of their 3 not in it" in refusal(tmp_path)
    lists(tmp_path, train="images/0.png 0\n")
    assert "both mean the split 'train'" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"train": "im/0.png 0\n\nim/1.png\n"}, "train.txt:3 reads 'im/1.png'"),
        ({"train": "im/0.png 0\nim/a b.png\n"}, "train.txt:2 reads 'im/a b.png'"),
        ({"train": "im/0.png 0\nim/gone.png 1\n"}, "train.txt:2 names the picture 'im/gone.png'"),
        ({"train": "im/0.png 0\nim/1.png 2\n", "classes": "a\nb\n"}, "train.txt:2 has the label '2'"),
        ({"train": "im/0.png 0\nim/1.png -1\n"}, "train.txt:2 has the label '-1'"),
        ({"train": "im/0.png cat\nim/1.png dig\n", "classes": "cat\ndog\n"}, "Did you mean 'dog'"),
        ({"train": "im/0.png a\nim/1.png b\n", "val": "im/0.png c\n"}, "holds the class 'c', but training shows a, b"),
        ({"train": "im/0.png 0\nim/1.png 1\n", "val": "im/0.png 2\n"}, "holds the class '2'"),
        ({"train": "im/0.png a\nim/1.png a\n"}, "only the class 'a'"),
        ({"train": "\n"}, "is empty"),
        ({"test": "im/0.png a\n"}, "only the split test"),
        ({"train": "im/0.png 0\n", "classes": "a\nb\na\n"}, "classes.txt:3 names the class 'a', but line 1 does"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, contents: dict[str, str], expected: str) -> None:
    folder(tmp_path, {"im": 2})
    picture(tmp_path / "im" / "a b.png")
    assert expected in refusal(lists(tmp_path, **contents))


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"im/\xff.png 0\n")
    assert "UTF-8" in refusal(tmp_path)


def test_a_list_with_a_class_the_adapter_does_not_know(tmp_path: Path) -> None:
    folder(tmp_path, {"im": 1})
    assert "'bird'" in refusal(lists(tmp_path, test="im/0.png bird\n"), classes=["cat", "dog"])
    lists(tmp_path, classes="cat\nbird\n")
    assert "holds the class 'bird', but the adapter knows cat, dog" in refusal(tmp_path, classes=["cat", "dog"])
