"""What an evaluation looks like on a page: accuracy by class, confusion, and pictures with the answers they got."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import torch

from ..measures.accuracy import Evaluation, wilson
from .charts import Bar, bars, heat_map
from .page import gallery, name, percent, picture, section

RIGHT, WRONG = 8, 16  # pictures shown of each kind
EXAMPLES = 6  # pictures of each kind in a comparison of methods
MOST_BARS, WORST, BEST = 40, 20, 10  # classes with a bar each; beyond that many, only the two ends
MOST_CELLS, PAIRS = 20, 15  # classes in a confusion matrix; beyond that many, only the most confused pairs


def by_class(evaluation: Evaluation) -> str:
    """Accuracy by class, lowest first, and what is taken for what."""
    measured = [Bar(label, k / n, wilson(k, n), n) for label, k, n in evaluation.per_class if n]
    order = sorted(measured, key=lambda bar: (bar.share, bar.name))
    if len(order) > MOST_BARS:
        parts = [(f"The {WORST} lowest", order[:WORST]), (f"The {BEST} highest", order[::-1][:BEST])]
    elif len(order) > 12:
        half = math.ceil(len(order) / 2)
        parts = [("", order[:half]), ("", order[half:])]
    else:
        parts = [("", order)]
    tables = "".join(bars(entries, "class", caption=caption) for caption, entries in parts)
    absent = len(evaluation.classes) - len(order)
    note = f"Lowest first, n pictures of each in “{evaluation.split}”, with 95 % intervals."
    if absent:
        note += f" {absent} of the {len(evaluation.classes)} classes have no picture there."
    K = len(evaluation.classes)
    first = section("Accuracy by class", f'<div class="columns">{tables}</div>', note=note)
    second = _confusion(evaluation)
    return f'<div class="pair">{first}{second}</div>' if K <= 12 else first + second


def _confusion(evaluation: Evaluation) -> str:
    if len(evaluation.classes) <= MOST_CELLS:
        table = heat_map(evaluation.classes, evaluation.confusion.tolist(), "rows: truth · columns: prediction")
        return section("Confusion matrix", table)
    confusion = evaluation.confusion
    totals = confusion.sum(dim=1).tolist()
    mistakes = confusion.clone().fill_diagonal_(0)
    pairs = sorted(((-int(mistakes[i, j]), i, j) for i, j in mistakes.nonzero().tolist()))[:PAIRS]
    if not pairs:
        return section("Most confused classes", "<p>No class was taken for another.</p>")
    lines = "".join(
        f"<tr><td>{name(evaluation.classes[i])}</td><td>{name(evaluation.classes[j])}</td>"
        f'<td class="number">{-count:,}</td><td class="number">{percent(-count / totals[i])}</td></tr>'
        for count, i, j in pairs
    )
    head = '<th scope="col">truth</th><th scope="col">taken for</th><th scope="col" class="number">pictures</th>'
    table = f'<thead><tr>{head}<th scope="col" class="number">of the truth’s</th></tr></thead><tbody>{lines}</tbody>'
    return section("Most confused classes", f'<div class="scroll"><table class="plain">{table}</table></div>')


def surest(evaluation: Evaluation) -> str:
    """The right and the wrong answers that the model was surest of."""
    sure, predicted = evaluation.probabilities.max(dim=1)
    order = torch.argsort(sure, descending=True, stable=True).tolist()
    right = [i for i in order if predicted[i] == evaluation.labels[i]]
    wrong = [i for i in order if predicted[i] != evaluation.labels[i]]
    # The surest right answers are often all of one easy class: every class gets its turn.
    a_class, taken = math.ceil(RIGHT / len(evaluation.classes)), [0] * len(evaluation.classes)
    varied: list[int] = []
    for i in right:
        label = int(predicted[i])
        if taken[label] < a_class and len(varied) < RIGHT:
            taken[label] += 1
            varied.append(i)
    none_wrong = f"<p>No wrong prediction among the {len(evaluation):,} pictures.</p>"
    mistakes = gallery(_answer(evaluation, i) for i in wrong[:WRONG]) if wrong else none_wrong
    limit = f"at most {a_class} of a class" if a_class > 1 else "one of a class"
    hits = gallery(_answer(evaluation, i) for i in varied) if varied else "<p>No right prediction.</p>"
    return section(
        "The surest mistakes", mistakes, note=f"{len(wrong):,} of {len(evaluation):,} are wrong; the surest first."
    ) + section("The surest right predictions", hits, note=f"The surest first, {limit}.")


def _answer(evaluation: Evaluation, i: int) -> str:
    label, answer = int(evaluation.labels[i]), int(evaluation.predicted[i])
    truth, said = evaluation.classes[label], evaluation.classes[answer]
    line = _verdict(label == answer, said, float(evaluation.probabilities[i, answer]))
    if label == answer:
        return picture(evaluation.paths[i], line, f"a picture of {truth}, recognised", "good")
    line += f"<p>truth: {name(truth)} <small>{percent(float(evaluation.probabilities[i, label]))}</small></p>"
    return picture(evaluation.paths[i], line, f"a picture of {truth}, taken for {said}", "bad")


def _verdict(right: bool, said: str, sure: float, method: str = "") -> str:
    """One answer as a line: a mark that does not rest on colour, the class, its probability."""
    word, mark = ("right", "✓") if right else ("wrong", "✗")
    kind = "good" if right else "bad"
    who = f'<span class="who">{name(method)}</span> ' if method else ""
    return (
        f'<p class="{kind}">{who}<span class="mark" role="img" aria-label="{word}">{mark}</span> '
        f"<b>{name(said)}</b> <small>{percent(sure)}</small></p>"
    )


def examples(evaluations: Mapping[str, Evaluation]) -> str:
    """The same pictures with every method's answer: some from all over the split, some that divide the methods.

    Only pictures that all evaluations hold are shown.
    """
    first = next(iter(evaluations.values()))
    places = {method: {path: i for i, path in enumerate(record.paths)} for method, record in evaluations.items()}
    predicted = {method: record.predicted.tolist() for method, record in evaluations.items()}
    shared = [path for path in dict.fromkeys(first.paths) if all(path in place for place in places.values())]

    def card(path: str) -> str:
        truth = first.classes[int(first.labels[places[next(iter(evaluations))][path]])]
        lines = f"<p>truth: {name(truth)}</p>"
        for method, record in evaluations.items():
            i = places[method][path]
            answer = predicted[method][i]
            right = answer == int(record.labels[i])
            lines += _verdict(right, record.classes[answer], float(record.probabilities[i, answer]), method)
        return picture(path, lines, f"a picture of {truth}")

    divided = [p for p in shared if len({predicted[m][places[m][p]] for m in evaluations}) > 1]
    parts = [
        (f"Some of the {len(shared):,} pictures, picked without a look at the answers", _scattered(shared, EXAMPLES)),
        (f"Some of the {len(divided):,} on which the methods disagree", _scattered(divided, EXAMPLES)),
    ]
    return "".join(f"<h3>{escape(title)}</h3>{gallery(map(card, paths), wide=True)}" for title, paths in parts if paths)


def _scattered(items: Sequence[str], most: int) -> list[str]:
    """Up to `most` items, always the same, from all over the list: steps of the golden ratio meet no period in it."""
    picked = [int(k * 0.6180339887 % 1 * len(items)) for k in range(1, 4 * most)]
    return [items[i] for i in sorted(list(dict.fromkeys(picked))[:most])] if items else []
