"""Faster and Mask R-CNN: torchvision's own numbers, and what all detection heads promise, the cascade with them."""

import pytest
import torch
from helpers_heads import (
    CHANNELS,
    CLASSES,
    HST,
    HST_SIDE,
    check_gradients,
    features,
    made,
    objects,
    one_of,
    parameters,
    shaken,
)
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, roi_align

from vitgraft.heads.cascade import CascadeRCNN
from vitgraft.heads.detect import RCNN, roi_pool

SMALL = {"width": 16, "hidden": 32, "anchors": (8, 16, 32, 64, 96), "proposals": 50, "samples": 60}
SIZES = [(64, 96), (50, 70)]
FORMS = {
    "faster": (RCNN, {}),
    "mask": (RCNN, {"masks": True}),
    "cascade": (CascadeRCNN, {}),
    "cascade-mask": (CascadeRCNN, {"masks": True, "mask_every_stage": True}),
}


@pytest.fixture(params=FORMS)
def head(request):
    cls, options = FORMS[request.param]
    return made(cls, CHANNELS, CLASSES, **SMALL, **options)


def losses_of(head, given, targets, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return head(given, targets)


# ------------------------------------------------------------------------------------------------ parity


class Maps(nn.Module):
    """A backbone that gives the FPN's maps whatever the picture."""

    out_channels = SMALL["width"]

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, images):
        return self.maps


def torchvisions(ours, maps):
    n, K = SMALL["width"], CLASSES + 1
    theirs = MaskRCNN(
        Maps(maps),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(tuple((a,) for a in SMALL["anchors"]), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
        box_batch_size_per_image=60,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=TwoMLPHead(49 * n, SMALL["hidden"]),
        box_predictor=FastRCNNPredictor(SMALL["hidden"], K),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2),
        mask_head=MaskRCNNHeads(n, (n,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(n, n, K),
    )
    theirs.transform.resize = lambda image, target=None: (image, target)
    theirs.rpn.load_state_dict(ours.proposals.rpn.state_dict())
    theirs.roi_heads.load_state_dict(ours.roi.state_dict())
    return theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mask_rcnn_equals_torchvisions(dtype):
    ours = shaken(made(RCNN, CHANNELS, CLASSES, masks=True, **SMALL)).to(dtype)
    given = features(sizes=SIZES, dtype=dtype)
    targets = objects(given)
    theirs = torchvisions(ours, ours.proposals.fpn(given)).to(dtype)
    pictures = [torch.zeros(3, h, w, dtype=dtype) for h, w in SIZES]

    losses = losses_of(ours.train(), given, targets)
    shifted = [{**t, "labels": t["labels"] + 1} for t in targets]
    torch.manual_seed(0)
    expected = theirs.train()(pictures, shifted)
    assert (
        set(losses)
        == set(expected)
        == {
            "loss_objectness",
            "loss_rpn_box_reg",
            "loss_classifier",
            "loss_box_reg",
            "loss_mask",
        }
    )
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name], rtol=0, atol=0)

    found, expected = ours.eval()(given), theirs.eval()(pictures)
    for ours_of, theirs_of, size in zip(found, expected, SIZES, strict=True):
        assert len(ours_of["boxes"]) > 5
        torch.testing.assert_close(
            ours_of, {**theirs_of, "labels": theirs_of["labels"] - 1}, rtol=0, atol=0, check_device=False
        )
        assert ours_of["masks"].shape == (len(ours_of["boxes"]), 1, *size)


def test_defaults_are_torchvisions_but_for_the_widths():
    with torch.device("meta"):
        head = RCNN(HST, 80, masks=True, **RCNN.published)
    backbone = Maps({})
    backbone.out_channels = 256
    theirs = MaskRCNN(backbone, 81)
    assert vars_of(head.proposals.rpn) == vars_of(theirs.rpn)
    assert vars_of(head.roi) == vars_of(theirs.roi_heads)
    for ours, other in ((head.proposals.rpn, theirs.rpn), (head.roi, theirs.roi_heads)):
        assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}


def vars_of(module):
    """Thresholds and numbers, also those of matcher, sampler, coder and anchor generator."""
    found = {}
    for part in (module, module.proposal_matcher, module.fg_bg_sampler, module.box_coder, *module.children()):
        for name, value in vars(part).items():
            if isinstance(value, int | float | tuple) or name.endswith("_top_n"):
                found[type(part).__name__, name] = value
    return {key: value for key, value in found.items() if key[1] not in ("training", "_is_full_backward_hook")}


# ------------------------------------------------------------------------------------------------ sizes


def test_boxes_are_pooled_at_the_maps_strides_whatever_the_pictures_sizes():
    given = features((64, 96), batch=1, channels=(4, 4, 4, 4), sizes=[(20, 30)])
    maps = {str(i): x for i, (_, x) in enumerate(given.maps)}
    box = torch.tensor([[3.0, 2.0, 25.0, 17.0]])
    found = roi_pool(7)(maps, [box], given.inside)
    torch.testing.assert_close(found, roi_align(maps["0"], [box], 7, 1 / 4, 2))


