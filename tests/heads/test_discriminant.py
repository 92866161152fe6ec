"""The head that begins as Fisher's linear discriminant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_cli import adapter_of, call, fit, fit_words, result_of

from vitgraft.common.errors import RequestError
from vitgraft.common.settings import Settings
from vitgraft.heads import discriminant as module
from vitgraft.heads.classify import Classify
from vitgraft.heads.discriminant import discriminant
from vitgraft.model import build
from vitgraft.testing.backbones import random_backbone
from vitgraft.training.loop import take_settings


def classes_of(n=90, D=12, K=3, apart=1.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % K
    mixed = torch.randn(D, D, generator=draw)  # a covariance that is no multiple of the identity
    return 5 + (apart * torch.randn(K, D, generator=draw))[labels] + torch.randn(
        n, D, generator=draw
    ) @ mixed / 3, labels


@pytest.mark.parametrize("shrinkage", [0.1, 0.6])
def test_as_scikit_learn_has_it(shrinkage, monkeypatch):
    """Which takes the covariance over n, not n - K."""
    lda = pytest.importorskip("sklearn.discriminant_analysis").LinearDiscriminantAnalysis
    monkeypatch.setattr(module, "SHRINKAGES", (shrinkage,))
    monkeypatch.setattr(module, "SCALES", (1.0,))
    x, labels = classes_of(apart=0.3)
    n, K = len(x), 3
    weight, bias = discriminant(x, labels, K)
    theirs = lda(solver="lsqr", shrinkage=shrinkage).fit(x.double().numpy(), labels.numpy())
    ours = (x.double() @ weight.T + bias).numpy() - np.log(1 / 3)
    found = theirs.decision_function(x.double().numpy()) - np.log(1 / 3)
    ours, found = (logits - logits[:, :1] for logits in (ours, found))  # what all classes share decides nothing
    np.testing.assert_allclose(ours * n / (n - K), found, rtol=1e-6, atol=1e-8)


def test_scale_and_shrinkage_are_those_that_tell_held_out_pictures_best():
    """Of classes that cannot be told apart the logits are small, of others large."""
    hopeless, clear = (discriminant(*classes_of(apart=by), 3)[0].norm() for by in (0.0, 3.0))
    assert hopeless < 0.3 * clear


def test_classes_without_pictures_and_with_one():
    x, labels = classes_of()
    weight, bias = discriminant(x, labels, 5)
    logits = x.double() @ weight.T + bias
    assert torch.isfinite(logits).all()
    assert bool((logits[:, 3:] <= logits[:, :3].min() + 1e-9).all())
    weight, bias = discriminant(x[:3], labels[:3], 3)
    assert (x[:3].double() @ weight.T + bias).argmax(1).tolist() == [0, 1, 2]
    weight, bias = discriminant(torch.ones(6, 4), torch.arange(6) % 3, 3)
    assert torch.isfinite(weight).all()


def test_the_head_gives_its_answers():
    x, labels = classes_of()
    head = Classify((12,), 3)
    head.take(x, labels)
    accuracy = float((head.fc(x).argmax(1) == labels).float().mean())
    assert accuracy > 0.9
    weight, _ = discriminant(x, labels, 3)
    torch.testing.assert_close(head.fc.weight, weight.float())
    assert head.fc.weight.requires_grad


@pytest.mark.parametrize("method", [["linear"], ["lora"], ["hst", "--detached", "--pooled", "both"]])
def test_a_fit_begins_there(method, ground, tmp_path):
    """With a rate that moves nothing the head is the discriminant itself, told by the classes that it finds."""
    more = ("--method", *method, "--head-start", "lda", "--epochs", 1, "--lr", 1e-12)
    assert call(*fit_words(ground, tmp_path / "a", *more)) == 0
    assert call(*fit_words(ground, tmp_path / "b", *more)) == 0
    one, other = (adapter_of(tmp_path / name) for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert result_of(tmp_path / "a")["protocol"]["head_start"] == "lda"
    assert result_of(tmp_path / "a")["value"] > 0.6


def test_what_cannot_be_is_refused(ground, tmp_path, refused):
    zero = refused(*fit_words(ground, tmp_path / "run", "--head-start", "zero"))
    assert "There is no head_start 'zero': there are random, lda" in zero
    done = fit(ground, tmp_path / "done", "--method", "linear", "--epochs", 1)
    both = refused(*fit_words(ground, tmp_path / "run", "--start", done, "--head-start", "lda"))
    assert "has that run's head, but head_start lda was asked for" in both
    other = build(random_backbone(), "linear", classes=3)
    other.head = torch.nn.Identity()
    with pytest.raises(RequestError, match="head_start lda is for a head that is one linear layer"):
        take_settings(other, Settings(head_start="lda"))
