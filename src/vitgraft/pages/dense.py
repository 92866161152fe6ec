"""What dense predictions look like on a page: numbers, classes, and the best and worst pictures beside the truth."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.errors import WorkError
from ..data.pictures import open_picture
from ..data.truth import IGNORED
from ..measures.average_precision import NUMBERS, DetectEvaluation
from ..measures.miou import SegmentEvaluation
from . import drawing
from .charts import Bar, bars
from .classification import BEST, MOST_BARS, PAIRS, WORST
from .page import SPACE, interval_text, name, percent, section, tiles
from .palette import colour, is_background

SHOWN_WORST, SHOWN_BEST = 6, 4  # pictures, each with its truth
EDGE, BYTES = 360, 20_000  # of an embedded drawing: pixels of its longer side, and its JPEG, at most
QUALITIES = (85, 75, 60, 40, 20, 8)  # the first that keeps to BYTES is taken

Panels = Callable[[int], tuple[Image.Image, Image.Image, set[int]]]  # a picture's truth, its prediction, their labels


def sections(evaluation: SegmentEvaluation | DetectEvaluation) -> str:
    """All sections of a page that one evaluation of a dense task gives."""
    if isinstance(evaluation, SegmentEvaluation):
        return _segment_numbers(evaluation) + _segment_classes(evaluation) + _segment_pictures(evaluation)
    return _detect_numbers(evaluation) + _detect_classes(evaluation) + _detect_pictures(evaluation)


# --- segmentation -------------------------------------------------------------------------------------------------


def _segment_numbers(evaluation: SegmentEvaluation) -> str:
    measured = [(value, label) for label, value, _ in evaluation.per_class if value is not None]
    lowest, label = min(measured)
    between = f"95{SPACE}% interval {interval_text(evaluation.interval)}" if evaluation.interval else ""
    return section(
        "Segmentation",
        tiles(
            [
                ("mIoU", percent(evaluation.value), between or "mean over the classes"),
                ("Pixel accuracy", percent(evaluation.pixel_accuracy), "of the pixels that have a class"),
                ("Lowest class", percent(lowest), label),
                ("Classes measured", f"{len(measured):,}", f"of {len(evaluation.classes):,}"),
            ]
        ),
        note="IoU: pixels in both the prediction and the truth, of those in either, counted over the whole split.",
    )


def _segment_classes(evaluation: SegmentEvaluation) -> str:
    found = zip(evaluation.per_class, evaluation.class_intervals, strict=True)
    entries = [Bar(label, value, between, n) for (label, value, n), between in found if value is not None]
    note = f"Lowest first; n: pictures of “{evaluation.split}” that show the class"
    note += ", with 95 % intervals." if evaluation.interval else "."
    first = section(
        "IoU by class", _columns(_by_class(entries, "IoU")), note=note + _absent(evaluation.classes, entries)
    )
    return f'<div class="pair">{first}{_confused(evaluation)}</div>'


def _confused(evaluation: SegmentEvaluation) -> str:
    totals = evaluation.confusion.sum(dim=1).tolist()
    mistakes = evaluation.confusion.clone().fill_diagonal_(0)
    places = mistakes.nonzero().tolist()
    if not places:
        return section("Most confused classes", "<p>No pixel was taken for another class.</p>")
    pairs = sorted((-int(mistakes[i, j]), i, j) for i, j in places)[: min(PAIRS, max(6, len(totals)))]
    wrong = int(mistakes.sum())
    lines = [
        [name(evaluation.classes[i]), name(evaluation.classes[j]), percent(-count / totals[i]), percent(-count / wrong)]
        for count, i, j in pairs
    ]
    table = _table(["truth", "taken for", "of the truth’s", "of all wrong"], lines, words=2)
    return section("Most confused classes", table, note="By pixels, the most first.")


def _segment_pictures(evaluation: SegmentEvaluation) -> str:
    def panels(i: int) -> tuple[Image.Image, Image.Image, set[int]]:
        photo = open_picture(Path(evaluation.paths[i]))
        predicted, truth = (mask.numpy() for mask in evaluation.kept[i])
        said, true = (drawing.draw_segments(photo, mask, evaluation.classes, edge=EDGE) for mask in (predicted, truth))
        return true, said, {*np.unique(predicted).tolist(), *np.unique(truth).tolist()}

    def caption(i: int) -> str:
        return f"IoU <b>{percent(float(evaluation.picture_iou[i]))}</b>"

    return _pictures(evaluation, panels, caption, "By the mean IoU of the classes in a picture.")


# --- detection ----------------------------------------------------------------------------------------------------


def _detect_numbers(evaluation: DetectEvaluation) -> str:
    lines = [
        [kind, *("–" if numbers[key] is None else percent(numbers[key] or 0.0) for key in NUMBERS)]
        for kind, numbers in evaluation.numbers.items()
    ]
    precision, recall, f1 = evaluation.at_threshold
    score = f"{evaluation.threshold:.2f}"
    return section(
        "Average precision",
        _table(["", *NUMBERS], lines, words=1),
        tiles(
            [
                ("Score from", score, "where F1 is highest"),
                ("Precision", percent(precision), "of the found objects are right"),
                ("Recall", percent(recall), "of the true objects are found"),
                ("F1", percent(f1), "at an IoU of 0.5"),
            ]
        ),
        note="As COCO counts: AP is the mean over IoU thresholds from 0.50 to 0.95; small is up to 32 × 32 pixels, "
        "medium up to 96 × 96; AR is the mean recall with up to 100 objects a picture.",
    )


def _detect_classes(evaluation: DetectEvaluation) -> str:
    parts = []
    for kind in evaluation.numbers:
        entries = [Bar(label, values[kind], None, n) for label, values, n in evaluation.per_class if n]
        parts += _by_class(entries, f"{kind} AP")
    note = f"Lowest first; n: objects in “{evaluation.split}”." + _absent(evaluation.classes, entries)
    return section("AP by class", _columns(parts), note=note)


def _detect_pictures(evaluation: DetectEvaluation) -> str:
    least = evaluation.threshold

    def panels(i: int) -> tuple[Image.Image, Image.Image, set[int]]:
        photo, objects, results = open_picture(Path(evaluation.paths[i])), evaluation.truth[i], evaluation.rows[i]
        match = evaluation.matches[i]
        missed = [by < 0 or results[by]["score"] < least for by in match.found_by.tolist()]
        true = drawing.true_shapes(objects, missed=missed)
        said = drawing.found_shapes(results, objects.size, least=least, false=[who == -1 for who in match.found])
        drawn = [drawing.draw_objects(photo, shapes, evaluation.classes, edge=EDGE) for shapes in (true, said)]
        return drawn[0], drawn[1], {shape.label for shape in (*true, *said) if not shape.crowd}

    def caption(i: int) -> str:
        found, missed, false = evaluation.tallies[i].tolist()
        return f"F1 <b>{percent(float(evaluation.picture_f1[i]))}</b>: {found} found, {missed} missed, {false} false"

    how = f"By F1, with scores from {least:.2f} and at an IoU of 0.5. Dashed: missed, or false."
    return _pictures(evaluation, panels, caption, how)


# --- what both have -----------------------------------------------------------------------------------------------


def _by_class(entries: Sequence[Bar], measure: str) -> list[str]:
    """Tables of bars, lowest first; of many classes the two ends."""
    order = sorted(entries, key=lambda bar: (bar.share or 0.0, bar.name))
    if len(order) > MOST_BARS:
        parts = [(f"The {WORST} lowest", order[:WORST]), (f"The {BEST} highest", order[::-1][:BEST])]
    else:
        half = math.ceil(len(order) / 2) if len(order) > 12 else len(order)
        parts = [("", part) for part in (order[:half], order[half:]) if part]
    return [bars(part, "class", measure, caption) for caption, part in parts]


def _columns(tables: Iterable[str]) -> str:
    return f'<div class="columns">{"".join(tables)}</div>'


def _absent(classes: Sequence[str], entries: Sequence[Bar]) -> str:
    absent = len(classes) - len(entries)
    return f" {absent} of the {len(classes)} classes are not there." if absent else ""


def _table(head: Sequence[str], rows_html: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first `words` columns hold words, the others numbers."""
    kinds = ["" if k < words else ' class="number"' for k in range(len(head))]
    titles = "".join(f'<th scope="col"{kind}>{escape(title)}</th>' for kind, title in zip(kinds, head, strict=True))
    rows = ("".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows_html)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="plain"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _pictures(
    evaluation: SegmentEvaluation | DetectEvaluation, panels: Panels, caption: Callable[[int], str], how: str
) -> str:
    """The worst and the best pictures, each beside its truth; of few pictures each is shown once."""
    order = evaluation.ranking
    best = order[: min(SHOWN_BEST, len(order) // 2)]
    worst = order[len(best) :][::-1][:SHOWN_WORST]
    text = ""
    for title, chosen in (("The worst pictures", worst), ("The best pictures", best)):
        labels: set[int] = set()
        figures = []
        for i in chosen:
            figure, seen = _figure(evaluation.paths[i], panels, i, caption(i))
            figures.append(figure)
            labels |= seen
        if figures:
            shown = f'{_legend(labels, evaluation.classes)}<div class="twins">{"".join(figures)}</div>'
            text += section(title, shown, note=f"{how} Left the truth, right the prediction.")
    return text


def _figure(path: str, panels: Panels, i: int, caption_html: str) -> tuple[str, set[int]]:
    """A picture's truth and prediction side by side, and the labels in them."""
    file = escape(Path(path).name)
    labels: set[int] = set()
    try:
        true, said, labels = panels(i)
        body = "".join(
            f'<img src="{_uri(image)}" width="{image.width}" height="{image.height}" alt="{words} of {file}">'
            for words, image in (("truth", true), ("prediction", said))
        )
    except (WorkError, OSError):
        body = '<div class="missing">The picture cannot be read any more.</div>'
    text = f"<p>{caption_html} <small>{name(Path(path).name)}</small></p>"
    return f'<figure class="picture"><div>{body}</div><figcaption>{text}</figcaption></figure>', labels


def _uri(image: Image.Image) -> str:
    """A drawing as a JPEG data URI, in the highest quality that keeps to BYTES."""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _legend(labels: Iterable[int], classes: Sequence[str]) -> str:
    """The colours of the classes that are drawn."""
    items = [
        f'<li><i style="background:#{bytes(colour(k)).hex()}"></i>{name(classes[k])}</li>'
        for k in sorted(set(labels) - {IGNORED})
        if not is_background(classes[k])
    ]
    if IGNORED in labels:
        items.append('<li><i class="hatched"></i>ignored</li>')
    return f'<ul class="swatches">{"".join(items)}</ul>' if items else ""
