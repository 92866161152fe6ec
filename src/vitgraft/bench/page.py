"""The page of a benchmark: one self-contained HTML file with its table and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import RequestError
from ..pages import page
from ..pages.page import duration, name, section, size
from . import figures, protocols
from .figures import Picture
from .layout import per_cent
from .reading import Gap, Paired, Row, Spread, Table, averages, gap_lines

if TYPE_CHECKING:
    from .beside import Beside, Theirs
    from .suites import Suite


def write(
    path: str | Path,
    table: Table,
    *,
    gaps: Sequence[Gap] = (),
    against: str | None = None,
    beside: Beside | None = None,
    pictures: str | Path | None = None,
) -> None:
    """Writes the page of a table to `path`.

    gaps: the runs that it lacks (`reading.gaps`). against: the row from which the differences of all others are shown.
    beside: the published rows (`beside.beside`). pictures: a folder that gets each picture as an SVG file too.
    Raises RequestError where there is no row `against`, WorkError where nothing can be written.
    """
    costs, seeds = figures.costs(table), figures.seeds(table)
    differences, pairs = figures.differences(table, against) if against else ([], [])
    body = [
        section("Table", _table(table), _notes(table, gaps), note=_how(table)),
        _accuracy_and_cost(table, costs),
        _section_of_differences(table, against, differences, pairs) if against else "",
        section(
            "Seeds",
            _many(seeds),
            note="One picture a task, on its own scale: each run is a dot, the mean of a method the tick and the "
            "figure, in per cent. Where the dots of two methods mix, their order may be chance.",
        ),
        _section_of_published(beside) if beside else "",
        _section_of_choices(table),
        _circumstances(table),
    ]
    title = f"{table.suite.title}: {len(table.rows)} methods"
    footer = "Written by vitgraft. Every number follows from the records in the folder of the benchmark."
    whole = page.document(f"{title} · vitgraft", _header(table, gaps), "\n".join(p for p in body if p), footer)
    page.write_whole(path, whole)
    if pictures is not None:
        figures.export([*costs, *differences, *seeds], Path(pictures))


# --- header, table, notes -----------------------------------------------------------------------------------------


def _flags(table: Table) -> list[str]:
    return list(dict.fromkeys(flag for row in table.rows for record in row.records for flag in record.job.flags))


def _seed_numbers(table: Table) -> list[int]:
    return sorted({record.job.seed for row in table.rows for record in row.records})


def _header(table: Table, gaps: Sequence[Gap]) -> str:
    """What was measured, how, on what; and whether it is whole."""
    try:
        told = protocols.find(table.protocol).title
    except RequestError:  # of an earlier version
        told = table.protocol
    seeds, tasks = _seed_numbers(table), table.tasks
    records = [record for row in table.rows for record in row.records]
    failed = sum(bool(gap.reason) for gap in gaps)
    count = f"{len(records):,} done" + (f", {failed} failed" if failed else "")
    count += f", {len(gaps) - failed} not run" if len(gaps) > failed else ""
    whole = len(table.suite.tasks)
    facts = [
        ("suite", table.suite.title),
        ("protocol", told),
        ("backbone", table.backbone),
        ("tasks", f"{len(tasks)}" if len(tasks) == whole else f"{len(tasks)} of {whole}"),
        ("seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})"),
        ("runs", count),
        ("measured", "; ".join(sorted({f"{r.metric} on {r.split}" for r in records}))),
    ]
    flags = "".join(f"<li>{escape(flag)}</li>" for flag in _flags(table))
    flatters = (
        f'<p class="flags"><b>What flatters these numbers:</b></p><ul class="flags">{flags}</ul>' if flags else ""
    )
    none = "" if flags else "<p>Nothing in the protocol is known to flatter the numbers.</p>"
    return (
        f'<div class="hero"><div><p class="kicker">vitgraft · benchmark</p><h1>{name(table.suite.title)}</h1>'
        f"<p>{len(table.rows)} ways to adapt the frozen backbone {name(table.backbone)} to {len(tasks)} "
        f"task{'s' if len(tasks) != 1 else ''}, protocol {name(table.protocol)}.</p>{none}{flatters}</div>"
        f'<div class="number">{page.settings([("What was run", facts)])}</div></div>'
    )


def _how(table: Table) -> str:
    several = len(_seed_numbers(table)) > 1
    return (
        "Per cent. "
        + ("The small figure is the standard deviation over seeds. " if several else "")
        + "Bold: the highest of its column. Memory and time are those of one training run, on average."
    )


def _table(table: Table) -> str:
    """One line a method: parameters, the averages, every task, what a run costs."""
    tasks = table.tasks
    means = averages(table.suite)
    columns: list[tuple[str, Callable[[Row], Spread | None]]] = [
        *means.items(),
        *((table.title(task), lambda row, task=task: row.tasks.get(task)) for task in tasks),
    ]
    heads = ["params (M)", "with head (M)", *(title for title, _ in columns), "memory", "time"]
    head = "".join(f'<th scope="col" class="number">{name(title)}</th>' for title in heads)
    best = [max((found.mean for row in table.rows if (found := of(row))), default=None) for _, of in columns]
    lines = []
    for row in table.rows:
        cells = [f"{count / 1e6:.3f}" for count in (row.parameters, row.parameters_with_head)]
        for k, ((_, of), top) in enumerate(zip(columns, best, strict=True)):
            cells.append(_cell(of(row), top, 2 if k < len(means) else 1))
        cells += [size(row.memory), duration(row.seconds)]
        kinds = ["number average" if 2 <= k < 2 + len(means) else "number" for k in range(len(cells))]
        line = "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, cells, strict=True))
        lines.append(f'<tr><th scope="row" title="{escape(row.label)}">{name(row.label)}</th>{line}</tr>')
    return (
        f'<div class="scroll"><table class="plain runs pinned"><thead><tr><th scope="col">method</th>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(spread: Spread | None, best: float | None, digits: int) -> str:
    if spread is None:
        return "–"
    value = per_cent(spread.mean, digits)
    around = "" if spread.deviation is None else f" <small>±{per_cent(spread.deviation, digits)}</small>"
    return (f"<b>{value}</b>" if spread.mean == best else value) + around


def _notes(table: Table, gaps: Sequence[Gap]) -> str:
    told = [*(note for note in table.notes if not note.startswith("flatters: ")), *gap_lines(gaps)]
    return f'<ul class="notes">{"".join(f"<li>{name(note)}</li>" for note in told)}</ul>' if told else ""


# --- pictures -----------------------------------------------------------------------------------------------------


def _many(pictures: Sequence[Picture], kind: str = "many") -> str:
    return f'<div class="charts {kind}">{"".join(picture.html for picture in pictures)}</div>'


def _accuracy_and_cost(table: Table, pictures: Sequence[Picture]) -> str:
    left_out = [row.label for row in table.rows if row.mean is None]
    without = f" Not here, for lack of an average: {', '.join(left_out)}." if left_out else ""
    if not pictures:
        return section("Accuracy and cost", note=f"No picture: no row has every task of the suite.{without}")
    note = (
        "Full dots, on the dashed line: no other method is as good for the same cost or less (the Pareto front). The "
        "thin lines are one standard deviation over seeds. An arrow: far below the axis, at the accuracy beside it."
        f"{without}"
    )
    return section("Accuracy and cost", _many(pictures, "wide"), note=note)


def _section_of_differences(
    table: Table, against: str | None, pictures: Sequence[Picture], pairs: Sequence[Paired]
) -> str:
    if not pairs:
        return section(f"Difference from {against}", note="No other row shares a task and a seed with it.")
    note = (
        "Points of per cent. First all methods: a dot is a task, the tick their mean, the band its 95 % bootstrap "
        "interval over tasks. Then each method on its own scale: a dot is a seed, paired with the same seed of "
        f"{against}, the band the bootstrap interval over seeds, which for few seeds is about their range. Figures in "
        "grey: the interval holds 0. An arrow: the row is far outside the picture."
    )
    return section(
        f"Difference from {against}",
        f'<div class="charts wide">{pictures[0].html}<div class="scroll">{_tests(pairs)}</div></div>',
        _many(pictures[1:]),
        note=note,
    )


def _tests(pairs: Sequence[Paired]) -> str:
    """The mean differences as a table, with what can be said of chance."""
    heads = ("points", "95 % interval", "tasks ahead", "Wilcoxon p")
    head = "".join(f'<th scope="col" class="number">{title}</th>' for title in heads)
    lines = ""
    for pair in pairs:
        low, high = (f"{100 * end:+.2f}".replace("-", "−") for end in pair.interval)
        ahead = f"{sum(d > 0 for d in pair.differences.values())} of {len(pair.differences)}"
        figures = (f"{100 * pair.mean:+.2f}".replace("-", "−"), f"{low} to {high}", ahead, f"{pair.p:.2g}")
        cells = "".join(f'<td class="number">{figure}</td>' for figure in figures)
        lines += f'<tr><th scope="row">{name(pair.one)}</th>{cells}</tr>'
    return (
        f'<table class="plain"><thead><tr><th scope="col">method</th>{head}</tr></thead><tbody>{lines}</tbody></table>'
    )


# --- published rows -----------------------------------------------------------------------------------------------


def _section_of_published(beside: Beside) -> str:
    """The averages of ours and of theirs below each other, with what in theirs is not alike; then task by task."""
    part, rows = beside.table.suite, beside.table.rows
    alone = [row.label for row in rows if not beside.of_row[row.label]]
    told = [f"Not published in these tables: {', '.join(alone)}."] if alone else []
    told += [pair.line() for pair in beside.paired()]
    note = (
        f"Ours: {beside.conditions.line()}. A published row with = was measured like that, as far as its source says; "
        "one with ≠ was not, so that its averages are not to be compared with ours, for the reason beside it. All "
        f"averages here are over the {len(part.tasks)} tasks that were run, in per cent."
    )
    heads = ["params (M)", *averages(part)]
    blocks = []
    for row in rows:
        if found := beside.of_row[row.label]:
            means = (_cell(of(row), None, 2) for of in averages(part).values())
            ours = _numbers(row.label, [f"{row.parameters / 1e6:.3f}", *means])
            blocks.append(
                [f'<tr class="ours">{ours}<td>ours</td></tr>', *(_averages(theirs, part) for theirs in found)]
            )
    if beside.rest:
        title = f'<tr class="ours"><th scope="rowgroup" colspan="{len(heads) + 2}">Not run here</th></tr>'
        blocks.append([title, *(_averages(one, part) for one in beside.rest)])
    ours_and_theirs = _blocks(heads, blocks, '<th scope="col">how the number came about</th>', "published")
    blocks = []
    for row in rows:
        if found := beside.of_row[row.label]:
            ours = _numbers(row.label, [_cell(row.tasks.get(task), None, 1) for task in part.task_names])
            blocks.append([f'<tr class="ours">{ours}</tr>', *(_by_task(theirs, part.task_names) for theirs in found)])
    heads = [beside.table.title(task) for task in part.task_names]
    tasks = f"<h3>Task by task</h3>{_blocks(heads, blocks, '', 'published pinned')}" if blocks else ""
    lines = "".join(f"<li>{name(line)}</li>" for line in told)
    notes = f'<ul class="notes">{lines}</ul>' if told else ""
    return section("Beside published numbers", ours_and_theirs, notes, tasks, note=note)


def _blocks(heads: Sequence[str], blocks: Sequence[Sequence[str]], last_html: str, kind: str) -> str:
    """A table of blocks of lines, each HTML."""
    head = "".join(f'<th scope="col" class="number">{name(title)}</th>' for title in heads)
    bodies = "".join(f"<tbody>{''.join(lines)}</tbody>" for lines in blocks)
    return (
        f'<div class="scroll"><table class="plain runs {kind}"><thead><tr><th scope="col">method</th>{head}{last_html}'
        f"</tr></thead>{bodies}</table></div>"
    )


def _numbers(label: str, cells_html: Sequence[str], mark_html: str = "") -> str:
    cells = "".join(f'<td class="number">{cell}</td>' for cell in cells_html)
    return f'<th scope="row" title="{escape(label)}">{mark_html}{name(label)}</th>{cells}'


def _mark(theirs: Theirs) -> str:
    return '<span class="same">=</span> ' if theirs.alike else '<span class="other">≠</span> '


def _averages(theirs: Theirs, suite: Suite) -> str:
    unlike = f"<div><b>differs in</b> {escape('; '.join(theirs.differs))}</div>" if theirs.differs else ""
    flags = f'<div class="who">{escape("; ".join(theirs.flags))}</div>' if theirs.flags else ""
    millions = "–" if theirs.parameters_m is None else f"{theirs.parameters_m:.2f}"
    cells = [millions, *(_value(mean, 2) for mean in theirs.averages(suite))]
    how = f"{escape(theirs.source)}{unlike}{flags}"
    return f'<tr>{_numbers(theirs.method, cells, _mark(theirs))}<td class="how">{how}</td></tr>'


def _by_task(theirs: Theirs, tasks: Sequence[str]) -> str:
    cells = [_value(theirs.values.get(task), 1) for task in tasks]
    return f"<tr>{_numbers(theirs.method, cells, _mark(theirs))}</tr>"


def _value(value: float | None, digits: int) -> str:
    return "–" if value is None else per_cent(value, digits)


# --- choices and circumstances -------------------------------------------------------------------------------------


def _section_of_choices(table: Table) -> str:
    """What a search chose for each method on each task; nothing where none did."""
    tasks = table.tasks
    lines = []
    for row in table.rows:
        told = {record.job.task: record.job.chosen for record in row.records if record.job.chosen}
        if told:
            lines.append(f"<tr>{_numbers(row.label, [_choice(told.get(task)) for task in tasks])}</tr>")
    if not lines:
        return ""
    note = "By the accuracy on val after training on train, of so many trials; then fitted as the protocol says."
    return section("Chosen settings", _blocks([table.title(task) for task in tasks], [lines], "", "pinned"), note=note)


def _choice(told: Mapping[str, Any] | None) -> str:
    """The options that were chosen, and what they gave."""
    if not told:
        return "–"
    options = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told["options"].items())
    seeds = f", {len(told['seeds'])} seeds each" if len(told["seeds"]) > 1 else ""
    return f"{name(options)}<br><small>{per_cent(told['value'], 1)}, best of {told['trials']}{seeds}</small>"


def _circumstances(table: Table) -> str:
    """Settings, machines and versions; a value that is not the same in all runs is given in all its forms."""
    records = [record for row in table.rows for record in row.records]

    def facts(dicts: Iterable[Mapping[str, object]]) -> list[tuple[str, str]]:
        found: dict[str, dict[str, None]] = {}
        for one in dicts:
            for key, value in one.items():
                text = " × ".join(map(str, value)) if isinstance(value, list) else str(value)
                found.setdefault(key, {})[{"None": "none", "True": "yes", "False": "no"}.get(text, text)] = None
        return [(key.replace("_", " "), _few([*values])) for key, values in found.items() if key != "seed"]

    code = [
        ("commit", _few(list(dict.fromkeys((record.commit or "none")[:12] for record in records)))),
        ("differs from it", _few(sorted({{None: "unknown", True: "yes", False: "no"}[r.dirty] for r in records}))),
    ]
    return section(
        "Settings",
        page.settings(
            [
                ("Protocol", facts(record.resolved["protocol"] for record in records)),
                ("Machine", facts(record.machine for record in records)),
                ("Versions", [*facts(record.versions for record in records), *code]),
                (
                    "Backbone",
                    facts({"source": r.backbone_source, "fingerprint": r.job.fingerprint[:12]} for r in records),
                ),
            ]
        ),
        note="What is not the same in all runs is given in all its forms.",
    )


def _few(words: Sequence[str], most: int = 6) -> str:
    shown = "; ".join(words[:most])
    return shown if len(words) <= most else f"{shown}; and {len(words) - most} more"
