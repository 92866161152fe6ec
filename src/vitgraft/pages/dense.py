"""What dense predictions look like on a page: numbers, classes, and the best and worst pictures beside the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from ..common.errors import WorkError
from ..data.pictures import open_picture
from ..data.truth import IGNORED
from ..measures.average_precision import NUMBERS, DetectEvaluation
from ..measures.miou import SegmentEvaluation
from ..measures.panoptic import PanopticEvaluation
from . import drawing
from .charts import Bar
from .classification import PAIRS, lowest_first, most_confused
from .page import SPACE, data_uri, interval_text, macro, percent
from .palette import colour, is_background

SHOWN_WORST, SHOWN_BEST = 6, 4  # pictures, each with its truth
EDGE, BYTES = 360, 20_000  # of an embedded drawing: pixels of its longer side, and its JPEG, at most
QUALITIES = (85, 75, 60, 40, 20, 8)  # the first that keeps to BYTES is taken

Panels = Callable[[int], tuple[Image.Image, Image.Image, set[int]]]  # a picture's truth, its prediction, their labels


def sections(evaluation: SegmentEvaluation | DetectEvaluation | PanopticEvaluation) -> Markup:
    """All sections of a page that one evaluation of a dense task gives."""
    if isinstance(evaluation, PanopticEvaluation):
        return _panoptic(evaluation) + _panoptic_pictures(evaluation)
    if isinstance(evaluation, SegmentEvaluation):
        return _segmentation(evaluation) + _segment_pictures(evaluation)
    return _detection(evaluation) + _detect_pictures(evaluation)


# --- segmentation -------------------------------------------------------------------------------------------------


def _segmentation(evaluation: SegmentEvaluation) -> Markup:
    lowest, label = min((value, label) for label, value, _ in evaluation.per_class if value is not None)
    found = zip(evaluation.per_class, evaluation.class_intervals, strict=True)
    entries = [Bar(label, value, between, n) for (label, value, n), between in found if value is not None]
    between = f"95{SPACE}% interval {interval_text(evaluation.interval)}" if evaluation.interval else ""
    figures = [
        ("mIoU", percent(evaluation.value), between or "mean over the classes"),
        ("Pixel accuracy", percent(evaluation.pixel_accuracy), "of the pixels that have a class"),
        ("Lowest class", percent(lowest), label),
        ("Classes measured", f"{len(entries):,}", f"of {len(evaluation.classes):,}"),
    ]
    note = f"Lowest first; n: pictures of “{evaluation.split}” that show the class"
    note += ", with 95 % intervals." if evaluation.interval else "."
    note += _absent(evaluation.classes, entries)
    return macro("dense.html", "segmentation", figures, lowest_first(entries), note, _confused(evaluation))


def _confused(evaluation: SegmentEvaluation) -> list[tuple[str, str, str, str]]:
    """By pixels."""
    totals, names = evaluation.confusion.sum(dim=1).tolist(), evaluation.classes
    pairs = most_confused(evaluation.confusion)
    wrong = sum(count for count, _, _ in pairs)
    return [
        (names[i], names[j], percent(count / totals[i]), percent(count / wrong))
        for count, i, j in pairs[: min(PAIRS, max(6, len(totals)))]
    ]


def _segment_pictures(evaluation: SegmentEvaluation) -> Markup:
    def panels(i: int) -> tuple[Image.Image, Image.Image, set[int]]:
        photo = open_picture(Path(evaluation.paths[i]))
        predicted, truth = (mask.numpy() for mask in evaluation.kept[i])
        said, true = (drawing.draw_segments(photo, mask, evaluation.classes, edge=EDGE) for mask in (predicted, truth))
        return true, said, {*np.unique(predicted).tolist(), *np.unique(truth).tolist()}

    def caption(i: int) -> tuple[str, str, str]:
        return "IoU", percent(float(evaluation.picture_iou[i])), ""

    return _pictures(evaluation, panels, caption, "By the mean IoU of the classes in a picture.")


# --- detection ----------------------------------------------------------------------------------------------------


def _detection(evaluation: DetectEvaluation) -> Markup:
    lines = [
        [kind, *("–" if numbers[key] is None else percent(numbers[key] or 0.0) for key in NUMBERS)]
        for kind, numbers in evaluation.numbers.items()
    ]
    precision, recall, f1 = evaluation.at_threshold
    figures = [
        ("Score from", f"{evaluation.threshold:.2f}", "where F1 is highest"),
        ("Precision", percent(precision), "of the found objects are right"),
        ("Recall", percent(recall), "of the true objects are found"),
        ("F1", percent(f1), "at an IoU of 0.5"),
    ]
    kinds = []
    for kind in evaluation.numbers:
        entries = [Bar(label, values[kind], None, n) for label, values, n in evaluation.per_class if n]
        kinds.append((kind, lowest_first(entries)))
    note = f"Lowest first; n: objects in “{evaluation.split}”." + _absent(evaluation.classes, entries)
    return macro("dense.html", "detection", ["", *NUMBERS], lines, figures, kinds, note)


def _detect_pictures(evaluation: DetectEvaluation) -> Markup:
    least = evaluation.threshold

    def panels(i: int) -> tuple[Image.Image, Image.Image, set[int]]:
        photo, objects, results = open_picture(Path(evaluation.paths[i])), evaluation.truth[i], evaluation.rows[i]
        match = evaluation.matches[i]
        missed = [by < 0 or results[by]["score"] < least for by in match.found_by.tolist()]
        true = drawing.true_shapes(objects, missed=missed)
        said = drawing.found_shapes(results, objects.size, least=least, false=[who == -1 for who in match.found])
        drawn = [drawing.draw_objects(photo, shapes, evaluation.classes, edge=EDGE) for shapes in (true, said)]
        return drawn[0], drawn[1], {shape.label for shape in (*true, *said) if not shape.crowd}

    def caption(i: int) -> tuple[str, str, str]:
        found, missed, false = evaluation.tallies[i].tolist()
        return "F1", percent(float(evaluation.picture_f1[i])), f": {found} found, {missed} missed, {false} false"

    how = f"By F1, with scores from {least:.2f} and at an IoU of 0.5. Dashed: missed, or false."
    return _pictures(evaluation, panels, caption, how)


# --- panoptic -----------------------------------------------------------------------------------------------------


def _panoptic(evaluation: PanopticEvaluation) -> Markup:
    numbers = evaluation.numbers
    kinds = {"all": numbers, "things": numbers["things"], "stuff": numbers["stuff"]}
    measures = ("PQ", "SQ", "RQ")
    lines = [
        [kind, *("–" if of[measure] is None else percent(of[measure]) for measure in measures)]
        for kind, of in kinds.items()
    ]
    entries = [Bar(label, value, None, n) for label, value, n in evaluation.per_class if value is not None]
    note = f"Lowest first; n: pictures of “{evaluation.split}” that show the class."
    note += _absent(evaluation.classes, entries)
    return macro("dense.html", "panoptic", ["", *measures], lines, lowest_first(entries), note)


def _panoptic_pictures(evaluation: PanopticEvaluation) -> Markup:
    def panels(i: int) -> tuple[Image.Image, Image.Image, set[int]]:
        photo, truth = open_picture(Path(evaluation.paths[i])), evaluation.truth[i]
        true = drawing.true_shapes(truth)
        said = drawing.found_shapes(evaluation.rows[i], truth.size, least=0.0)
        drawn = [drawing.draw_objects(photo, s, evaluation.classes, edge=EDGE, boxes=False) for s in (true, said)]
        return drawn[0], drawn[1], {shape.label for shape in (*true, *said) if not shape.crowd}

    def caption(i: int) -> tuple[str, str, str]:
        return "PQ", percent(float(evaluation.picture_quality[i])), ""

    return _pictures(evaluation, panels, caption, "By the mean PQ of the classes in a picture.")


# --- what both have -----------------------------------------------------------------------------------------------


def _absent(classes: Sequence[str], entries: Sequence[Bar]) -> str:
    absent = len(classes) - len(entries)
    return f" {absent} of the {len(classes)} classes are not there." if absent else ""


def _pictures(
    evaluation: SegmentEvaluation | DetectEvaluation | PanopticEvaluation,
    panels: Panels,
    caption: Callable[[int], tuple[str, str, str]],
    how: str,
) -> Markup:
    """The worst and the best pictures, each beside its truth; of few pictures each is shown once."""
    order = evaluation.ranking
    best = order[: min(SHOWN_BEST, len(order) // 2)]
    worst = order[len(best) :][::-1][:SHOWN_WORST]
    groups = []
    for title, chosen in (("The worst pictures", worst), ("The best pictures", best)):
        if chosen:
            seen: set[int] = set()
            figures = [_figure(evaluation.paths[i], panels, i, caption(i), seen) for i in chosen]
            groups.append((title, _colours(seen, evaluation.classes), IGNORED in seen, figures))
    return macro("dense.html", "pictures", groups, how)


def _figure(path: str, panels: Panels, i: int, caption: tuple[str, str, str], seen: set[int]) -> dict[str, Any]:
    """A picture's truth and prediction side by side; the labels in them are added to `seen`."""
    try:
        true, said, labels = panels(i)
    except (WorkError, OSError):
        drawn = []
    else:
        seen |= labels
        drawn = [
            {"uri": _uri(image), "width": image.width, "height": image.height, "words": words}
            for words, image in (("truth", true), ("prediction", said))
        ]
    measure, value, more = caption
    return {"images": drawn, "file": Path(path).name, "measure": measure, "value": value, "more": more}


def _uri(image: Image.Image) -> str:
    """A drawing as a JPEG data URI, in the highest quality that keeps to BYTES."""
    for quality in QUALITIES:
        uri, count = data_uri(image, quality)
        if count <= BYTES:
            break
    return uri


def _colours(labels: Iterable[int], classes: Sequence[str]) -> list[tuple[str, str]]:
    """The colours of the classes that are drawn."""
    shown = sorted(set(labels) - {IGNORED})
    return [(classes[k], bytes(colour(k)).hex()) for k in shown if not is_background(classes[k])]
