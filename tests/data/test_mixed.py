"""Mosaics and pasted objects: what is seen, and that picture, boxes and masks go together."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from helpers_dense import CANVAS, object_set, pictures, same, segment_set

from vitgraft.common.errors import RequestError, WorkError
from vitgraft.data.augment import Augment, fitted
from vitgraft.data.mixed import mosaic, pasted

pytestmark = pytest.mark.usefixtures("workers_at_once")
H, W = CANVAS.size
PLAIN = {"photometric": False, "seed": 3}


def of_colours(*targets: Any) -> Any:
    """A look at pictures of one colour each, their index; with the mask or the objects given as a function of the
    canvas."""

    def look(index: int, canvas: tuple[int, int]) -> Any:
        return torch.full((3, *canvas), index, dtype=torch.uint8), canvas, targets[index](canvas)

    return look


def rectangle(top: int, left: int, h: int, w: int) -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, H, W, dtype=torch.uint8)
    mask[:, top : top + h, left : left + w] = 1
    box = torch.tensor([[left, top, left + w, top + h]], dtype=torch.float32)
    return {"boxes": box, "labels": torch.tensor([top]), "masks": mask}


def both(*targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([target[name] for target in targets]) for name in targets[0]}


def painted(value: int, target: dict[str, torch.Tensor], size: tuple[int, int] = (H, W)) -> Any:
    return torch.full((3, H, W), value, dtype=torch.uint8), size, target


def around(mask: torch.Tensor) -> list[int]:
    y, x = mask.nonzero(as_tuple=True)
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


def all_of() -> Random:
    """A random source that pastes every object that is offered."""

    class All(Random):
        def randint(self, a: int, b: int) -> int:
            return b

    return All(0)


def test_a_mosaic_of_masks_is_four_quarters() -> None:
    look = of_colours(*[lambda canvas, k=k: torch.full(canvas, k, dtype=torch.uint8) for k in range(4)])
    places = set()
    for seed in range(30):
        pixels, size, mask = mosaic(look, [3, 2, 1, 0], (H, W), Random(seed))
        assert (size, tuple(pixels.shape), tuple(mask.shape)) == ((H, W), (3, H, W), (H, W))
        assert torch.equal(pixels[0], mask)  # colour k has the label k
        y, x = int((mask[:, 0] == 3).sum()), int((mask[0] == 3).sum())
        assert H / 4 - 1 <= y <= 3 * H / 4 + 1
        assert W / 4 - 1 <= x <= 3 * W / 4 + 1
        quarters = [mask[:y, :x], mask[:y, x:], mask[y:, :x], mask[y:, x:]]
        assert all((quarter == k).all() for quarter, k in zip(quarters, (3, 2, 1, 0), strict=True))
        places.add((y, x))
    assert len(places) > 20


@pytest.mark.parametrize("task", ["detect", "instance"])
def test_objects_of_a_mosaic_lie_where_they_are_seen(tmp_path: Path, task: str) -> None:
    """Each object is its whole picture, so its box is the part of the quarter that shows it."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 0}
            | {"segmentation": [[0, 0, 60, 0, 60, 40, 0, 40]]}
            for i in (1, 2, 3)
        ],
    }
    augment = Augment(jitter=(2, 3), mosaic=1, **PLAIN)  # large enough to fill any quarter
    found = pictures(object_set(tmp_path, content), task, augment=augment)
    for epoch in range(8):
        (batch,) = found.batches([[0, 1, 2]], epoch=epoch)
        assert batch.sizes == [(H, W)] * 3
        for target in batch.targets:
            boxes = target["boxes"]
            assert len(boxes) == 4
            assert (boxes[:, 2:] - boxes[:, :2]).prod(1).sum() == H * W  # they share the canvas
            assert boxes[0, :2].tolist() == [0, 0]
            assert boxes[3, 2:].tolist() == [W, H]
            assert torch.equal(boxes[0, 2:], boxes[3, :2])
            if task == "instance":
                assert torch.equal(target["masks"].sum(0), torch.ones(H, W, dtype=torch.int64))
                assert [around(mask) for mask in target["masks"]] == boxes.tolist()


def test_what_a_mosaic_shows_is_as_large_as_it_would_be_alone() -> None:
    augment, file = Augment(jitter=(1, 1)), np.zeros((40, 60), dtype=np.uint8)
    view = augment.view(file, (24, 30), Random(0), part_of=(H, W))
    assert (view.resized, view.size) == (fitted((40, 60), (H, W)), (24, 30))


