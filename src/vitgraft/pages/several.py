"""What an evaluation of several labels, or of a number, looks like on a page."""

from __future__ import annotations

import torch
from markupsafe import Markup

from ..measures import amounts as numbers
from ..measures import labels as tags
from . import charts
from .charts import Bar
from .classification import lowest_first
from .page import macro, percent

SHOWN = 16  # pictures of each kind
MOST_DOTS = 1000
MOST_LABELS = 6  # named below a picture


def labels(evaluation: tags.Evaluation) -> Markup:
    """Average precision by label, lowest first; the pictures whose labels the model found least likely, and most."""
    measured = [Bar(name, ap, None, n) for name, ap, n in evaluation.per_class if ap is not None]
    absent = len(evaluation.classes) - len(measured)
    found = evaluation.numbers
    note = f"Lowest first, n pictures of “{evaluation.split}” that have it. Of the answers from {percent(0.5)} on: "
    note += f"micro F1 {percent(found['micro_f1'])}, macro F1 {percent(found['macro_f1'])}; all labels of a picture "
    note += f"right and complete in {percent(found['exact'])}."
    note += f" {absent} of the {len(evaluation.classes)} labels no picture has there." if absent else ""
    p = evaluation.probabilities.double().clamp(1e-7, 1 - 1e-7)
    doubt = -torch.where(evaluation.truth, p.log(), (1 - p).log()).sum(1)
    wrong = [i for i in doubt.argsort(descending=True, stable=True).tolist() if not _right(evaluation, i)][:SHOWN]
    right = [i for i in doubt.argsort(stable=True).tolist() if _right(evaluation, i)][:SHOWN]
    cards = [[_card(evaluation, i) for i in chosen] for chosen in (wrong, right)]
    return macro("several.html", "labels", lowest_first(measured), note, *cards)


def _right(evaluation: tags.Evaluation, i: int) -> bool:
    return bool((evaluation.said[i] == evaluation.truth[i]).all())


def _card(evaluation: tags.Evaluation, i: int) -> tuple[str, str, list[tuple[str, bool, float]]]:
    """The picture, its labels, and (label, whether right, probability) of those that were said."""
    p, truth = evaluation.probabilities[i], evaluation.truth[i]
    own = [name for name, there in zip(evaluation.classes, truth.tolist(), strict=True) if there]
    said = [k for k in p.argsort(descending=True, stable=True).tolist() if evaluation.said[i, k]][:MOST_LABELS]
    return (
        evaluation.paths[i],
        ", ".join(own) or "none",
        [(evaluation.classes[k], bool(truth[k]), float(p[k])) for k in said],
    )


def amounts(evaluation: numbers.Evaluation) -> Markup:
    """The answers over the truth; the pictures whose answers are the furthest off."""
    n, name = len(evaluation), evaluation.classes[0]
    step = max(1, n // MOST_DOTS)
    pairs = list(zip(evaluation.truth.tolist(), evaluation.answers.tolist(), strict=True))[::step]
    drawn = charts.against(name, pairs, "truth", "answer")
    found = evaluation.numbers
    low, high = found["mean_absolute_error_interval"]
    note = f"Off by {found['mean_absolute_error']:.4g} on average (95 % interval {low:.4g} to {high:.4g}), root mean "
    note += f"square {found['root_mean_square_error']:.4g}."
    worst = evaluation.errors.abs().argsort(descending=True, stable=True).tolist()[:SHOWN]
    cards = [
        (
            evaluation.paths[i],
            f"{evaluation.truth[i]:.4g}",
            f"{evaluation.answers[i]:.4g}",
            f"{evaluation.errors[i]:+.4g}",
        )
        for i in worst
    ]
    return macro("several.html", "amounts", Markup(drawn), note, name, cards)
