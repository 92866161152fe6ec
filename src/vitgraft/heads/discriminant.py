"""Fisher's linear discriminant: the linear classifier that class means and one covariance of features give at once.

Where features of each class are normal with a covariance that all classes share, Bayes' rule is linear:

    logits_k = s (x W_k + b_k),   W_k = S^-1 m_k,   b_k = -m_k W_k / 2 + log p_k

with the mean m_k of class k, its share p_k, and S the covariance within classes, moved towards a multiple of the
identity because pictures are few (shrinkage; Friedman 1989, Regularized Discriminant Analysis). How far, and the scale
s, are those that tell best, by cross entropy, what a fifth of the pictures are after the other four.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5
SHRINKAGES = (0.03, 0.1, 0.3, 0.6)
SCALES = (0.1, 0.2, 0.35, 0.6, 1.0)
FOR_FEW = 0.3  # the shrinkage where no class has two pictures to try one with


def discriminant(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Features x [n, D] and labels [n] -> weight [K, D] and bias [K], in float64. A class without pictures gets, for
    every picture, the lowest logit that there is."""
    x = x.double()
    rank = torch.zeros_like(labels)  # of a picture within its class
    for k in range(classes):
        rank[labels == k] = torch.arange(int((labels == k).sum()), device=labels.device)
    lost = torch.zeros(len(SHRINKAGES), len(SCALES), dtype=torch.float64)
    tried = 0
    for fold in range(FOLDS):
        held = rank % FOLDS == fold
        seen = torch.zeros(classes, dtype=torch.bool, device=x.device)
        seen[labels[~held]] = True
        held_known = held & seen[labels]
        tried += int(held_known.sum())
        for i, (weight, bias) in enumerate(_shrunk(x[~held], labels[~held], classes, SHRINKAGES)):
            logits = x[held_known] @ weight.T + bias
            for j, scale in enumerate(SCALES):
                lost[i, j] += F.cross_entropy(scale * logits, labels[held_known], reduction="sum").cpu()
    best = divmod(int(lost.argmin()), len(SCALES))
    shrinkage, scale = (SHRINKAGES[best[0]], SCALES[best[1]]) if tried else (FOR_FEW, 1.0)
    [(weight, bias)] = _shrunk(x, labels, classes, (shrinkage,))
    shown = torch.bincount(labels, minlength=classes) > 0
    bias = torch.where(shown, bias, (x @ weight[shown].T + bias[shown]).min())
    return scale * weight, scale * bias


def _shrunk(x: Tensor, labels: Tensor, classes: int, shrinkages: tuple[float, ...]) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias for each of the shrinkages."""
    of = F.one_hot(labels, classes).to(x.dtype)
    counts = of.sum(0)
    means = (of.T @ x) / counts.clamp(min=1)[:, None]
    within = x - means[labels]
    covariance = within.T @ within / max(len(x) - int((counts > 0).sum()), 1)
    D = x.shape[1]
    # One picture of each class shows none within them, pictures that are all the same none at all.
    level = next((v for v in (covariance.diagonal().mean(), (x - x.mean(0)).square().mean()) if v > 0), x.new_ones(()))
    identity = torch.eye(D, dtype=x.dtype, device=x.device)
    centred = means - x.mean(0)  # the same answers, and none far from zero
    found = []
    for share in shrinkages:
        weight = torch.linalg.solve((1 - share) * covariance + share * level * identity, centred.T).T
        bias = (counts / len(x)).log() - ((means + x.mean(0)) * weight).sum(1) / 2  # -inf for a class without pictures
        found.append((weight * (counts > 0)[:, None], bias))
    return found
