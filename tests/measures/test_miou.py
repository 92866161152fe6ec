"""mIoU of a split: against a formula over sets of pixels, in parts, and what it says of each picture."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitgraft.common.errors import WorkError
from vitgraft.measures.miou import EDGE, KEPT, SegmentScores

K = 5
CLASSES = ("sky", "road", "tree", "car", "unicorn")
SIZES = [(7, 9), (16, 4), (11, 11)]


def masks(n, seed=0, classes=K, right=0.6):
    """n pairs (predicted, truth) of several sizes; some pixels ignored, the prediction right more often than not."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for i in range(n):
        size = SIZES[i % len(SIZES)]
        truth = torch.randint(classes, size, generator=generator).to(torch.uint8)
        guess = torch.randint(classes, size, generator=generator)
        predicted = torch.where(torch.rand(size, generator=generator) < right, truth.long(), guess)
        truth[torch.rand(size, generator=generator) < 0.1] = 255
        pairs.append((predicted, truth))
    return pairs


def evaluate(pairs, classes=CLASSES):
    scores = SegmentScores(len(pairs), len(classes))
    for index, (predicted, truth) in enumerate(pairs):
        scores.add(index, predicted, truth)
    return scores.evaluation("val", classes, [f"{i}.png" for i in range(len(pairs))])


def expected(pairs, classes=K):
    """IoU of each class by sets of pixels (picture, row, column); None for a class that is nowhere."""
    found = []
    for k in range(classes):
        true, said = set(), set()
        for i, (predicted, truth) in enumerate(pairs):
            for place in np.argwhere(truth.numpy() != 255).tolist():
                true |= {(i, *place)} if truth[tuple(place)] == k else set()
                said |= {(i, *place)} if predicted[tuple(place)] == k else set()
        found.append(len(true & said) / len(true | said) if true | said else None)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_iou_is_that_of_sets_of_pixels_over_the_whole_split(seed):
    pairs = masks(7, seed, classes=K - 1)  # nobody sees a unicorn
    record = evaluate(pairs)
    classes = expected(pairs)
    assert classes[-1] is None
    assert record.per_class[-1][1:] == (None, 0)
    assert [iou for _, iou, _ in record.per_class[:-1]] == pytest.approx(classes[:-1], abs=1e-12)
    assert record.value == pytest.approx(sum(classes[:-1]) / (K - 1), abs=1e-12)
    known = [(p[t != 255], t[t != 255]) for p, t in pairs]
    right = sum(int((p == t).sum()) for p, t in known)
    assert record.pixel_accuracy == pytest.approx(right / sum(len(t) for _, t in known))
    for i, pair in enumerate(pairs):
        there = [iou for iou in expected([pair]) if iou is not None]
        assert float(record.picture_iou[i]) == pytest.approx(sum(there) / len(there), abs=1e-12)
    assert len(record) == 7


def test_a_class_that_is_predicted_and_never_true_has_iou_0_and_counts():
    truth = torch.zeros(4, 4, dtype=torch.uint8)
    predicted = torch.zeros(4, 4, dtype=torch.int64)
    predicted[0, 0] = 3
    record = evaluate([(predicted, truth)])
    assert record.per_class == [("sky", 15 / 16, 1), ("road", None, 0), ("tree", None, 0), ("car", 0.0, 0),
                                ("unicorn", None, 0)]  # fmt: skip
    assert record.value == pytest.approx(15 / 32)


def test_ignored_pixels_count_nowhere():
    pairs = masks(6)
    changed = [(torch.where(truth == 255, (p + 1) % K, p), truth) for p, truth in pairs]
    assert evaluate(pairs).to_dict() == evaluate(changed).to_dict()
    blank = torch.full((5, 5), 255, dtype=torch.uint8)
    more = evaluate([*pairs, (torch.zeros(5, 5, dtype=torch.int64), blank)])
    assert more.value == evaluate(pairs).value
    assert torch.isnan(more.picture_iou[-1])
    assert len(more.ranking) == 6
    with pytest.raises(WorkError, match="every pixel of their masks is 255"):
        evaluate([(torch.zeros(5, 5, dtype=torch.int64), blank)])


def test_the_truth_is_right():
    pairs = [(truth.long().clamp(max=K - 1), truth) for _, truth in masks(12)]
    record = evaluate(pairs)
    assert (record.value, record.pixel_accuracy, record.interval) == (1.0, 1.0, (1.0, 1.0))
    assert record.ranking == list(range(12))


