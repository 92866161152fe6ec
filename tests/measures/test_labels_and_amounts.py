"""Numbers of several labels and of amounts, against scikit-learn's and by hand."""

import pytest
import torch

from vitgraft.measures import amounts, labels
from vitgraft.measures.resampling import interval

metrics = pytest.importorskip("sklearn.metrics")


def drawn(n=60, K=4, ties=False):
    torch.manual_seed(0)
    truth = torch.rand(n, K) < 0.4
    scores = (torch.rand(n, K) + 0.6 * truth).clamp(0, 1)
    return truth, (scores * 5).round() / 5 if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns(ties):
    truth, scores = drawn(ties=ties)
    weights = torch.stack([torch.ones(60), torch.randint(0, 3, (60,))]).double()
    for k in range(4):
        found = labels.average_precision(truth[:, k], scores[:, k], weights)
        for one, w in zip(found.tolist(), weights, strict=True):
            theirs = metrics.average_precision_score(truth[:, k].numpy(), scores[:, k].numpy(), sample_weight=w.numpy())
            assert one == pytest.approx(theirs, rel=1e-12)


def test_the_numbers_of_labels_are_scikit_learns():
    truth, scores = drawn()
    truth[:, 3] = False  # which no picture has
    found = labels.Evaluation("test", tuple("abcd"), [str(i) for i in range(60)], truth, scores)
    y, said = truth.numpy(), (scores >= 0.5).numpy()
    numbers = found.numbers
    each = [metrics.average_precision_score(y[:, k], scores[:, k].numpy()) for k in range(3)]
    assert found.value == numbers["mAP"] == pytest.approx(sum(each) / 3)
    assert [ap for _, ap, _ in found.per_class] == [*map(pytest.approx, each), None]
    assert numbers["micro_f1"] == pytest.approx(metrics.f1_score(y, said, average="micro"))
    assert numbers["macro_f1"] == pytest.approx(metrics.f1_score(y, said, average="macro", zero_division=0))
    assert numbers["exact"] == pytest.approx(metrics.accuracy_score(y, said))
    low, high = found.interval
    assert low < found.value < high
    assert found.interval == found.interval
    assert found.lines()[0].startswith(f"mAP {found.value:.2%} (")
    assert found.to_dict()["per_class"][3] == ["d", None, 0]


def test_the_numbers_of_amounts_are_scikit_learns():
    torch.manual_seed(0)
    truth = torch.randn(80).double()
    answers = truth + 0.3 * torch.randn(80)
    found = amounts.Evaluation("test", ("age",), ["x"] * 80, truth, answers)
    assert found.value == pytest.approx(metrics.r2_score(truth, answers))
    assert found.numbers["mean_absolute_error"] == pytest.approx(metrics.mean_absolute_error(truth, answers))
    assert found.numbers["root_mean_square_error"] == pytest.approx(metrics.mean_squared_error(truth, answers) ** 0.5)
    assert found.interval[0] < found.value < found.interval[1]
    assert "Always answering the median" in found.note


def test_an_interval_is_that_of_many_samples():
    """Of a mean: about 1.96 standard errors to both sides."""
    torch.manual_seed(0)
    x = torch.randn(400).double()
    low, high = interval(400, lambda w: w @ x / w.sum(1))
    assert high - low == pytest.approx(2 * 1.96 * x.std().item() / 20, rel=0.15)
    assert low < x.mean() < high
