"""Views on pictures: what is seen, where it lies, and that picture, boxes and masks go together."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from helpers_dense import CANVAS, polygon
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitgraft.common.errors import RequestError
from vitgraft.data.augment import Augment, View, evaluation_view, fitted
from vitgraft.data.mixed import drawn as augmented
from vitgraft.data.objects import Objects
from vitgraft.data.segmentations import sample

FILES = [(40, 60), (60, 40), (64, 96), (7, 200), (20, 20), (123, 77), (1, 1)]


def objects(size: tuple[int, int], seed: int = 0, n: int = 6) -> Objects:
    """Random rectangles with whole corners, their masks polygons; the last one is a crowd."""
    generator = np.random.default_rng(seed)
    h, w = size
    corners = [np.sort(generator.choice(extent + 1, (n, 2)), axis=1) for extent in (w, h)]
    for pair in corners:
        pair[:, 0] -= (pair[:, 0] == pair[:, 1]) & (pair[:, 0] > 0)
        pair[:, 1] += pair[:, 0] == pair[:, 1]
    boxes = np.stack([corners[0][:, 0], corners[1][:, 0], corners[0][:, 1], corners[1][:, 1]], 1).astype(np.float32)
    parts = tuple(polygon(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes.tolist())
    crowd = np.arange(n) == n - 1
    return Objects(size, boxes, np.arange(n), crowd, (boxes[:, 2:] - boxes[:, :2]).prod(1), parts)


def views(count: int = 60) -> list[View]:
    found = []
    for i in range(count):
        file = FILES[i % len(FILES)]
        found.append(Augment(jitter=(0.3, 3), seed=i).view(objects(file, i), CANVAS.size, Random(i)))
    return found + [evaluation_view(file, CANVAS.size) for file in FILES]


def by_torchvision(view: View, pixels: torch.Tensor, fill: list[float], how: InterpolationMode) -> torch.Tensor:
    """The view step by step, each on the whole picture."""
    pixels = F.resize(pixels, list(view.resized), interpolation=how, antialias=True)
    pixels = F.crop(pixels, *view.corner, *view.size)
    pixels = F.horizontal_flip(pixels) if view.mirrored else pixels
    return F.pad(pixels, [0, 0, view.canvas[1] - view.size[1], view.canvas[0] - view.size[0]], fill=fill)


def test_there_are_views_of_every_kind() -> None:
    found = views()
    assert any(view.mirrored for view in found)
    assert any(max(view.corner) > 0 for view in found)
    assert any(view.size != view.canvas for view in found)
    assert any(view.size == view.canvas for view in found)


def test_pictures_lie_as_torchvision_puts_them() -> None:
    fill = [128.0, 64.0, 191.0]
    for i, view in enumerate(views()):
        # No black and white: between its two passes, which Pillow puts in its own order, the filter would be cut off.
        noise = np.random.default_rng(i).integers(90, 166, (*view.file, 3), dtype=np.uint8)
        pixels = view.picture(Image.fromarray(noise), CANVAS)
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, *view.canvas))
        expected = by_torchvision(view, torch.from_numpy(noise).permute(2, 0, 1), fill, InterpolationMode.BICUBIC)
        difference = (pixels.int() - expected.int()).abs()
        assert difference.max() <= 2, view
        assert difference.float().mean() < 0.5


def test_a_picture_made_much_smaller_hardly_differs() -> None:
    """Averaging in whole steps first is quick; a smooth picture must come out the same."""
    y, x = np.mgrid[:1200, :1800]
    waves = (127 + 60 * np.sin(x / 70) + 60 * np.sin(y / 90)).astype(np.uint8)
    image = Image.fromarray(np.stack([waves] * 3, 2))
    view = evaluation_view((1200, 1800), CANVAS.size)
    exact = np.asarray(image.resize((96, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(view.picture(image, CANVAS).permute(1, 2, 0).numpy() - exact).max() <= 2


def test_masks_lie_as_pillow_puts_them() -> None:
    for i, view in enumerate(views()):
        labels = np.random.default_rng(i).integers(0, 9, view.file, dtype=np.uint8)
        mask = view.mask(labels)
        assert (mask.dtype, tuple(mask.shape)) == (torch.uint8, view.canvas)
        resized = np.asarray(Image.fromarray(labels).resize(view.resized[::-1], Image.Resampling.NEAREST))
        (top, left), (h, w) = view.corner, view.size
        seen = resized[top : top + h, left : left + w]
        found = (mask[:h, :w].flip(1) if view.mirrored else mask[:h, :w]).numpy()
        sides = zip(view.corner, view.size, view.file, view.resized, strict=True)
        # Where two pixels are equally near, Pillow takes the one that its rounding leads to.
        clear = [(2 * (np.arange(n) + a) + 1) * file % (2 * resized) != 0 for a, n, file, resized in sides]
        assert np.array_equal(found[np.ix_(*clear)], seen[np.ix_(*clear)]), view
        assert (mask[h:] == 255).all()
        assert (mask[:, w:] == 255).all()


def test_masks_of_objects_are_those_of_whole_masks() -> None:
    for i, view in enumerate(views()):
        truth = objects(view.file, i)
        found = view.objects(truth, masks=True)
        assert truth.segmentations is not None
        every = [np.arange(n) for n in view.file]
        whole = [view.mask(sample(part, view.file, *every).astype(np.uint8)) for part in truth.segmentations[:-1]]
        extent = (view.objects(truth, masks=False)["labels"]).tolist()
        expected = [mask * (mask < 255) for k, mask in enumerate(whole) if k in extent and (mask == 1).any()]
        assert len(found["masks"]) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found["masks"], expected, strict=True))


def test_boxes_go_with_their_masks() -> None:
    """A rectangle's box lies around its mask, to the pixel that the resizing rounds."""
    cut = 0
    for i, view in enumerate(views()):
        truth = objects(view.file, i)
        found = view.objects(truth, masks=True)
        h, w = view.size
        boxes = found["boxes"]
        assert (boxes.dtype, found["labels"].dtype) == (torch.float32, torch.int64)
        assert 5 not in found["labels"]  # the crowd
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([w, h])).all()
        for box, mask in zip(boxes, found["masks"], strict=True):
            y, x = mask.nonzero(as_tuple=True)
            around = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
            step = max(view.resized[0] / view.file[0], view.resized[1] / view.file[1], 1)
            assert (box - around).abs().max() <= step + 1e-3
        cut += int((boxes == around).all(1).sum()) if len(boxes) else 0
    assert cut > 0