def test_parts_of_several_processes_are_the_whole():
    pairs = masks(60, seed=3)
    whole = evaluate(pairs)
    parts = []
    for rank in range(3):
        part = SegmentScores(60, K)
        for index in range(rank, 60, 3):
            part.add(index, *pairs[index])
        parts.append(pickle.loads(pickle.dumps(part)))  # as it travels between the processes
    for part in parts[1:]:
        parts[0].merge(part)
    joined = parts[0].evaluation("val", CLASSES, whole.paths)
    assert joined.to_dict() == whole.to_dict()
    assert joined.ranking == whole.ranking
    assert joined.kept.keys() == whole.kept.keys() == {*whole.ranking[:KEPT], *whole.ranking[-KEPT:]}
    for index, pair in whole.kept.items():
        for mine, theirs, given in zip(joined.kept[index], pair, pairs[index], strict=True):
            assert torch.equal(mine, theirs)
            assert torch.equal(mine, given.to(torch.uint8))


def test_the_best_and_the_worst_are_kept_small():
    truth = torch.zeros(900, 1500, dtype=torch.uint8)
    truth[:, 700:] = 2
    record = evaluate([(truth.long(), truth)])
    predicted, kept = record.kept[0]
    assert torch.equal(predicted, kept)
    assert tuple(kept.shape) == (EDGE * 900 // 1500, EDGE)
    assert kept.unique().tolist() == [0, 2]
    assert float((kept == 2).float().mean()) == pytest.approx(8 / 15, abs=0.01)


def test_the_interval_holds_the_value_and_narrows_with_more_pictures():
    small, large = evaluate(masks(30, seed=1)), evaluate(masks(480, seed=1))
    for record in (small, large):
        low, high = record.interval
        assert low < record.value < high
        for (_, iou, _), (low, high) in zip(record.per_class, record.class_intervals, strict=True):
            assert low < iou < high
    widths = [record.interval[1] - record.interval[0] for record in (small, large)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)  # the root of 480 / 30
    assert evaluate(masks(9)).interval is None
    assert evaluate(masks(9)).class_intervals == [None] * K


def test_numbers_as_json_and_as_text():
    record = evaluate(masks(12, classes=K - 1))
    told = json.loads(json.dumps(record.to_dict()))
    assert told["metric"] == record.metric == "mIoU"
    assert told["value"] == record.value
    assert told["per_class"][-1] == ["unicorn", None, 0]
    assert np.array(told["confusion"]).sum() == record.confusion.sum()
    lines = record.lines()
    assert lines[0].startswith(f"mIoU {record.value:.2%} ({record.interval[0]:.1%} to")
    assert "12 pictures of val" in lines[0]
    assert sum("unicorn" in line for line in lines) == 0
    shown = record.lines(most=2)
    lowest = sorted((row for row in record.per_class if row[1] is not None), key=lambda row: row[1])[:2]
    assert [line.split()[0] for line in shown[1:3]] == [row[0] for row in lowest]
    assert "3 more of 5 classes" in shown[3]


def test_requests_that_cannot_be_counted():
    predicted, truth = masks(1)[0]
    scores = SegmentScores(2, K)
    scores.add(0, predicted, truth)
    with pytest.raises(ValueError, match="picture 0 came twice"):
        scores.add(0, predicted, truth)
    with pytest.raises(ValueError, match="unequal size"):
        scores.add(1, predicted[:-1], truth)
    with pytest.raises(ValueError, match="1 of 2 pictures were not added"):
        scores.evaluation("val", CLASSES, ["a", "b"])
    with pytest.raises(ValueError, match="in common"):
        scores.merge(scores)


@pytest.mark.real
def test_real_masks():
    root = Path(os.environ.get("VITGRAFT_SHARED") or "") / "data" / "camvid"
    if not root.is_dir():
        pytest.skip("VITGRAFT_SHARED names no folder with data/camvid")
    files = sorted((root / "masks" / "val").iterdir())[:12]
    truth = [torch.from_numpy(np.array(Image.open(file))) for file in files]
    classes = (root / "classes.txt").read_text().split()
    moved = [(mask.roll(6, 1).long(), mask) for mask in truth]
    moved = [(torch.where(p == 255, 3, p), t) for p, t in moved]
    record = evaluate(moved, classes)
    known = torch.cat([t.flatten() for _, t in moved]) != 255
    said, true = (torch.cat([pair[i].flatten() for pair in moved])[known] for i in (0, 1))
    by_class = [((said == k) & (true == k)).sum() / ((said == k) | (true == k)).sum() for k in range(len(classes))]
    assert record.value == pytest.approx(float(torch.stack(by_class).nanmean()), abs=1e-6)
    assert 0.5 < record.value < 0.95