def test_a_pasted_object_hides_what_lies_behind() -> None:
    there = both(rectangle(0, 0, 20, 20), rectangle(40, 60, 10, 10), rectangle(30, 0, 8, 8))
    new = both(rectangle(10, 0, 20, 20), rectangle(38, 58, 20, 20))
    pixels, size, found = pasted(painted(1, there), painted(9, new), all_of())
    assert size == (H, W)
    # The first loses its lower half, the second is hidden and left out, the third is as it was; then come the new ones.
    assert found["labels"][:2].tolist() == [0, 30]
    assert sorted(found["labels"][2:].tolist()) == [10, 38]
    assert found["boxes"][:2].tolist() == [[0, 0, 20, 10], [0, 30, 8, 38]]
    assert [around(mask) for mask in found["masks"]] == found["boxes"].tolist()
    assert torch.equal(pixels[0] == 9, new["masks"].amax(0) == 1)
    assert found["masks"].sum(0).max() == 1


def test_nothing_is_pasted_into_the_padding() -> None:
    new = both(rectangle(0, 0, 60, 90), rectangle(50, 0, 10, 10))
    pixels, size, found = pasted(painted(1, rectangle(0, 0, 5, 5), (40, 50)), painted(9, new, (40, 50)), all_of())
    assert (pixels[:, 40:] == 1).all()
    assert (pixels[:, :, 50:] == 1).all()
    assert found["boxes"].tolist() == [[0, 0, 50, 40]]
    assert size == (40, 50)


def test_any_number_of_objects_is_pasted() -> None:
    new = both(*(rectangle(0, 10 * k, 5, 5) for k in range(4)))
    counts = [
        len(pasted(painted(1, rectangle(60, 0, 4, 4)), painted(9, new), Random(k))[2]["labels"]) for k in range(60)
    ]
    assert set(counts) == {1, 2, 3, 4, 5}


def test_a_picture_without_objects_takes_and_gives_none() -> None:
    none = {name: of[:0] for name, of in rectangle(0, 0, 4, 4).items()}
    one = rectangle(0, 0, 4, 4)
    assert len(pasted(painted(1, none), painted(9, none), all_of())[2]["labels"]) == 0
    assert pasted(painted(1, none), painted(9, one), all_of())[2]["boxes"].tolist() == [[0, 0, 4, 4]]
    assert pasted(painted(1, one), painted(9, none), all_of())[2]["boxes"].tolist() == [[0, 0, 4, 4]]


def test_what_is_not_mixed_is_seen_as_without(tmp_path: Path) -> None:
    root = object_set(tmp_path)
    some, none = (pictures(root, "instance", augment=Augment(mosaic=share, seed=1)) for share in (0.5, 0.0))
    equal = [
        torch.equal(one.pixels, other.pixels)
        for epoch in range(40)
        for one, other in zip(some.batches([[0], [1]], epoch=epoch), none.batches([[0], [1]], epoch=epoch), strict=True)
    ]
    assert 25 < sum(equal) < 55


@pytest.mark.parametrize(("task", "share"), [("segment", "mosaic"), ("detect", "mosaic"), ("instance", "paste")])
def test_workers_change_nothing(tmp_path: Path, task: str, share: str) -> None:
    root = (segment_set if task == "segment" else object_set)(tmp_path)
    augment = Augment(seed=3, **{share: 1.0})
    alone, helped = (pictures(root, task, augment=augment, workers=workers) for workers in (0, 2))
    order = [[2, 0], [1]]
    for epoch in (0, 1):
        assert same(list(alone.batches(order, epoch=epoch)), list(helped.batches(order, epoch=epoch)))
    assert not same(list(alone.batches(order, epoch=0)), list(alone.batches(order, epoch=1)))


def test_a_partner_that_went_bad_is_named(tmp_path: Path) -> None:
    found = pictures(object_set(tmp_path), "detect", augment=Augment(mosaic=1))
    (tmp_path / "images" / "train" / "2.png").write_bytes(b"no picture")
    with pytest.raises(WorkError, match=r"2\.png"):
        list(found.batches([[0]] * 1, epoch=0))


@pytest.mark.parametrize("wrong", [{"mosaic": -0.1}, {"paste": 1.5}])
def test_a_share_is_a_probability(wrong: dict) -> None:
    with pytest.raises(RequestError, match="; give 0 to 1"):
        Augment(**wrong)