def test_boxes_without_masks_are_arithmetic() -> None:
    truth = objects((40, 60))
    view = View((40, 60), (80, 180), (64, 96), (10, 20), True)
    found = view.objects(truth, masks=False)
    assert set(found) == {"boxes", "labels"}
    boxes = truth.boxes[:-1] * [3, 2, 3, 2] - [20, 10, 20, 10]
    boxes = boxes.clip(0, [96, 64, 96, 64])
    boxes = np.stack([96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]], 1)
    seen = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    assert 0 < seen.sum() < 5
    np.testing.assert_allclose(found["boxes"].numpy(), boxes[seen])
    assert found["labels"].tolist() == np.flatnonzero(seen).tolist()


def test_an_object_that_the_crop_cuts_has_the_box_of_what_is_left() -> None:
    """An L whose foot is cut off: its clipped box would be wide, what is left is narrow."""
    part = [[0, 0, 10, 0, 10, 30, 60, 30, 60, 40, 0, 40]]
    box = np.array([[0, 0, 60, 40]], dtype=np.float32)
    truth = Objects((40, 60), box, np.zeros(1, np.int64), np.zeros(1, bool), np.ones(1, np.float32), (part,))
    view = View((40, 60), (40, 60), (30, 60))
    assert view.objects(truth, masks=True)["boxes"].tolist() == [[0, 0, 10, 30]]
    assert view.objects(truth, masks=False)["boxes"].tolist() == [[0, 0, 60, 30]]
    beside = View((40, 60), (40, 60), (20, 40), (0, 20))
    assert len(beside.objects(truth, masks=True)["boxes"]) == 0
    assert tuple(beside.objects(truth, masks=True)["masks"].shape) == (0, 20, 40)


def test_no_object_at_all() -> None:
    none = Objects((40, 60), np.zeros((0, 4), np.float32), *(np.zeros(0, t) for t in (np.int64, bool, np.float32)), ())
    for seed in range(20):
        augment = Augment(seed=seed)
        found = augment.view(none, CANVAS.size, Random(seed)).objects(none, masks=True)
        assert {key: tuple(value.shape) for key, value in found.items()} == {
            "boxes": (0, 4),
            "labels": (0,),
            "masks": (0, *CANVAS.size),
        }


@pytest.mark.parametrize("file", FILES)
def test_evaluation_shows_the_whole_picture(file: tuple[int, int]) -> None:
    view = evaluation_view(file, CANVAS.size)
    assert view.size == view.resized
    assert max(a / b for a, b in zip(view.size, CANVAS.size, strict=True)) == 1
    assert all(side % 32 == 0 and 0 <= side - seen < 32 for side, seen in zip(view.canvas, view.size, strict=True))
    assert abs(view.size[0] / file[0] - view.size[1] / file[1]) * max(file) <= max(1, max(file) / min(file))


