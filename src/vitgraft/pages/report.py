"""The run's page, and the page that compares runs: one self-contained HTML file each, to read and to pass on."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import heads
from ..measures import Evaluation
from . import classification as answers
from . import page
from .charts import Bar, Curve, bars, curves, strip
from .page import duration, interval_text, name, percent, section, size, small_share


def write(
    path: str | Path,
    *,
    result: dict[str, Any],
    metrics: list[dict[str, Any]],
    evaluation: Evaluation | None,
    sections: Sequence[str] = (),
) -> None:
    """Writes the page of one run to `path` (RUN/report.html).

    `result` is what result.json holds, `metrics` the lines of metrics.jsonl; what they lack is left out of the page.
    `sections` is what the task shows of the evaluation, as HTML; without one the page says how to get a number.
    Raises WorkError when the file cannot be written.
    """
    path = Path(path)
    body = [_cost(result), _curves(metrics, str(result.get("metric") or "accuracy")), *sections, _settings(result)]
    title = f"{_fitted(result)} on {_data_name(result)}"
    header = _headline(title, result, evaluation, path.parent)
    versions = result.get("versions") or {}
    footer = (
        f"Written by vitgraft {versions.get('vitgraft', '')}. The numbers are in result.json and metrics.jsonl too."
    )
    page.write_whole(
        path, page.document(f"{title} · vitgraft", header, "\n".join(part for part in body if part), footer)
    )


@dataclass(frozen=True)
class Row:
    """One run in a comparison: the task, the method's label, its result.json, the relative link to its report."""

    task: str
    method: str
    result: dict[str, Any]
    report: str | None = None


@dataclass(frozen=True)
class Section:
    """Example pictures of a task, with each method's answers on the same split."""

    task: str
    text: str
    evaluations: Mapping[str, Any]  # of one task


def comparison(path: str | Path, *, title: str, intro: str, rows: Sequence[Row], sections: Sequence[Section]) -> None:
    """Writes the page that compares runs to `path`; `intro` is plain text, an empty line between its paragraphs.

    Raises WorkError when the file cannot be written.
    """
    tasks = {row.task: [other for other in rows if other.task == row.task] for row in rows}
    charts = []
    for task, mine in tasks.items():
        entries = [Bar(row.method, row.result.get("value"), row.result.get("interval")) for row in mine]
        charts.append(bars(entries, "method", str(mine[0].result.get("metric", "accuracy")), caption=task))
    whiskers = "The thin line is the 95 % interval; where two overlap much, their order may be chance."
    body = [
        section("Runs", _runs(tasks), note="Bold: the highest of its task."),
        section("Accuracy by task", f'<div class="columns">{"".join(charts)}</div>', note=whiskers),
        *(section(part.task, answers.examples(part.evaluations), note=part.text) for part in sections),
    ]
    header = f'<p class="kicker">vitgraft</p><h1>{escape(title)}</h1>{page.paragraphs(intro)}'
    page.write_whole(path, page.document(title, header, "\n".join(body), "Written by vitgraft."))


def _runs(tasks: Mapping[str, Sequence[Row]]) -> str:
    """The table of all runs, one body a task."""
    columns = (
        "task",
        "method",
        "trained parameters",
        "accuracy",
        "95 % interval",
        "training time",
        "adapter file",
        "page",
    )
    head = "".join(
        f'<th scope="col"{" class=number" if 2 <= k < 7 else ""}>{label}</th>' for k, label in enumerate(columns)
    )
    bodies = ""
    for task, rows in tasks.items():
        best = max((row.result["value"] for row in rows if row.result.get("value") is not None), default=None)
        first = f'<th scope="rowgroup" rowspan="{len(rows)}">{name(task)}</th>'
        lines = (f"<tr>{first if k == 0 else ''}{_run(row, best)}</tr>" for k, row in enumerate(rows))
        bodies += f"<tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="plain runs"><thead><tr>{head}</tr></thead>{bodies}</table></div>'


def _run(row: Row, best: float | None) -> str:
    result = row.result
    trained, value, interval = result.get("parameters"), result.get("value"), result.get("interval")
    seconds, stored = result.get("seconds"), result.get("adapter_bytes")
    share = _trained_share(result)
    accuracy = "" if value is None else f"<b>{percent(value)}</b>" if value == best else percent(value)
    cells = [
        ("" if trained is None else f"{trained:,}") + (f" <small>{share}</small>" if share else ""),
        accuracy,
        interval_text(interval) if interval else "",
        "" if seconds is None else duration(seconds),
        "" if stored is None else size(stored),
    ]
    link = f'<a href="{quote(Path(row.report).as_posix())}">report</a>' if row.report else ""
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f'<th scope="row">{name(row.method)}</th>{numbers}<td>{link}</td>'


# --- the run's page, from top to bottom ---------------------------------------------------------------------------


def _data_name(result: dict[str, Any]) -> str:
    root = str((result.get("data") or {}).get("root") or "")
    return Path(root).name or root or "the data"


def _trained_share(result: dict[str, Any]) -> str:
    trained, all_of_it = result.get("parameters"), result.get("backbone_parameters")
    return small_share(trained / all_of_it) if trained is not None and all_of_it else ""


