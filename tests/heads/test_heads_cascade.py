"""The cascade against its definition, written out here in float64: three stages that assign, lose, refine, and vote."""

import math

import pytest
import torch
from helpers_heads import CHANNELS, CLASSES, HST, HST_SIDE, features, made, objects, parameters, shaken
from torch import nn
from torchvision.ops import roi_align

from vitgraft.common.errors import RequestError
from vitgraft.heads.cascade import CascadeRCNN

SMALL = {"width": 16, "hidden": 32, "proposals": 50, "samples": 4000}  # all boxes are samples
SIZES = [(64, 96), (50, 70)]
STAGES = [(0.5, (10, 10, 5, 5), 1), (0.6, (20, 20, 10, 10), 0.5), (0.7, (30, 30, 15, 15), 0.25)]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


class Given(nn.Module):
    """In the place of FPN and RPN: these maps and boxes."""

    def __init__(self, maps, boxes):
        super().__init__()
        self.maps, self.boxes = maps, boxes

    def forward(self, features, targets):
        return self.maps, [b.clone() for b in self.boxes], {}


def jittered(target, size, count=12):
    """Boxes about each object, from almost it to nowhere near."""
    h, w = size
    limit = torch.tensor([w, h, w, h], dtype=torch.float64)
    spread = torch.linspace(0.01, 0.5, count, dtype=torch.float64)[:, None, None]
    boxes = target["boxes"].double() + spread * torch.randn(count, len(target["boxes"]), 4).double() * 15
    boxes = boxes.flatten(0, 1).clamp(min=0).minimum(limit)
    return boxes[(boxes[:, 2] > boxes[:, 0] + 1) & (boxes[:, 3] > boxes[:, 1] + 1)]


def scene(counts=(2, 1), **options):
    """A head in float64 with every tensor random, features, targets, and the boxes that it is given."""
    head = shaken(made(CascadeRCNN, CHANNELS, CLASSES, **SMALL, **options)).double().eval()
    for stage in head.stages:
        stage.box_predictor.bbox_pred.weight.data /= 5  # a box is moved by a part of its size, not by many of them
    given = features(sizes=SIZES, dtype=torch.float64)
    targets = objects(given, counts)
    torch.manual_seed(3)
    boxes = [jittered(t, size) for t, size in zip(targets, SIZES, strict=True)]
    head.proposals = Given(head.proposals.fpn(given), boxes)
    return head, given, targets, boxes


# ------------------------------------------------------------------------------------------------ definition