def test_fitted() -> None:
    assert fitted((480, 640), (800, 1333)) == (800, 1067)
    assert fitted((640, 480), (800, 1333)) == (800, 600)
    assert fitted((1, 5000), (512, 512)) == (1, 512)
    assert fitted((10, 20), (64, 96), 0.5) == (24, 48)


def test_crops_keep_an_object() -> None:
    """One small object in a large picture: a crop at random would mostly miss it."""
    box = np.array([[100, 20, 110, 28]], dtype=np.float32)
    truth = Objects((400, 600), box, np.zeros(1, np.int64), np.zeros(1, bool), np.ones(1, np.float32))
    corners = set()
    for seed in range(50):
        view = Augment(jitter=(2, 4)).view(truth, CANVAS.size, Random(seed))
        (found,) = view.objects(truth, masks=False)["boxes"]
        scale = view.resized[0] / 400
        assert (found[2:] - found[:2]).tolist() == pytest.approx([10 * scale, 8 * scale], abs=0.1)  # and all of it
        corners.add(view.corner)
    assert len(corners) > 40
    large = Objects(
        (400, 600), np.array([[0, 0, 600, 400.0]], np.float32), *[np.zeros(1, t) for t in (int, bool, float)]
    )
    corners = {Augment(jitter=(3, 3)).view(large, CANVAS.size, Random(seed)).corner for seed in range(50)}
    assert len(corners) > 40
    assert max(top for top, _ in corners) > 100


def test_crops_of_masks_avoid_one_class() -> None:
    """A class in one corner of twenty: most crops at random see the other alone, most of ours see both."""
    labels = np.zeros((400, 600), np.uint8)
    labels[:100, :150] = 1
    augment = Augment(jitter=(4, 4))
    both = [len(augment.view(labels, CANVAS.size, Random(seed)).mask(labels).unique()) == 2 for seed in range(100)]
    plain = [Random(seed) for seed in range(100)]
    corners = [(random.randint(0, 192), random.randint(0, 288)) for random in plain]
    by_chance = sum(top < 64 and left < 96 and (top, left) != (0, 0) for top, left in corners)
    assert sum(both) > 2 * by_chance
    ignored = np.full((400, 600), 255, np.uint8)
    assert (augment.view(ignored, CANVAS.size, Random(0)).mask(ignored) == 255).all()


def test_colours_change_by_chance_and_can_be_left() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8))
    changed = [Augment().colours(pixels, Random(seed)) for seed in range(40)]
    assert all(found.dtype == torch.uint8 and found.shape == pixels.shape for found in changed)
    same = sum(torch.equal(found, pixels) for found in changed)
    assert 0 < same < 10  # one in sixteen
    assert torch.equal(Augment(photometric=False).colours(pixels, Random(1)), pixels)


def test_the_padding_keeps_its_colour() -> None:
    image = Image.fromarray(np.full((40, 60, 3), 200, np.uint8))
    for key in range(10):
        opened = lambda index: (image, objects((40, 60)))  # noqa: E731
        pixels, (h, w), _ = augmented(opened, 0, 1, Augment(jitter=(0.4, 0.6)), CANVAS, False, str(key))
        assert h < 64
        assert w < 96
        for part in (pixels[:, h:], pixels[:, :, w:]):
            assert part.flatten(1).unique(dim=1).flatten().tolist() == [128, 64, 191]


def test_drawn_by_seed_and_key_alone(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    truth = objects((40, 60))

    def drawn(seed: int, key: str) -> torch.Tensor:
        state = torch.get_rng_state()
        pixels, _, target = augmented(lambda index: (image, truth), 0, 1, Augment(seed=seed), CANVAS, True, key)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([pixels.flatten(), target["boxes"].flatten()])

    one = drawn(0, "0/1")
    torch.manual_seed(5)
    assert torch.equal(one, drawn(0, "0/1"))
    assert not any(one.shape == other.shape and torch.equal(one, other) for other in (drawn(1, "0/1"), drawn(0, "0/2")))


@pytest.mark.parametrize("wrong", [{"jitter": (0, 1)}, {"jitter": (2, 1)}, {"flip": 1.5}])
def test_bad_augmentation(wrong: dict) -> None:
    with pytest.raises(RequestError, match="; give "):
        Augment(**wrong)
