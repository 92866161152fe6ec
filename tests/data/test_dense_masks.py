"""Reading pictures with index masks, ADE20K as it is distributed, and the masks of single objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_dense import index_mask, noise, polygon, problems_of, segment_set, shared
from PIL import Image

from vitgraft.common.errors import RequestError
from vitgraft.data.mask_values import BadTruth, load_mask
from vitgraft.data.recognise import read_dense, recognise
from vitgraft.data.segmentations import fault_of, sample


def test_our_layout(tmp_path: Path) -> None:
    root = segment_set(tmp_path)
    assert recognise(root) == "segment"
    data = read_dense(root, "segment")
    assert data.classes == ("class 0", "class 1", "class 2")
    assert list(data.splits) == ["train", "val"]
    both = data.split("train+val")
    assert [path.parent.name for path in both.paths] == ["train"] * 3 + ["val"] * 3
    for picture, mask in zip(both.paths, both.masks, strict=True):
        assert mask == root / "masks" / picture.parent.name / picture.name
    assert "train 3, val 3" in data.layout
    with pytest.raises(RequestError, match="'tset' was asked for"):
        data.split("tset")


def ade_set(root: Path) -> Path:
    for split, count in (("training", 2), ("validation", 1)):
        for i in range(count):
            noise(root / "images" / split / f"ADE_{i}.jpg")
            index_mask(root / "annotations" / split / f"ADE_{i}.png", np.arange(60) % 4)
    rows = ["1\t0.1576\t11664\t1172\twall", "2 \t0.1072\t6046\t612\tbuilding, edifice", "3\t0.0878\t8265\t796\tsky "]
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("inner", ["", "ADEChallengeData2016"])
def test_ade20k_as_distributed(tmp_path: Path, inner: str) -> None:
    ade_set(tmp_path / inner)
    assert recognise(tmp_path) == "segment"
    data = read_dense(tmp_path, "segment")
    assert data.classes == ("wall", "building", "sky")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2, "val": 1}
    coding = data.split("train+val").coding
    labels = load_mask(data.splits["train"].masks[0], 3, coding)
    assert labels[0, :5].tolist() == [255, 0, 1, 2, 255]
    path = index_mask(tmp_path / "four.png", np.arange(60) % 5)
    with pytest.raises(BadTruth, match=r"x 4, y 0: the value is 4, .* are 1 to 3, and 0 is ignored"):
        load_mask(path, 3, coding)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_keep_their_numbers(tmp_path: Path, mode: str) -> None:
    values = np.random.default_rng(0).choice([0, 1, 2, 255], (40, 60))
    assert np.array_equal(load_mask(index_mask(tmp_path / "m.png", values, mode=mode), 3), values)


def test_palettes_of_few_bits_and_one_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4, (40, 60))
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 9, 9, 9, 99, 0, 0, 0, 99, 0])
    image.save(tmp_path / "two.png", bits=2)
    assert np.array_equal(load_mask(tmp_path / "two.png", 4), values)
    Image.fromarray(values > 1).save(tmp_path / "one.png")
    assert np.array_equal(load_mask(tmp_path / "one.png", 2), values > 1)


def test_a_value_outside_the_classes_has_its_place(tmp_path: Path) -> None:
    values = np.zeros((40, 60))
    values[7, 11] = values[30, 2] = 3
    path = index_mask(tmp_path / "m.png", values)
    with pytest.raises(BadTruth) as caught:
        load_mask(path, 3)
    problem = caught.value.problem
    assert (problem.file, problem.place) == (path, "x 11, y 7")
    assert "value is 3, one of 2 such pixels, but the 3 classes are 0 to 2, and 255 is ignored" in problem.sentence


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_in_colour_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (60, 40), "red").save(tmp_path / "m.png")
    with pytest.raises(BadTruth, match=f"pixels are {mode}.*convert it"):
        load_mask(tmp_path / "m.png", 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16", "I"])
def test_numbers_in_other_modes_are_numbers(tmp_path: Path, mode: str) -> None:
    Image.new("L", (60, 40), 2).convert(mode).save(tmp_path / "m.tif")
    assert (load_mask(tmp_path / "m.tif", 3) == 2).all()


def test_a_cut_mask_is_refused(tmp_path: Path) -> None:
    path = index_mask(tmp_path / "m.png", np.random.default_rng(0).integers(0, 3, (40, 60)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadTruth, match="cannot be read as a mask"):
        load_mask(path, 3)


def test_what_does_not_pair_is_named(tmp_path: Path) -> None:
    root = segment_set(tmp_path)
    (root / "masks" / "train" / "1.png").unlink()
    noise(root / "images" / "val" / "2.jpg")
    first, second = problems_of(root, "segment")
    assert first.file == root / "images" / "train" / "1.png"
    assert "no mask" in first.sentence
    assert second.file.parent == root / "images" / "val"
    assert "same mask, 2.png" in second.sentence
    with pytest.raises(RequestError, match=r"1\.png: .*check.* lists all 2 problems, --skip-bad"):
        read_dense(root, "segment")
    data = read_dense(root, "segment", skip_bad=True)
    assert [path.name for path in data.split("train").paths] == ["0.png", "2.png"]
    assert "2 problems left out" in data.layout


def test_classes_of_masks(tmp_path: Path) -> None:
    root = segment_set(tmp_path)
    names = ("class 0", "class 1", "class 2")
    assert read_dense(root, "segment", classes=names).classes == names
    with pytest.raises(RequestError, match="but the adapter was trained on"):
        read_dense(root, "segment", classes=names[::-1], skip_bad=True)
    (root / "classes.txt").unlink()
    assert read_dense(root, "segment", classes=names).classes == names
    assert read_dense(root, "segment").classes == ("0", "1", "2")
    (root / "classes.txt").write_text("".join(f"{k}\n" for k in range(256)))
    with pytest.raises(RequestError, match="but here are 256"):
        read_dense(root, "segment")


def test_training_needs_a_split(tmp_path: Path) -> None:
    root = segment_set(tmp_path)
    (root / "images" / "train").rename(root / "images" / "test")
    (root / "masks" / "train").rename(root / "masks" / "test")
    with pytest.raises(RequestError, match="only val, test; add the split train"):
        read_dense(root, "segment")
    assert list(read_dense(root, "segment", classes=("class 0", "class 1", "class 2")).splits) == ["val", "test"]


# --- masks of single objects


def random_mask(seed: int, size: tuple[int, int] = (37, 53)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    blobs = generator.random((5, 6)) < generator.uniform(0.05, 0.95)
    return np.asarray(Image.fromarray(blobs).resize(size[::-1], Image.Resampling.NEAREST))


def forms(mask: np.ndarray) -> list[dict]:
    """The run lengths of a mask: as text, as bytes, as numbers."""
    pycocotools = pytest.importorskip("pycocotools.mask")
    encoded = pycocotools.encode(np.asfortranarray(mask, dtype=np.uint8))
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(np.r_[0, flat]))
    counts = np.diff(np.r_[0, edges, flat.size]).tolist()
    size = list(mask.shape)
    return [encoded, {"size": size, "counts": encoded["counts"].decode()}, {"size": size, "counts": counts}]


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_in_every_form(seed: int) -> None:
    mask = random_mask(seed)
    for given in forms(mask):
        assert fault_of(given, mask.shape) is None
        every = [np.arange(n) for n in mask.shape]
        assert np.array_equal(sample(given, mask.shape, *every), mask)
        rows, columns = np.array([36, 0, 5, 5]), np.array([0, 0, 20, 21, 52])
        assert np.array_equal(sample(given, mask.shape, rows, columns), mask[np.ix_(rows, columns)])


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks(value: bool) -> None:
    mask = np.full((37, 53), value)
    for given in forms(mask):
        assert fault_of(given, mask.shape) is None
        assert np.array_equal(sample(given, mask.shape, np.arange(37), np.arange(53)), mask)


def test_polygons_are_pycocotools_polygons() -> None:
    pycocotools = pytest.importorskip("pycocotools.mask")
    size = (40, 60)
    generator = np.random.default_rng(0)
    for _ in range(20):
        given = [
            (generator.random((generator.integers(3, 9), 2)) * [70, 50] - 5).flatten().tolist()
            for _ in range(generator.integers(1, 3))
        ]
        assert fault_of(given, size) is None
        expected = pycocotools.decode(pycocotools.merge(pycocotools.frPyObjects(given, *size)))
        assert np.array_equal(sample(given, size, np.arange(40), np.arange(60)), expected)


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([], "no segmentation"),
        (None, "no segmentation"),
        ([[1, 2, 3, 4]], "has 2 points, but needs x, y of 3"),
        ([[0, 0, 9, 0, 9, 9], [1, 2, 3, 4, 5]], "has 2.5 points"),
        ([["a", 0, 9, 0, 9, 9]], "something else than points"),
        ([[0, 0, 1e9, 0, 9, 9]], "point at x 1e+09, far from its picture of 60 x 40"),
        ([[0, 0, float("nan"), 0, 9, 9]], "point at x nan"),
        ({"size": [60, 40], "counts": [2400]}, "a size of [60, 40] (h, w), but the picture has [40, 60]"),
        ({"size": [40, 60], "counts": [2400, 1]}, "hold 2401 pixels, but the picture has 2400"),
        ({"size": [40, 60], "counts": [2500, -100]}, "hold 2400 pixels"),
        ({"size": [40, 60], "counts": "`"}, "hold no lengths"),
        ({"size": [40, 60], "counts": "é"}, "hold"),
        ({"size": [40, 60], "counts": "o" * 40 + "0"}, "hold no lengths"),
        ({"size": [40, 60]}, "hold no lengths"),
        ({"counts": [2400]}, "a size of None"),
    ],
)
def test_bad_segmentations(segmentation: object, said: str) -> None:
    fault = fault_of(json.loads(json.dumps(segmentation)), (40, 60))
    assert fault is not None
    assert said in fault
    assert "; " in fault


def test_a_mask_of_a_large_picture_is_never_made() -> None:
    """100,000 x 100,000 pixels would be 10 GB."""
    size = (100_000, 100_000)
    given = {"size": list(size), "counts": [5_000_050_000, 100, 4_999_949_900]}
    assert fault_of(given, size) is None
    found = sample(given, size, np.array([49_999, 50_000, 50_099, 50_100]), np.array([49_999, 50_000, 50_001]))
    assert found.tolist() == [[False] * 3, [False, True, False], [False, True, False], [False] * 3]
    given = polygon(10, 10, 99_000, 50)
    assert sample(given, size, np.array([30, 80]), np.array([5, 50_000])).tolist() == [[False, True], [False, False]]


@pytest.mark.real
@pytest.mark.parametrize("name", ["camvid", "pets3"])
def test_real_masks(name: str) -> None:
    data = read_dense(shared(name), "segment")
    assert list(data.splits) == ["train", "val", "test"]
    seen = {int(v) for mask in data.split("val").masks[:20] for v in np.unique(load_mask(mask, len(data.classes)))}
    assert 255 in seen
    assert len(seen) > 2