def test_predictions_lie_inside_the_pictures_own_size(head):
    head = shaken(head).eval()
    given = features(sizes=[(64, 96), (33, 41)])
    found = head(given)
    for record, (h, w) in zip(found, given.inside, strict=True):
        n = len(record["boxes"])
        assert n > 5
        assert record["boxes"].shape == (n, 4)
        assert (record["boxes"][:, :2] < record["boxes"][:, 2:]).all()
        assert record["boxes"].min() >= 0
        assert (record["boxes"][:, 2:] <= torch.tensor([w, h])).all()
        assert set(record["labels"].tolist()) <= set(range(CLASSES))
        assert record["labels"].dtype == torch.int64
        assert (record["scores"].diff() <= 0).all()
        assert record["scores"].min() > 0.05
        if "masks" in record:
            assert record["masks"].shape == (n, 1, h, w)
            assert 0 <= record["masks"].min() <= record["masks"].max() <= 1
    assert found[1]["boxes"][:, 2].max() > 35, "no box reaches the border, where clipping could be wrong"


def test_a_prediction_does_not_depend_on_its_neighbours(head):
    head = shaken(head).eval().double()
    given = features(batch=3, sizes=[(64, 96), (33, 41), (60, 96)], dtype=torch.float64)
    together = head(given)
    for i in range(3):
        torch.testing.assert_close(head(one_of(given, i))[0], together[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("threshold", ["proposals", "scores"])
def test_pictures_in_which_nothing_is_found(head, threshold):
    for part in [head.proposals.rpn] if threshold == "proposals" else head.modules():
        if hasattr(part, "score_thresh"):
            part.score_thresh = 2.0
    for record, (h, w) in zip(head.eval()(features(sizes=SIZES)), SIZES, strict=True):
        assert record["boxes"].shape == (0, 4)
        assert record["labels"].shape == record["scores"].shape == (0,)
        assert "masks" not in record or record["masks"].shape == (0, 1, h, w)


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0)])
def test_gradients_reach_every_parameter(head, counts):
    given = features(sizes=SIZES)
    losses = losses_of(head, given, objects(given, counts))
    if any(counts):
        check_gradients(head, losses)
        return
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert not any(loss for name, loss in losses.items() if "reg" in name or "mask" in name)


def test_targets_decide_not_the_mode(head):
    """Losses in evaluation mode, predictions in training mode; the same, but for what BatchNorm does."""
    head, given = shaken(head), features()
    targets = objects(given)
    assert isinstance(head.train()(given), list)
    evaluated = losses_of(head.eval(), given, targets)
    assert set(evaluated) == set(losses_of(head.train(), given, targets))
    if isinstance(head, RCNN):
        assert evaluated == losses_of(head.train(), given, targets)
    assert given.maps[0][1].shape[0] == len(head.eval()(given))


def test_the_targets_stay_as_they_were(head):
    given = features()
    targets = objects(given)
    before = [{name: t.clone() for name, t in target.items()} for target in targets]
    losses_of(head, given, targets)
    torch.testing.assert_close(targets, before, rtol=0, atol=0)


def test_autocast(head):
    head, given = shaken(head).eval(), features(sizes=SIZES)
    targets = objects(given)
    expected = losses_of(head, given, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, records = losses_of(head, given, targets), head(given)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.2, atol=0.05)
    for record in records:
        assert {t.dtype for name, t in record.items() if name != "labels"} == {torch.float32}
        assert (record["boxes"] != record["boxes"].bfloat16().float()).any(), "boxes of 8 bits"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(head.train(), given, targets)
    check_gradients(head, losses)


def test_proposals_under_autocast_have_more_than_8_bits(head):
    given = features((64, 640))  # 8 bits do not count to 640
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, boxes, _ = shaken(head).eval().proposals(given, None)
    assert {x.dtype for x in [*maps.values(), *boxes]} == {torch.float32}
    assert all((own != own.bfloat16().float()).any() for own in boxes)


@pytest.mark.parametrize("cls", [RCNN, CascadeRCNN])
def test_learns_one_batch(cls):
    head = made(cls, CHANNELS, CLASSES, masks=True, **{**SMALL, "proposals": 30, "samples": 16})
    given = features()
    targets = objects(given, (1, 1))
    assert targets[0]["labels"] != targets[1]["labels"]
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        sum(head(given, targets).values()).backward()
        optimizer.step()
    for record, target in zip(head.eval()(given), targets, strict=True):
        assert (record["boxes"][0] - target["boxes"][0]).abs().max() < 6
        assert record["labels"][0] == target["labels"][0]
        assert record["scores"][0] > 0.4
        assert ((record["masks"][0, 0] > 0.5) == target["masks"][0]).float().mean() > 0.9


# ------------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize("C", [CHANNELS, HST])
@pytest.mark.parametrize("masks", [False, True])
def test_parameters(C, masks):
    n, h, K = 16, 32, 7
    fpn = n * sum(c + 1 for c in C) + 4 * n * (9 * n + 1)
    rpn = n * (9 * n + 1) + 15 * (n + 1)
    boxes = 49 * n * h + h + h * (h + 1) + 5 * (K + 1) * (h + 1)
    mask = 4 * n * (9 * n + 1) + n * (4 * n + 1) + (K + 1) * (n + 1)
    assert parameters(RCNN(C, K, masks=masks, width=n, hidden=h)) == fpn + rpn + boxes + masks * mask


def test_parameters_of_hst_are_the_published_ones():
    with torch.device("meta"):
        assert round((parameters(RCNN(HST, 80, masks=True, **RCNN.published)) + HST_SIDE) / 1e6, 1) == 30.5
