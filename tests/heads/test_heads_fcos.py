"""FCOS: equal to torchvision's on the same maps with the same weights; small, clipped, and of any batch."""

import pytest
import torch
from helpers_heads import (
    CHANNELS,
    CLASSES,
    HST,
    check_gradients,
    features,
    made,
    objects,
    one_of,
    parameters,
    shaken,
)
from torch import nn
from torchvision.models.detection import fcos as torchvision
from torchvision.models.detection.rpn import AnchorGenerator

from vitgraft.common.errors import RequestError
from vitgraft.heads.fcos import CELLS, FCOS

SMALL = {"width": 32, "convolutions": 2}
SIZES = [(64, 96), (50, 70)]


class Maps(nn.Module):
    """A backbone that gives the FPN's maps whatever the picture."""

    out_channels = SMALL["width"]

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, images):
        return self.maps


@pytest.fixture
def head():
    return made(FCOS, CHANNELS, CLASSES, **SMALL)


def test_is_torchvisions(head):
    ours, given = shaken(head).eval(), features()
    theirs = torchvision.FCOS(
        Maps(ours.fpn(given)),
        CLASSES,
        anchor_generator=AnchorGenerator(tuple((s,) for s in CELLS), ((1.0,),) * len(CELLS)),
        head=ours.fcos.head,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        score_thresh=0.05,
    )
    # Its transform would resize the pictures and pad them to multiples of 32, which they are.
    theirs.transform.min_size, theirs.transform.max_size = (64,), 96
    images, targets = [torch.zeros(3, 64, 96)] * 2, objects(given, masks=False)
    torch.testing.assert_close(ours(given, targets), theirs.train()(images, targets))
    found, expected = ours(given), theirs.eval()(images)
    for one, other in zip(found, expected, strict=True):
        assert len(one["boxes"]) > 10
        area = (other["boxes"][:, 2:] > other["boxes"][:, :2]).all(1)  # which clipping leaves some boxes without
        other = {name: tensor[area] for name, tensor in other.items()}
        torch.testing.assert_close(one, other)


def test_predictions_lie_inside_the_pictures_own_size_and_depend_on_no_neighbour(head):
    head = shaken(head).eval().double()
    given = features(batch=3, sizes=[(64, 96), (33, 41), (60, 96)], dtype=torch.float64)
    found = head(given)
    for i, (record, (h, w)) in enumerate(zip(found, given.sizes, strict=True)):
        assert len(record["boxes"]) > 5
        assert (record["boxes"][:, :2] < record["boxes"][:, 2:]).all()
        assert record["boxes"].min() >= 0
        assert (record["boxes"][:, 2:] <= torch.tensor([w, h])).all()
        assert set(record["labels"].tolist()) <= set(range(CLASSES))
        assert (record["scores"].diff() <= 0).all()
        assert record["scores"].min() > 0.05
        torch.testing.assert_close(head(one_of(given, i))[0], record, rtol=1e-9, atol=1e-9)


def test_nothing_found_is_an_empty_record(head):
    head.fcos.score_thresh = 2.0
    for record in head.eval()(features(sizes=SIZES)):
        assert record["boxes"].shape == (0, 4)
        assert record["labels"].shape == record["scores"].shape == (0,)


@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0)])
def test_gradients_reach_every_parameter(head, counts):
    given = features(sizes=SIZES)
    losses = head(given, objects(given, counts))
    if any(counts):
        check_gradients(head, losses)
        return
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert losses["bbox_regression"] == losses["bbox_ctrness"] == 0


def test_autocast(head):
    head, given = shaken(head).eval(), features(sizes=SIZES)
    targets = objects(given)
    expected = head(given, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, records = head(given, targets), head(given)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.2, atol=0.05)
    for record in records:
        assert record["boxes"].dtype == torch.float32
        assert (record["boxes"] != record["boxes"].bfloat16().float()).any(), "boxes of 8 bits"


def test_learns_one_batch(head):
    given = features()
    targets = objects(given, (1, 1), masks=False)
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(head(given, targets).values()).backward()
        optimizer.step()
    for record, target in zip(head.eval()(given), targets, strict=True):
        assert (record["boxes"][0] - target["boxes"][0]).abs().max() < 6
        assert record["labels"][0] == target["labels"][0]
        assert record["scores"][0] > 0.4


@pytest.mark.parametrize("C", [CHANNELS, HST])
def test_parameters(C):
    n, c, K = 32, 2, 7
    fpn = n * sum(w + 1 for w in C) + 4 * n * (9 * n + 1)
    assert parameters(FCOS(C, K, width=n, convolutions=c)) == fpn + 2 * c * (9 * n**2 + 3 * n) + (9 * n + 1) * (K + 5)


def test_a_width_that_is_not_normalised_in_groups():
    with pytest.raises(RequestError, match="width of fcos is 48, but is normalised in 32 groups"):
        FCOS(CHANNELS, CLASSES, width=48)
