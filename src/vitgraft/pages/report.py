"""The run's page, and the page that compares runs: one self-contained HTML file each, to read and to pass on."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .. import heads
from ..common.settings import DENSE
from ..measures import Evaluation
from . import classification, page
from .charts import Bar, Curve, curves
from .page import duration, percent, size, small_share


def write(
    path: str | Path,
    *,
    result: dict[str, Any],
    metrics: list[dict[str, Any]],
    evaluation: Evaluation | None,
    sections: str = "",
    examples: Sequence[tuple[str, str]] = (),
    of: str | Path | None = None,
) -> None:
    """Writes the page of one run to `path` (RUN/report.html), or one about the run `of` somewhere else.

    `result` is what result.json holds, `metrics` the lines of metrics.jsonl; what they lack is left out of the page.
    `sections` is what the task shows of the evaluation, as HTML; without one the page says how to get a number.
    `examples` are pairs of a class and a picture that shows it.
    Raises WorkError when the file cannot be written.
    """
    run = shlex.quote(str(of or Path(path).parent))
    page.write(
        path,
        "run.html",
        **_head(result),
        predict=f"vitgraft predict {run} picture.jpg",
        evaluate=f"vitgraft evaluate {run} DATA",
        **_number(result, evaluation),
        costs=_costs(result),
        curves=_curves(metrics, str(result.get("metric") or "accuracy")),
        sections=Markup(sections),
        data=_data(result, examples),
        facts=_facts_of(result),
        version=(result.get("versions") or {}).get("vitgraft", ""),
    )


def head(result: dict[str, Any], page_of_run: Path | None) -> str:
    """The head of a run's page as a piece of HTML that stands alone, as notebooks show it."""
    return page.rendered("head.html", **_head(result), **_number(result, None), page=page_of_run)


def _head(result: dict[str, Any]) -> dict[str, str]:
    return {
        "title": f"{_fitted(result)} on {_data_name(result)}",
        "task": result.get("task", "run"),
        "backbone": (result.get("backbone") or {}).get("name", "a backbone"),
        "trained": _trained(result),
    }


@dataclass(frozen=True)
class Row:
    """One run in a comparison: the task, the method's label, its result.json, the relative link to its report."""

    task: str
    method: str
    result: dict[str, Any]
    report: str | None = None

    @property
    def share(self) -> str:
        return _trained_share(self.result)

    @property
    def bar(self) -> Bar:
        return Bar(self.method, self.result.get("value"), self.result.get("interval"))


@dataclass(frozen=True)
class Section:
    """Example pictures of a task, with each method's answers on the same split."""

    task: str
    text: str
    evaluations: Mapping[str, Any]  # of one task

    @property
    def examples(self) -> Markup:
        return classification.examples(self.evaluations)


def comparison(path: str | Path, *, title: str, intro: str, rows: Sequence[Row], sections: Sequence[Section]) -> None:
    """Writes the page that compares runs to `path`; `intro` is plain text, an empty line between its paragraphs.

    Raises WorkError when the file cannot be written.
    """
    tasks = {row.task: [other for other in rows if other.task == row.task] for row in rows}
    paragraphs = [part for part in intro.split("\n\n") if part.strip()]
    page.write(path, "comparison.html", title=title, intro=paragraphs, tasks=tasks, sections=sections)


# --- the run's page, from top to bottom ---------------------------------------------------------------------------


def _data_name(result: dict[str, Any]) -> str:
    root = str((result.get("data") or {}).get("root") or "")
    return Path(root).name or root or "the data"


def _trained_share(result: dict[str, Any]) -> str:
    trained, all_of_it = result.get("parameters"), result.get("backbone_parameters")
    return small_share(trained / all_of_it) if trained is not None and all_of_it else ""


def _fitted(result: dict[str, Any]) -> str:
    """The method, and the head where its task has several; of whole pictures another one than the first."""
    method, head = result.get("method", "adapter"), (result.get("head") or {}).get("name")
    task = result.get("task", "classify")
    names = heads.names(task)
    return f"{method} with {head}" if head and len(names) > 1 and (task in DENSE or head != names[0]) else method


def _trained(result: dict[str, Any]) -> str:
    share = _trained_share(result)
    trained = f"{result['parameters']:,} trained parameters, {share} of it" if share else "its trained adapter"
    return trained + (f", and a head of {result['head_parameters']:,}" if result.get("head_parameters") else "")