def overlap(a, b):
    """(IoU, GIoU) of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both / union, both / union - (hull - union) / hull


def moved(box, offsets, weights):
    x1, y1, x2, y2 = box
    dx, dy, dw, dh = (d / weight for d, weight in zip(offsets, weights, strict=True))
    w, h = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
    w, h = w * math.exp(min(dw, math.log(62.5))), h * math.exp(min(dh, math.log(62.5)))
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def offsets_to(box, goal, weights):
    w, h = box[2] - box[0], box[3] - box[1]
    plain = [
        (goal[0] + goal[2] - box[0] - box[2]) / 2 / w,
        (goal[1] + goal[3] - box[1] - box[3]) / 2 / h,
        math.log((goal[2] - goal[0]) / w),
        math.log((goal[3] - goal[1]) / h),
    ]
    return [d * weight for d, weight in zip(plain, weights, strict=True)]


def clipped(box, size):
    h, w = size
    return [min(max(side, 0.0), limit) for side, limit in zip(box, (w, h, w, h), strict=True)]


def pooled(maps, boxes, side):
    """Boxes [(picture, box)] from the map that suits their size: level 4 for 224 pixels."""
    cells = []
    for picture, (x1, y1, x2, y2) in boxes:
        area = max((x2 - x1) * (y2 - y1), 1e-9)
        level = min(max(math.floor(4 + math.log2(math.sqrt(area) / 224) + 1e-6), 2), 5)
        roi = torch.tensor([[picture, x1, y1, x2, y2]], dtype=torch.float64)
        cells.append(roi_align(maps[str(level - 2)], roi, side, 2.0**-level, 2))
    return torch.cat(cells)


def outputs(stage, maps, boxes):
    logits, offsets = stage.box_predictor(stage.box_head(pooled(maps, boxes, 7)))
    return logits, offsets.view(len(boxes), CLASSES + 1, 4)


def assigned(boxes, targets, iou):
    """For each box (label from 1, or 0; index of the object)."""
    found = []
    for picture, box in boxes:
        overlaps = [overlap(box, other)[0] for other in targets[picture]["boxes"].tolist()]
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=0)
        hit = overlaps and overlaps[best] >= iou
        found.append((int(targets[picture]["labels"][best]) + 1 if hit else 0, best))
    return found


def defined_losses(head, maps, boxes, targets, box_loss):
    """The losses by name, and the labels of each stage."""
    boxes = [(i, box) for i, own in enumerate(boxes) for box in [*own.tolist(), *targets[i]["boxes"].tolist()]]
    losses, history = {}, []
    for number, (stage, (iou, weights, share)) in enumerate(zip(head.stages, STAGES, strict=True), start=1):
        logits, offsets = outputs(stage, maps, boxes)
        found = assigned(boxes, targets, iou)
        history.append([label for label, _ in found])
        classifier = regression = 0.0
        for (picture, box), scores, own, (label, index) in zip(boxes, logits, offsets, found, strict=True):
            classifier -= math.log(float(scores.softmax(0)[label]))
            if not label:
                continue
            goal = targets[picture]["boxes"][index].tolist()
            if box_loss == "giou":
                regression += 10 * (1 - overlap(moved(box, own[label].tolist(), weights), goal)[1])
            else:
                gaps = zip(own[label].tolist(), offsets_to(box, goal, weights), strict=True)
                distances = [abs(a - b) for a, b in gaps]
                regression += sum(d * d / 2 if d < 1 else d - 0.5 for d in distances)
        losses[f"loss_classifier_{number}"] = share * classifier / len(boxes)
        losses[f"loss_box_reg_{number}"] = share * regression / len(boxes)
        if stage.has_mask():
            losses[f"loss_mask_{number}"] = share * defined_mask_loss(stage, maps, boxes, found, targets)
        labels = [label or 1 + int(scores[1:].argmax()) for (label, _), scores in zip(found, logits, strict=True)]
        boxes = refined(boxes, offsets, labels, weights)
    return losses, history


def defined_mask_loss(stage, maps, boxes, found, targets):
    hits = [(box, *of) for box, of in zip(boxes, found, strict=True) if of[0]]
    logits = stage.mask_predictor(stage.mask_head(pooled(maps, [box for box, _, _ in hits], 14)))
    total = 0.0
    for ((picture, box), label, index), own in zip(hits, logits, strict=True):
        mask = targets[picture]["masks"][index][None, None].double()
        truth = roi_align(mask, torch.tensor([[0.0, *box]], dtype=torch.float64), 28)[0, 0]
        log = nn.functional.logsigmoid
        total -= float((truth * log(own[label]) + (1 - truth) * log(-own[label])).mean())
    return total / len(hits)


def refined(boxes, offsets, labels, weights):
    return [
        (picture, clipped(moved(box, own[label].tolist(), weights), SIZES[picture]))
        for (picture, box), own, label in zip(boxes, offsets, labels, strict=True)
    ]


def defined_detections(head, maps, boxes):
    """Per picture [(score, label, box)], highest score first."""
    boxes = [(i, box) for i, own in enumerate(boxes) for box in own.tolist()]
    scores = torch.zeros(len(boxes), CLASSES + 1, dtype=torch.float64)
    for stage, (_, weights, _) in zip(head.stages, STAGES, strict=True):
        before = boxes
        logits, offsets = outputs(stage, maps, boxes)
        scores += logits.softmax(1) / 3
        boxes = refined(boxes, offsets, [1 + int(row[1:].argmax()) for row in logits], weights)
    results: list[list] = [[], []]
    for (picture, box), row, own in zip(before, scores.tolist(), offsets.tolist(), strict=True):
        for label in range(1, CLASSES + 1):
            if row[label] > 0.05:
                place = clipped(moved(box, own[label], STAGES[2][1]), SIZES[picture])
                if place[2] - place[0] >= 0.01 and place[3] - place[1] >= 0.01:
                    results[picture].append((row[label], label - 1, place))
    for picture, candidates in enumerate(results):
        kept: list = []
        for score, label, box in sorted(candidates, reverse=True):
            if not any(label == other and overlap(box, place)[0] > 0.5 for _, other, place in kept):
                kept.append((score, label, box))
        results[picture] = kept[:100]
    return results


# ------------------------------------------------------------------------------------------------ tests


@pytest.mark.parametrize("box_loss", ["giou", "smooth-l1"])
@pytest.mark.parametrize("every", [False, True])
def test_losses_are_those_of_the_definition(box_loss, every):
    head, given, targets, boxes = scene(masks=True, mask_every_stage=every, box_loss=box_loss)
    found = head(given, targets)
    with torch.no_grad():
        expected, labels = defined_losses(head, head.proposals.maps, boxes, targets, box_loss)
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(expected, rel=1e-9)
    assert len(expected) == (9 if every else 7)
    assert all(0 < sum(label > 0 for label in stage) < len(stage) for stage in labels)
    assert labels[0] != labels[1] != labels[2], "every stage assigns the same"


def test_losses_with_a_picture_without_objects():
    head, given, targets, boxes = scene((2, 0), masks=True)
    boxes[1] = torch.tensor([[3.0, 4, 60, 40], [0, 0, 20, 20]], dtype=torch.float64)
    head.proposals.boxes = boxes
    with torch.no_grad():
        expected, _ = defined_losses(head, head.proposals.maps, boxes, targets, "giou")
    assert {name: loss.item() for name, loss in head(given, targets).items()} == pytest.approx(expected, rel=1e-9)


def test_detections_are_those_of_the_definition():
    head, given, _, boxes = scene()
    with torch.no_grad():
        found = head(given)
        expected = defined_detections(head, head.proposals.maps, boxes)
    for record, of in zip(found, expected, strict=True):
        assert len(of) > 2
        torch.testing.assert_close(record["scores"], torch.tensor([s for s, _, _ in of], dtype=torch.float64), **CLOSE)
        assert record["labels"].tolist() == [label for _, label, _ in of]
        torch.testing.assert_close(record["boxes"], torch.tensor([b for _, _, b in of], dtype=torch.float64), **CLOSE)


def test_masks_are_the_mean_of_the_stages_masks():
    head, given, _, _ = scene(masks=True, mask_every_stage=True)
    together = head(given)
    total = [torch.zeros_like(record["masks"]) for record in together]
    for stage in head.stages:
        for other in head.stages:
            other.has_mask = lambda own=other, chosen=stage: own is chosen
        for i, record in enumerate(head(given)):
            total[i] += record["masks"] / 3
    for record, mean in zip(together, total, strict=True):
        torch.testing.assert_close(record["masks"], mean, **CLOSE)


def test_gradients_do_not_cross_the_refined_boxes():
    head, given, targets, _ = scene()
    losses = head(given, targets)
    (losses["loss_classifier_3"] + losses["loss_box_reg_3"]).backward()
    assert all(p.grad is not None for p in head.stages[2].parameters())
    assert all(p.grad is None for stage in list(head.stages)[:2] for p in stage.parameters())


def test_a_box_loss_that_there_is_not():
    with pytest.raises(RequestError, match="box_loss cannot be 'ciou': there is giou, smooth-l1"):
        CascadeRCNN(CHANNELS, CLASSES, box_loss="ciou")


@pytest.mark.parametrize(("options", "heads"), [({}, 0), ({"mask_every_stage": False}, 1), ({"masks": True}, 3)])
def test_parameters(options, heads):
    n, h, K, C = 16, 32, 7, CHANNELS
    fpn = n * sum(c + 1 for c in C) + 4 * n * (9 * n + 1)
    rpn = n * (9 * n + 1) + 15 * (n + 1)
    boxes = 4 * (9 * n**2 + 2 * n) + 49 * n * h + h + 5 * (K + 1) * (h + 1)
    mask = 4 * n * (9 * n + 1) + n * (4 * n + 1) + (K + 1) * (n + 1)
    head = CascadeRCNN(C, K, width=n, hidden=h, **{"masks": heads > 0, **options})
    assert parameters(head) == fpn + rpn + 3 * boxes + heads * mask


def test_parameters_of_hst_are_the_published_ones_with_three_mask_heads():
    with torch.device("meta"):
        head = CascadeRCNN(HST, 80, masks=True, **CascadeRCNN.published)
    assert round((parameters(head) + HST_SIDE) / 1e6, 1) == 68.4
