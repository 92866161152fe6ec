"""How often a training picture comes: by the rarest class that it shows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from helpers_cli import fit, result_of

from vitgraft.common.errors import RequestError
from vitgraft.data import epoch_batches
from vitgraft.data.audit import Seen, shown_by, shown_labels
from vitgraft.data.truth import DenseSplit, Objects
from vitgraft.training.request import settle


def test_classes_of_one_picture_each_come_alike():
    shown = shown_labels([(0,)] * 90 + [(1,)] * 9 + [(2,)], 4)
    shares = shown.shares(1.0)
    assert [sum(shares[:90]), sum(shares[90:99]), shares[99]] == pytest.approx([100] * 3)
    halfway = shown.shares(0.5)
    assert halfway[99] / halfway[0] == pytest.approx(90**0.5)
    assert shown.shares(0.0) == [1.0] * 100


def test_of_several_classes_the_rarest_counts_and_of_none_the_commonest():
    shown = shown_labels([(0,), (0, 1), (0,), ()], 2)
    assert shown.shares(1.0) == pytest.approx([4 / 3, 4.0, 4 / 3, 4 / 3])


def test_masks_and_objects_say_what_a_picture_shows(tmp_path):
    counts = np.zeros((3, 256), dtype=np.int64)
    counts[0, 0], counts[1, [0, 1]], counts[2, [0, 255]] = 50, [40, 10], 25
    paths = tuple(tmp_path / f"{k}.png" for k in range(3))
    masks = shown_by(DenseSplit("train", paths, masks=paths), [Seen((5, 10), row) for row in counts], 2)
    assert masks.each == [[0], [0, 1], [0]]
    boxes, area = np.array([[0.0, 0, 4, 4]] * 2), np.array([16.0] * 2)
    found = [Objects((5, 10), boxes, np.array([0, 1]), np.array([False, crowd]), area) for crowd in (False, True)]
    objects = shown_by(DenseSplit("train", paths[:2], objects=tuple(found)), [Seen((5, 10))] * 2, 2)
    assert objects.each == [[0, 1], [0]]


def test_an_epoch_draws_by_them():
    shares = [1.0] * 90 + [9.0] * 10
    drawn = Counter(
        i for epoch in range(40) for batch in epoch_batches(100, 10, seed=0, epoch=epoch, shares=shares) for i in batch
    )
    assert sum(drawn.values()) == 4000
    assert sum(drawn[i] for i in range(90)) == pytest.approx(2000, rel=0.06)
    given = {"seed": 1, "epoch": 2, "shares": shares}
    whole = epoch_batches(100, 10, **given)
    assert whole == epoch_batches(100, 10, **given)
    parts = [epoch_batches(100, 10, rank=rank, world=2, **given) for rank in range(2)]
    assert [sorted(one + other) for one, other in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]


def test_a_fit_is_told_of_it(ground, tmp_path):
    run = fit(ground, tmp_path / "run", "--method", "linear", "--sampling", "balanced", "--epochs", 1)
    assert result_of(run)["protocol"]["sampling"] == "balanced"
    with pytest.raises(RequestError, match="There is no sampling 'often'"):
        settle(tmp_path, task="classify", sampling="often")
    with pytest.raises(RequestError, match="sampling is for the task classify"):
        settle(tmp_path, task="regress", sampling="root")
