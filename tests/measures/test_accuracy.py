"""The Evaluation record: accuracy, Wilson's interval, per-class counts and the confusion matrix."""

import json

import pytest
import torch

from vitgraft.measures.accuracy import Evaluation, wilson


def evaluation(labels, predicted, classes=("ant", "bee", "cat")):
    probabilities = torch.full((len(labels), len(classes)), 0.1)
    probabilities[torch.arange(len(labels)), torch.tensor(predicted)] = 0.8
    return Evaluation("val", classes, [f"{i}.jpg" for i in range(len(labels))], torch.tensor(labels), probabilities)


def test_numbers_of_a_small_split():
    record = evaluation([0, 0, 0, 1, 1], [0, 0, 1, 1, 0])
    assert len(record) == 5
    assert record.value == 0.6
    assert record.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert record.confusion.dtype == torch.int64
    assert record.per_class == [("ant", 2, 3), ("bee", 1, 2), ("cat", 0, 0)]
    assert record.predicted.tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (87, 100, 0.790193, 0.922440)],
)
def test_wilson_against_published_formula(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_ends_solve_its_equation():
    """The ends of the interval are the shares p with |k/n - p| = z sqrt(p (1 - p) / n)."""
    z = 1.959964
    for correct, n in [(3, 7), (41, 200), (199, 200)]:
        for p in wilson(correct, n):
            assert abs(correct / n - p) == pytest.approx(z * (p * (1 - p) / n) ** 0.5)


def test_interval_encloses_the_accuracy():
    record = evaluation([0, 1, 2] * 20, [0, 1, 1] * 20)
    low, high = record.interval
    assert 0 < low < record.value < high < 1


def test_to_dict_survives_json():
    record = evaluation([0, 1, 2, 2], [0, 1, 2, 0])
    again = json.loads(json.dumps(record.to_dict()))
    assert again == record.to_dict()
    assert again["accuracy"] == 0.75
    assert again["interval"] == list(record.interval)
    assert again["per_class"] == [["ant", 1, 1], ["bee", 1, 1], ["cat", 1, 2]]
    assert again["confusion"] == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert (again["split"], again["pictures"], again["classes"]) == ("val", 4, ["ant", "bee", "cat"])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        Evaluation("val", ("a",), [], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1))
    with pytest.raises(ValueError, match="labels"):
        Evaluation("val", ("a", "b"), ["1", "2"], torch.tensor([0]), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        Evaluation("val", ("a", "b"), ["1", "2"], torch.tensor([0, 2]), torch.zeros(2, 2))


def test_numbers_of_unequal_classes_are_scikit_learn_s():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(3)
    labels = torch.cat([torch.zeros(40), torch.ones(5), torch.full((3,), 4)]).long()
    probabilities = (torch.randn(48, 7, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 7)).softmax(1)
    found = Evaluation("val", tuple("abcdefg"), [str(i) for i in range(48)], labels, probabilities)
    predicted = found.predicted
    assert found.balanced == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    top = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(7))
    assert found.numbers["top5_accuracy"] == pytest.approx(top)
    assert "balanced accuracy" in found.lines()[0]
