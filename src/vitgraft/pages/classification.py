"""What an evaluation of a classifier looks like on a page: accuracy by class, confusion, pictures with the answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from ..measures.accuracy import Evaluation, wilson
from .charts import Bar
from .page import macro, number, percent

RIGHT, WRONG = 8, 16  # pictures shown of each kind
EXAMPLES = 6  # pictures of each kind in a comparison of methods
MOST_BARS, WORST, BEST = 40, 20, 10  # classes with a bar each; beyond that many, only the two ends
MOST_CELLS, PAIRS = 20, 15  # classes in a confusion matrix; beyond that many, only the most confused pairs
SIDE_BY_SIDE = 12  # classes up to which bars and matrix stand beside each other

Parts = list[tuple[str, list[Bar]]]  # tables of bars, each with its caption


def sections(evaluation: Evaluation) -> Markup:
    """Accuracy by class, lowest first; what is taken for what; the answers that the model was surest of."""
    measured = [Bar(label, k / n, wilson(k, n), n) for label, k, n in evaluation.per_class if n]
    absent = len(evaluation.classes) - len(measured)
    note = f"Lowest first, n pictures of each in “{evaluation.split}”, with 95 % intervals."
    told = {"balanced accuracy": evaluation.balanced, "macro F1": evaluation.macro_f1}
    told |= {"top-5": top} if (top := evaluation.numbers.get("top5_accuracy")) is not None else {}
    note += f" {', '.join(f'{name} {percent(value)}' for name, value in told.items()).capitalize()}."
    note += f" {absent} of the {len(evaluation.classes)} classes have no picture there." if absent else ""
    order, wrong, right, a_class = _surest(evaluation)
    return macro(
        "classification.html",
        "sections",
        evaluation,
        lowest_first(measured),
        note,
        None if len(evaluation.classes) <= MOST_CELLS else _confused(evaluation),
        len(evaluation.classes) <= SIDE_BY_SIDE,
        [_answer(evaluation, i) for i in wrong],
        [_answer(evaluation, i) for i in right],
        order,
        f"at most {a_class} of a class" if a_class > 1 else "one of a class",
    )


def lowest_first(entries: Sequence[Bar]) -> Parts:
    """Tables of bars, lowest first; of many classes the two ends."""
    order = sorted(entries, key=lambda bar: (bar.share or 0.0, bar.name))
    if len(order) > MOST_BARS:
        return [(f"The {WORST} lowest", order[:WORST]), (f"The {BEST} highest", order[::-1][:BEST])]
    half = math.ceil(len(order) / 2) if len(order) > 12 else len(order)
    return [("", part) for part in (order[:half], order[half:]) if part]


def _confused(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    totals, names = evaluation.confusion.sum(dim=1).tolist(), evaluation.classes
    pairs = most_confused(evaluation.confusion)[:PAIRS]
    return [(names[i], names[j], number(count), percent(count / totals[i])) for count, i, j in pairs]


def most_confused(confusion: Tensor) -> list[tuple[int, int, int]]:
    """How often each class was taken for which other one, most often first: of confusion [K, K] (count, i, j)."""
    mistakes = confusion.clone().fill_diagonal_(0)
    return sorted(((int(mistakes[i, j]), i, j) for i, j in mistakes.nonzero().tolist()), key=lambda p: (-p[0], *p[1:]))


def _surest(evaluation: Evaluation) -> tuple[int, list[int], list[int], int]:
    """How many answers are wrong; of the wrong and the right ones those that the model was surest of; how many of the
    latter a class may have."""
    sure, predicted = evaluation.probabilities.max(dim=1)
    order = torch.argsort(sure, descending=True, stable=True).tolist()
    wrong = [i for i in order if predicted[i] != evaluation.labels[i]]
    # The surest right answers are often all of one easy class: every class gets its turn.
    a_class, taken = math.ceil(RIGHT / len(evaluation.classes)), [0] * len(evaluation.classes)
    varied: list[int] = []
    for i in order:
        label = int(predicted[i])
        if label == evaluation.labels[i] and taken[label] < a_class and len(varied) < RIGHT:
            taken[label] += 1
            varied.append(i)
    return len(wrong), wrong[:WRONG], varied, a_class


def _answer(evaluation: Evaluation, i: int) -> dict[str, Any]:
    label, answer = int(evaluation.labels[i]), int(evaluation.predicted[i])
    return {
        "path": evaluation.paths[i],
        "right": label == answer,
        "truth": evaluation.classes[label],
        "said": evaluation.classes[answer],
        "sure": float(evaluation.probabilities[i, answer]),
        "of_truth": float(evaluation.probabilities[i, label]),
    }


def examples(evaluations: Mapping[str, Evaluation]) -> Markup:
    """The same pictures with every method's answer: some from all over the split, some that divide the methods.

    Only pictures that all evaluations hold are shown.
    """
    first = next(iter(evaluations.values()))
    places = {method: {path: i for i, path in enumerate(record.paths)} for method, record in evaluations.items()}
    predicted = {method: record.predicted.tolist() for method, record in evaluations.items()}
    shared = [path for path in dict.fromkeys(first.paths) if all(path in place for place in places.values())]

    def card(path: str) -> tuple[str, str, list[tuple[str, bool, str, float]]]:
        truth = first.classes[int(first.labels[places[next(iter(evaluations))][path]])]
        answers = []
        for method, record in evaluations.items():
            i = places[method][path]
            answer = predicted[method][i]
            right = answer == int(record.labels[i])
            answers.append((method, right, record.classes[answer], float(record.probabilities[i, answer])))
        return path, truth, answers

    divided = [p for p in shared if len({predicted[m][places[m][p]] for m in evaluations}) > 1]
    parts = [
        (f"Some of the {len(shared):,} pictures, picked without a look at the answers", _scattered(shared, EXAMPLES)),
        (f"Some of the {len(divided):,} on which the methods disagree", _scattered(divided, EXAMPLES)),
    ]
    return macro("classification.html", "examples", [(title, [card(p) for p in paths]) for title, paths in parts])


def _scattered(items: Sequence[str], most: int) -> list[str]:
    """Up to `most` items, always the same, from all over the list: steps of the golden ratio meet no period in it."""
    picked = [int(k * 0.6180339887 % 1 * len(items)) for k in range(1, 4 * most)]
    return [items[i] for i in sorted(list(dict.fromkeys(picked))[:most])] if items else []