def _fitted(result: dict[str, Any]) -> str:
    """The method, and the head where its task has several."""
    method, head = result.get("method", "adapter"), (result.get("head") or {}).get("name")
    return f"{method} with {head}" if head and len(heads.names(result.get("task", "classify"))) > 1 else method


def _headline(title: str, result: dict[str, Any], evaluation: Evaluation | None, run: Path) -> str:
    """Title, what was fitted, and the number; the evaluation's own where there is one."""
    backbone = (result.get("backbone") or {}).get("name", "a backbone")
    share = _trained_share(result)
    trained = f"{result['parameters']:,} trained parameters, {share} of it" if share else "its trained adapter"
    trained += f", and a head of {result['head_parameters']:,}" if result.get("head_parameters") else ""
    what = f"<p>The frozen backbone {name(backbone)} with {escape(trained)}.</p>"
    value, interval = result.get("value"), result.get("interval")
    split = result.get("split")
    n = ((result.get("data") or {}).get("pictures") or {}).get(split)
    if evaluation is not None:
        value, interval, split, n = evaluation.value, evaluation.interval, evaluation.split, len(evaluation)
    if value is not None:
        number = _number(value, interval, n, split, result, evaluation)
    else:
        line = page.command(f"vitgraft evaluate {shlex.quote(str(run))} DATA")
        number = (
            '<div class="number none"><p><strong>Not measured:</strong> there was no validation split. '
            f"For a number, give labelled pictures that were not trained on:</p>{line}</div>"
        )
    use = page.command(f"vitgraft predict {shlex.quote(str(run))} picture.jpg")
    kicker = f'<p class="kicker">vitgraft · {name(result.get("task", "run"))}</p>'
    return f'<div class="hero"><div>{kicker}<h1>{name(title)}</h1>{what}{use}</div>{number}</div>'


def _number(
    value: float,
    interval: Sequence[float] | None,
    n: int | None,
    split: str | None,
    result: dict[str, Any],
    evaluation: Evaluation | None,
) -> str:
    between = f"95 % interval {interval_text(interval)}" if interval else ""
    epoch = (result.get("protocol") or {}).get("epoch_reported")
    where = [f"{n:,} pictures" if n else "", f"split “{split}”" if split else "", f"{epoch} epoch" if epoch else ""]
    base = f'<p class="note">{name(evaluation.note)}</p>' if evaluation is not None and evaluation.note else ""
    return f"""<div class="number">
<p class="metric">{escape(str(result.get("metric", "accuracy")))}</p>
<p class="value">{percent(value)}</p>
{strip(value, interval)}
<p class="interval">{between}</p>
<p class="note">{name(" · ".join(part for part in where if part))}</p>{base}</div>"""


def _cost(result: dict[str, Any]) -> str:
    """Key figures as tiles; a figure that was not measured has no tile."""
    cost = result.get("cost") or {}
    share = _trained_share(result)
    batch = cost.get("bytes_kept_batch")
    found = [
        ("Trained parameters", result.get("parameters"), "{:,}".format, f"{share} of the backbone" if share else ""),
        ("Head parameters", result.get("head_parameters"), "{:,}".format, "for the classes"),
        ("Adapter file", result.get("adapter_bytes"), size, "the backbone is not in it"),
        ("Training time", result.get("seconds"), duration, ""),
        ("Time per epoch", cost.get("seconds_per_epoch"), duration, ""),
        ("Peak memory", cost.get("peak_memory_bytes"), size, "in training"),
        ("Kept for backward", cost.get("bytes_kept_for_backward"), size, f"at batch {batch}" if batch else ""),
        ("GFLOPs per picture", cost.get("gflops_per_picture"), "{:,.3g}".format, "a multiply-add counts as 2"),
    ]
    shown = [(label, form(value), note) for label, value, form, note in found if value is not None]
    return section("Cost", page.tiles(shown)) if shown else ""


def _curves(metrics: list[dict[str, Any]], metric: str) -> str:
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
    return section("Training", f'<div class="charts">{"".join(charts)}</div>') if any(charts) else ""


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


def _settings(result: dict[str, Any]) -> str:
    data = dict(result.get("data") or {})
    classes = data.pop("classes", None) or []
    protocol = dict(result.get("protocol") or {})
    if protocol.get("image_size"):
        protocol["image_size"] = " × ".join(str(edge) for edge in protocol["image_size"])
    method = {"method": result.get("method"), **(result.get("arguments") or {})}
    return section(
        "Settings",
        page.settings(
            [
                ("Method", _facts(method)),
                ("Protocol", [*_facts(protocol), *_facts({"seed": result["seed"]} if "seed" in result else {})]),
                ("Data", [*_facts(data), *([("classes", f"{len(classes):,}")] if classes else [])]),
                ("Preprocessing", [("pictures", str(result["preprocess"]))] if result.get("preprocess") else []),
                ("Backbone", _facts(result.get("backbone"))),
                ("Versions", _facts(result.get("versions"))),
            ]
        ),
    )
