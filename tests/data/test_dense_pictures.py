"""A dense split in batches: checked once, grouped by size, the same for any number of workers."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_dense import (
    CANVAS,
    annotation,
    coco,
    index_mask,
    noise,
    object_set,
    pictures,
    same,
    segment_set,
    shared,
)
from PIL import Image

from vitgraft.common.errors import RequestError, WorkError
from vitgraft.data.augment import Augment
from vitgraft.data.dense import DensePictures
from vitgraft.data.objects import Objects
from vitgraft.data.preprocess import Preprocess
from vitgraft.data.recognise import read_dense
from vitgraft.data.truth import Coding, DenseSplit

pytestmark = pytest.mark.usefixtures("workers_at_once")


def test_batches_of_masks(tmp_path: Path) -> None:
    found = pictures(segment_set(tmp_path), "segment")
    assert found.sizes == [(40, 60), (43, 55), (46, 50)]
    (batch,) = found.batches([[2, 0]], epoch=0)
    assert (batch.pixels.dtype, tuple(batch.pixels.shape)) == (torch.uint8, (2, 3, 64, 96))
    assert (batch.targets.dtype, tuple(batch.targets.shape)) == (torch.uint8, (2, 64, 96))
    assert set(batch.targets.unique().tolist()) <= {0, 1, 2, 255}
    assert batch.indices.tolist() == [2, 0]
    for mask, (h, w) in zip(batch.targets, batch.sizes, strict=True):
        assert (mask[h:] == 255).all()
        assert (mask[:, w:] == 255).all()
    truth = found.truth(1)
    assert isinstance(truth, np.ndarray)
    assert np.array_equal(truth, np.asarray(Image.open(tmp_path / "masks" / "train" / "1.png")))


@pytest.mark.parametrize("task", ["detect", "instance"])
def test_batches_of_objects(tmp_path: Path, task: str) -> None:
    found = pictures(object_set(tmp_path, annotation(iscrowd=1)), task)
    ((batch),) = found.batches([[0, 1, 2]])
    assert [len(target["boxes"]) for target in batch.targets] == [1, 1, 0]  # a crowd is no target
    assert batch.sizes == [(64, 96)] * 3
    assert [set(target) for target in batch.targets] == [
        {"boxes", "labels"} | ({"masks"} if task == "instance" else set())
    ] * 3
    np.testing.assert_allclose(batch.targets[0]["boxes"], [[48, 3.2, 68, 51.2]], rtol=1e-6)
    truth = found.truth(0)
    assert isinstance(truth, Objects)
    assert len(truth) == 2  # the evaluation knows the crowd


@pytest.mark.parametrize("task", ["segment", "instance"])
def test_workers_change_nothing_and_epochs_do(tmp_path: Path, task: str) -> None:
    root = (segment_set if task == "segment" else object_set)(tmp_path)
    order = [[2, 0], [1]]
    alone, helped = pictures(root, task), pictures(root, task, workers=2)
    for epoch in (0, 1):
        assert same(list(alone.batches(order, epoch=epoch)), list(helped.batches(order, epoch=epoch)))
    first = list(alone.batches(order, epoch=0))
    assert not same(first, list(alone.batches(order, epoch=1)))
    ((last),) = alone.batches([[1]], epoch=0)  # by its index, whatever is beside it and before it
    assert same([last], [first[1]])
    other = pictures(root, task, augment=Augment(seed=4))
    assert not same(first, list(other.batches(order, epoch=0)))


def test_each_picture_has_a_view_of_its_own(tmp_path: Path) -> None:
    """They are of one size, so that one view for all would show as much of each."""
    found = pictures(object_set(tmp_path), "detect")
    batches = [batch for epoch in range(8) for batch in found.batches([[0, 1, 2]], epoch=epoch)]
    assert any(len(set(batch.sizes)) == 3 for batch in batches)


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    list(pictures(segment_set(tmp_path), "segment", workers=2).batches([[0]], epoch=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_batches_are_of_one_size(tmp_path: Path) -> None:
    sizes = [(40, 60), (60, 40), (40, 61), (20, 20), (40, 59), (61, 40), (40, 60)]
    for i, size in enumerate(sizes):
        noise(tmp_path / "images" / "train" / f"{i}.png", size)
        index_mask(tmp_path / "masks" / "train" / f"{i}.png", 0, size)
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    found = pictures(tmp_path, "segment")
    assert found.even_batches(3) == [[0, 2, 4], [6], [1, 3, 5]]
    for batch in found.batches(found.even_batches(3)):
        assert all(side % 32 == 0 for side in batch.pixels.shape[2:])
        for index, pixels in zip(batch.indices.tolist(), batch.pixels, strict=True):
            ((alone),) = found.batches([[index]])
            assert torch.equal(alone.pixels[0], pixels)
    shares = [found.even_batches(3, rank=rank, world=2) for rank in (0, 1)]
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(7))
    assert all(batch for share in shares for batch in share)


def spoil(root: Path) -> None:
    """Five ways in which a picture and its mask fail each other; the sixth pair is sound."""
    images, masks = root / "images" / "train", root / "masks" / "train"
    (images / "0.png").write_text("no picture")
    index_mask(masks / "1.png", 0, size=(43, 56))
    index_mask(masks / "2.png", 3, size=(46, 50))
    Image.new("RGB", (45, 49), "red").save(masks / "3.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 52)).save(images / "4.png", exif=exif)


SAID = [
    r"0\.png \(it cannot be read as a picture",
    r"1\.png \(the picture is 55 x 43 \(width x height\), but its mask is 56 x 43; make",
    r"2\.png \(at x 0, y 0: the value is 3",
    r"3\.png \(its pixels are RGB",
    r"4\.png \(the picture is 52 x 40 \(width x height\) upright, by its EXIF orientation, but its mask is 40 x 52",
]


def test_bad_pairs_are_named_before_any_training(tmp_path: Path) -> None:
    root = segment_set(tmp_path, count=6)
    spoil(root)
    with pytest.raises(WorkError) as caught:
        pictures(root, "segment")
    message = str(caught.value)
    assert "\n" not in message
    assert "6 pictures of split 'train'" in message
    assert message.endswith("or leave them out with --skip-bad")
    for said in SAID:
        with pytest.raises(WorkError, match=said):
            raise caught.value


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_bad_leaves_them_out(tmp_path: Path, workers: int) -> None:
    root = segment_set(tmp_path, count=6)
    spoil(root)
    seen: list[tuple[int, int]] = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    found = pictures(root, "segment", workers=workers, skip_bad=True, progress=progress)
    assert seen[-1] == (6, 6)
    assert [path.name for path, _ in found.skipped] == [f"{i}.png" for i in range(5)]
    assert [path.name for path in found.paths] == ["5.png"]
    assert len(found) == len(found.split) == len(found.sizes) == 1
    (root / "images" / "train" / "5.png").unlink()
    with pytest.raises(WorkError, match=r"5\.png: it cannot be read as a picture \(no such file"):
        list(found.batches([[0]]))


def test_skipping_must_leave_a_picture(tmp_path: Path) -> None:
    root = segment_set(tmp_path, count=1)
    (root / "images" / "train" / "0.png").write_text("")
    with pytest.raises(WorkError, match=r"replace or remove them$"):
        pictures(root, "segment", skip_bad=True)


def test_a_picture_of_another_size_than_annotated(tmp_path: Path) -> None:
    root = object_set(tmp_path)
    noise(root / "images" / "train" / "2.png", (41, 60))
    with pytest.raises(WorkError, match=r"2\.png \(the picture is 60 x 41 .* its annotation is 60 x 40"):
        pictures(root, "detect")


def test_pictures_without_an_object_train(tmp_path: Path) -> None:
    found = pictures(object_set(tmp_path, coco(annotations=coco()["annotations"][:1])), "instance")
    assert len(found) == 3
    ((batch),) = found.batches([[1, 2]], epoch=0)
    assert [tuple(target["masks"].shape) for target in batch.targets] == [(0, 64, 96)] * 2


@pytest.mark.parametrize("size", [(20, 20), (1, 1)])
def test_tiny_pictures(tmp_path: Path, size: tuple[int, int]) -> None:
    noise(tmp_path / "images" / "train" / "0.png", size)
    index_mask(tmp_path / "masks" / "train" / "0.png", 1, size)
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    found = pictures(tmp_path, "segment")
    for epoch in (None, 0):
        ((batch),) = found.batches([[0]], epoch=epoch)
        h, w = batch.sizes[0]
        assert (batch.targets[0, :h, :w] == 1).all()


def test_an_enormous_picture_takes_no_enormous_time(tmp_path: Path) -> None:
    """8000 x 6000 pixels with 30 objects: their whole masks alone would be 1.4 GB."""
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((8000, 6000))
    path = tmp_path / "big.jpg"
    big.save(path, quality=80)
    boxes = np.array([[200 * k, 150 * k, 200 * k + 1000, 150 * k + 900] for k in range(30)], dtype=np.float32)
    parts = tuple([[x0, y0, x1, y0, x1, y1]] for x0, y0, x1, y1 in boxes.tolist())
    truth = Objects((6000, 8000), boxes, np.arange(30), np.zeros(30, bool), np.ones(30, np.float32), parts)
    split = DenseSplit("train", (path,), objects=(truth,))
    found = DensePictures(split, CANVAS, task="instance", classes=30, workers=0, augment=Augment())
    start = time.perf_counter()
    ((batch),) = found.batches([[0]])
    assert time.perf_counter() - start < 10  # about 0.7 s on one core of the machine that it was written on
    assert batch.targets[0]["masks"].shape[0] == 30


def test_bad_requests(tmp_path: Path) -> None:
    root = segment_set(tmp_path)
    split = read_dense(root, "segment").split("train")
    with pytest.raises(RequestError, match="multiples of 32; give such as 512 672"):
        DensePictures(split, Preprocess((518, 680), CANVAS.mean, CANVAS.std), task="segment", classes=3, workers=0)
    with pytest.raises(RequestError, match="give 0 or more"):
        pictures(root, "segment", workers=-1)
    with pytest.raises(RequestError, match="give augment="):
        list(pictures(root, "segment", augment=None).batches([[0]], epoch=0))


def test_ade20k_labels_in_batches(tmp_path: Path) -> None:
    noise(tmp_path / "0.png")
    index_mask(tmp_path / "m.png", np.arange(60) // 20, (40, 60))
    split = DenseSplit("train", (tmp_path / "0.png",), (tmp_path / "m.png",), coding=Coding({0: 255, 1: 0, 2: 1}))
    found = DensePictures(split, CANVAS, task="segment", classes=2, workers=0)
    ((batch),) = found.batches([[0]])
    assert batch.targets[0, 0, [0, 31, 32, 63, 64, 95]].tolist() == [255, 255, 0, 0, 1, 1]


def test_boxes_lie_on_what_they_are_boxes_of(tmp_path: Path) -> None:
    """A white rectangle on black: wherever it is seen in training, its box is around the white."""
    array = np.zeros((40, 60, 3), np.uint8)
    array[10:30, 20:45] = 255
    Image.fromarray(array).save(tmp_path / "0.png")
    box = np.array([[20, 10, 45, 30]], np.float32)
    truth = Objects((40, 60), box, np.zeros(1, np.int64), np.zeros(1, bool), np.ones(1, np.float32))
    split = DenseSplit("train", (tmp_path / "0.png",), objects=(truth,))
    black = Preprocess(CANVAS.size, (0, 0, 0), CANVAS.std)
    augment = Augment(photometric=False)
    found = DensePictures(split, black, task="detect", classes=1, workers=0, augment=augment)
    for epoch in range(40):
        ((batch),) = found.batches([[0]], epoch=epoch)
        y, x = (batch.pixels[0, 0] > 127).nonzero(as_tuple=True)
        around = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert (batch.targets[0]["boxes"][0] - around).abs().max() <= 1.01


@pytest.mark.real
@pytest.mark.parametrize(("name", "task"), [("camvid", "segment"), ("pets3", "segment"), ("pennfudan", "instance")])
def test_real_batches(name: str, task: str) -> None:
    data = read_dense(shared(name), task)
    split = data.split("val").take(range(12))
    found = DensePictures(split, CANVAS, task=task, classes=len(data.classes), workers=2, augment=Augment())
    seen = sorted(index for batch in found.batches(found.even_batches(4)) for index in batch.indices.tolist())
    assert seen == list(range(12))
    for batch in found.batches([list(range(12))], epoch=0):
        assert tuple(batch.pixels.shape) == (12, 3, 64, 96)