def _number(result: dict[str, Any], evaluation: Evaluation | None) -> dict[str, Any]:
    """The number, and what it was measured on; the evaluation's own where there is one."""
    value, interval, split = result.get("value"), result.get("interval"), result.get("split")
    n = ((result.get("data") or {}).get("pictures") or {}).get(split)
    if evaluation is not None:
        value, interval, split, n = evaluation.value, evaluation.interval, evaluation.split, len(evaluation)
    epoch = (result.get("protocol") or {}).get("epoch_reported")
    where = [f"{n:,} pictures" if n else "", f"split “{split}”" if split else "", f"{epoch} epoch" if epoch else ""]
    return {
        "metric": result.get("metric", "accuracy"),
        "value": value,
        "interval": interval,
        "where": " · ".join(part for part in where if part),
        "note": evaluation.note if evaluation is not None else "",
    }


def _costs(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Key figures as tiles; a figure that was not measured has no tile."""
    cost = result.get("cost") or {}
    share = _trained_share(result)
    batch = cost.get("bytes_kept_batch")
    found = [
        ("Trained parameters", result.get("parameters"), page.number, f"{share} of the backbone" if share else ""),
        ("Head parameters", result.get("head_parameters"), page.number, "for the classes"),
        ("Adapter file", result.get("adapter_bytes"), size, "the backbone is not in it"),
        ("Training time", result.get("seconds"), duration, ""),
        ("Time per epoch", cost.get("seconds_per_epoch"), duration, ""),
        ("Peak memory", cost.get("peak_memory_bytes"), size, "in training"),
        ("Kept for backward", cost.get("bytes_kept_for_backward"), size, f"at batch {batch}" if batch else ""),
        ("GFLOPs per picture", cost.get("gflops_per_picture"), "{:,.3g}".format, "a multiply-add counts as 2"),
    ]
    return [(label, form(value), note) for label, value, form, note in found if value is not None]


def _curves(metrics: list[dict[str, Any]], metric: str) -> Markup:
    """Loss, metric and learning rate over the epochs; a resumed run's later line of an epoch stands."""
    epochs = dict(sorted((line["epoch"], line) for line in metrics if "epoch" in line))

    def curve(label: str, key: str) -> Curve:
        points = [(epoch, line.get(key)) for epoch, line in epochs.items()]
        return Curve(label, [(epoch, float(value)) for epoch, value in points if isinstance(value, (int, float))])

    def few(digits: int) -> Callable[[float], str]:
        return lambda value: f"{value:.{digits}g}"

    title = metric if metric != metric.lower() else metric.capitalize()  # mIoU stays as it is
    accuracy = [curve("validation", "val"), curve("training", "train_accuracy")]
    charts = [
        curves("Training loss", [curve("loss", "loss")], few(3), few(6)),
        curves(title, accuracy, percent, lambda share: f"{100 * share:.6g}{page.SPACE}%"),
        curves("Learning rate", [curve("learning rate", "lr")], few(2), few(6)),
    ]
    return Markup("".join(charts))


MOST_CLASSES, MOST_EXAMPLES = 40, 24  # shown of a data set


def _data(result: dict[str, Any], examples: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """What the pictures show of each class, by split; what was guessed, left out or odd; a picture of each class."""
    data = result.get("data") or {}
    counts: dict[str, dict[str, dict[str, int]]] = data.get("counts") or {}
    if not counts:
        return None
    things = {kind for of in counts.values() for one in of.values() for kind in one} - {"pictures"}
    columns = [(split, kind) for split in counts for kind in ("pictures", *things)]
    names = list(dict.fromkeys(name for of in counts.values() for name in of))
    rows = [
        [name, *(page.number(counts[split].get(name, {}).get(kind, 0)) for split, kind in columns)]
        for name in names[:MOST_CLASSES]
    ]
    return {
        "notes": data.get("notes") or [],
        "head": ["class", *(f"{split}, {kind}" for split, kind in columns)],
        "rows": rows,
        "note": f"The first {MOST_CLASSES} of {len(names)} classes." if len(names) > MOST_CLASSES else "",
        "examples": examples[:MOST_EXAMPLES],
    }


def _text(value: Any) -> str:
    """A setting's value as a person would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return str(value)


def _facts(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), _text(value)) for key, value in (values or {}).items()]


def _facts_of(result: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """How the run came about, by groups."""
    data = {k: v for k, v in (result.get("data") or {}).items() if k not in ("notes", "counts")}
    classes = data.pop("classes", None) or []
    protocol = dict(result.get("protocol") or {})
    if protocol.get("image_size"):
        protocol["image_size"] = " × ".join(str(edge) for edge in protocol["image_size"])
    method = {"method": result.get("method"), **(result.get("arguments") or {})}
    return [
        ("Method", _facts(method)),
        ("Protocol", [*_facts(protocol), *_facts({"seed": result["seed"]} if "seed" in result else {})]),
        ("Data", [*_facts(data), *([("classes", f"{len(classes):,}")] if classes else [])]),
        ("Preprocessing", [("pictures", str(result["preprocess"]))] if result.get("preprocess") else []),
        ("Backbone", _facts(result.get("backbone"))),
        ("Versions", _facts(result.get("versions"))),
    ]
