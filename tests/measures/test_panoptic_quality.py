"""Panoptic quality: by hand, by another count, and what becomes of several processes."""

import numpy as np
import pytest
import torch

from vitgraft.data.objects import Objects
from vitgraft.data.segmentations import encode
from vitgraft.measures.panoptic import PanopticScores

SIZE = (20, 30)
CLASSES = ("cat", "dog", "sky")
THINGS = (0, 1)


def mask(rows, columns):
    found = np.zeros(SIZE, dtype=bool)
    found[rows, columns] = True
    return found


LEFT, RIGHT, TOP = (
    mask(slice(10, 20), slice(0, 10)),
    mask(slice(10, 20), slice(20, 30)),
    mask(slice(0, 5), slice(0, 30)),
)


def truth(*segments, crowd=()):
    """segments: (label, mask)."""
    masks = [m for _, m in segments]
    boxes = [[m.any(0).argmax(), m.any(1).argmax(), 30, 20] for m in masks]
    return Objects(
        SIZE,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array([label for label, _ in segments], dtype=np.int64),
        np.array([k in crowd for k in range(len(segments))], dtype=bool),
        np.array([m.sum() for m in masks], dtype=np.float32),
        tuple(map(encode, masks)),
    )


def said(*segments):
    n = len(segments)
    return {
        "boxes": torch.zeros(n, 4),
        "labels": torch.tensor([label for label, _ in segments], dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.5, n),
        "masks": torch.from_numpy(np.stack([m for _, m in segments]) if n else np.zeros((0, *SIZE)))[:, None].float(),
    }


def measured(true, *found):
    scores = PanopticScores([true], len(CLASSES), THINGS)
    scores.add(0, said(*found), SIZE)
    return scores.evaluation("val", CLASSES, ["a.png"])


ALL = ((0, LEFT), (1, RIGHT), (2, TOP))


def test_what_is_right_is_all():
    found = measured(truth(*ALL), *ALL)
    assert found.value == 1
    assert found.numbers["SQ"] == found.numbers["RQ"] == found.numbers["things"]["PQ"] == 1
    assert found.interval is None


def test_by_hand():
    half = LEFT & (np.arange(30) < 6)  # IoU 0.6
    found = measured(truth(*ALL), (0, half), (1, LEFT & ~half), (2, TOP))
    # cat: one found at 0.6. dog: one missed, one that is not there. sky: right.
    assert [value for _, value, _ in found.per_class] == pytest.approx([0.6, 0, 1])
    assert found.value == pytest.approx(1.6 / 3)
    assert found.numbers["things"] == {"PQ": pytest.approx(0.3), "SQ": pytest.approx(0.3), "RQ": pytest.approx(0.5)}
    assert found.numbers["stuff"]["PQ"] == 1
    assert "PQ 53.33% (things 30.00%, stuff 100.00%)" in found.lines()[0]


def test_a_class_that_is_nowhere_does_not_count():
    found = measured(truth((0, LEFT)), (0, LEFT))
    assert found.value == 1
    assert [value for _, value, _ in found.per_class] == [1, None, None]


def test_nothing_found():
    assert measured(truth(*ALL)).value == 0


def test_what_lies_in_no_segment_or_in_a_crowd_is_not_wrong():
    assert measured(truth((0, LEFT), (0, RIGHT), crowd=[1]), (0, LEFT), (0, RIGHT)).value == 1
    assert measured(truth((0, LEFT)), (0, LEFT), (2, TOP)).value == 1


def test_two_things_of_one_class_are_two_but_stuff_is_one():
    both = LEFT | RIGHT
    assert measured(truth((0, LEFT), (0, RIGHT)), (0, both)).value == 0
    assert measured(truth((2, LEFT), (2, RIGHT)), (2, both)).value == 1


def of_class(segments, k):
    """The masks of a class: of stuff one."""
    masks = [m for label, m in segments if label == k]
    return [np.any(masks, axis=0)] if masks and k not in THINGS else masks


def other_count(true, found):
    """Kirillov's definition, written out: segments of one class match at an IoU above a half."""
    void = ~np.any([m for _, m in true], axis=0)
    parts = []
    for k in range(len(CLASSES)):
        own, theirs = of_class(true, k), of_class(found, k)
        iou = np.array([[(a & b).sum() / max(((a | b) & ~(b & void)).sum(), 1) for b in theirs] for a in own])
        iou = iou.reshape(len(own), len(theirs))
        hits = iou > 0.5
        false = sum(not hits[:, j].any() and (b & void).sum() <= 0.5 * b.sum() for j, b in enumerate(theirs))
        total = hits.sum() + 0.5 * (false + (~hits.any(1)).sum())
        if total:
            parts.append(iou[hits].sum() / total)
    return np.mean(parts)


@pytest.mark.parametrize("seed", range(8))
def test_another_count_says_the_same(seed):
    rng = np.random.default_rng(seed)

    def segments(n):
        """Of random blocks, none of which shares a pixel with another."""
        ids = rng.integers(0, n + 1, (4, 6)).repeat(5, 0).repeat(5, 1)
        return [(int(rng.integers(3)), ids == i) for i in range(1, n + 1) if (ids == i).any()]

    true = segments(4)
    found = [(label, np.roll(m, 1, axis=1)) for label, m in true[:-1]] + segments(2)[:1]
    taken = np.zeros(SIZE, dtype=bool)
    for k, (label, m) in enumerate(found):
        found[k] = (label, m & ~taken)
        taken |= m
    found = [(label, m) for label, m in found if m.any()]
    assert measured(truth(*true), *found).value == pytest.approx(other_count(true, found))


def test_several_processes_count_what_one_does():
    true = [truth(*ALL), truth((0, RIGHT)), truth(*ALL)] * 5
    found = [said(*ALL), said((0, LEFT)), said((2, TOP))] * 5
    whole = PanopticScores(true, 3, THINGS)
    parts = [PanopticScores(true, 3, THINGS) for _ in range(2)]
    for i, each in enumerate(found):
        whole.add(i, each, SIZE)
        parts[i % 2].add(i, each, SIZE)
    parts[0].merge(parts[1])
    one, other = (scores.evaluation("val", CLASSES, list(map(str, range(15)))) for scores in (whole, parts[0]))
    assert one.to_dict() == other.to_dict()
    low, high = one.interval
    assert low < one.value < high
    assert one.ranking[0] in (0, 3, 6, 9, 12)
    with pytest.raises(ValueError, match="in common"):
        parts[0].merge(parts[1])
