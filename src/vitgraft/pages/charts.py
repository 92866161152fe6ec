"""Charts as SVG that follow the page's colours: curves, dots in rows. What is a table of bars is a macro."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

Form = Callable[[float], str]
WIDTH, HEIGHT = 360, 230  # of a curve's drawing, in its own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 50, 304, 14, 192  # of the plot inside the drawing
LETTERS = "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif"  # as the page's, on its own
LETTER = 6.3  # width of a letter of a chart's text, on average


class Curve(NamedTuple):
    """A named line through (x, y) points, x increasing."""

    name: str
    points: list[tuple[float, float]]


class Bar(NamedTuple):
    """One share (0..1) of `n` pictures, or None where nothing was measured."""

    name: str
    share: float | None
    interval: Sequence[float] | None = None
    n: int | None = None


class Dots(NamedTuple):
    """A row of a dot chart: each value a dot, their mean a tick, an interval a band; strong: in bold letters."""

    name: str
    values: Sequence[float]
    mean: float
    interval: Sequence[float] | None = None
    strong: bool = False


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round numbers that enclose low..high, in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        low, high = min(low, low / 2), max(high, high / 2) or 1.0  # an accuracy of 1 must not bring ticks above 1
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * k for k in (1, 2, 5, 10) if (high - low) / (power * k) <= most)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _spread(heights: list[float], gap: float = 13) -> list[float]:
    """Heights of end labels, pushed apart so that none covers another."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for before, after in itertools.pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    over = max(0.0, max(placed, default=0.0) - BOTTOM)
    return [height - over for height in placed]


def _axes(xs: list[float], ys: list[float], x: Callable, y: Callable, form: Form, label: str) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{LEFT - 7}" y="{y(v) + 3.5:.1f}" text-anchor="end">{form(v)}</text>'
        for v in ys
    ]
    lines += [
        f'<line class="axis" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>'
        f'<text class="tick" x="{x(v):.1f}" y="{BOTTOM + 17}" text-anchor="middle">{v:g}</text>'
        for v in xs
    ]
    lines.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    lines.append(
        f'<text class="tick" x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(label)}</text>'
    )
    return "".join(lines)


def curves(title: str, lines: Sequence[Curve], form: Form, tick_form: Form, x_label: str = "epoch") -> str:
    """Lines over epochs with axes, and the last value of each written at its end; empty when there are no points.

    `form` writes a value, `tick_form` a round number beside the axis.
    """
    finite = [(line.name, [p for p in line.points if math.isfinite(p[1])]) for line in lines]
    drawn = [(i, Curve(*line)) for i, line in enumerate(finite) if line[1]]
    if not drawn:
        return ""
    all_x, all_y = zip(*(point for _, line in drawn for point in line.points), strict=True)
    xs, ys = ticks(min(all_x), max(all_x), whole=True), ticks(min(all_y), max(all_y))
    x_low, x_high = (min(all_x), max(all_x)) if len(set(all_x)) > 1 else (xs[0], xs[-1])

    def x(value: float) -> float:
        return LEFT + 6 + (value - x_low) / (x_high - x_low) * (RIGHT - LEFT - 12)

    def y(value: float) -> float:
        return BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (BOTTOM - TOP)

    shown_x = [v for v in xs if x_low <= v <= x_high] if len(set(all_x)) > 1 else [all_x[0]]
    body = _axes(shown_x, ys, x, y, tick_form, x_label)
    ends = _spread([y(line.points[-1][1]) for _, line in drawn])
    for (i, line), end in zip(drawn, ends, strict=True):
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line.points)
        (last_x, last_y) = line.points[-1]
        body += (
            f'<polyline class="curve c{i}" points="{path}"/>'
            f'<circle class="dot c{i}" cx="{x(last_x):.1f}" cy="{y(last_y):.1f}" r="3.5"/>'
            f'<text class="end c{i}" x="{x(last_x) + 10:.1f}" y="{end + 4:.1f}">{form(last_y)}</text>'
        )
    body += _hover([line for _, line in drawn], x, form, x_label)
    keys = "".join(f'<span class="key c{i}">{escape(line.name)}</span>' for i, line in drawn)
    legend = f'<span class="legend">{keys}</span>' if len(drawn) > 1 else ""
    words = "; ".join(
        f"{line.name} {form(line.points[-1][1])} at {x_label} {line.points[-1][0]:g}" for _, line in drawn
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(words)}">'
        f"{body}</svg></figure>"
    )


def against(title: str, pairs: Sequence[tuple[float, float]], x_label: str, y_label: str) -> str:
    """Each (x, y) as a dot, both on one scale, with the line on which they are equal."""
    every = [value for pair in pairs for value in pair if math.isfinite(value)]
    marks = ticks(min(every), max(every))
    low, high = marks[0], marks[-1]

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)

    def y(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    body = _axes(marks, marks, x, y, "{:g}".format, x_label)
    body += f'<line class="axis" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"/>'
    body += "".join(
        f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"><title>{a:g}: {b:.6g}</title></circle>'
        for a, b in pairs
    )
    return frame(f"{title}: {y_label} over {x_label}", f"{len(pairs)} pictures", WIDTH, HEIGHT, body)


def _hover(lines: list[Curve], x: Callable, form: Form, label: str, most: int = 300) -> str:
    """Invisible strips that show the values of their epoch under the pointer."""
    values: dict[float, list[str]] = {}
    for line in lines:
        for px, py in line.points:
            values.setdefault(px, []).append(f"{line.name} {form(py)}")
    if len(values) > most:
        return ""
    half = (RIGHT - LEFT) / len(values) / 2
    return "".join(
        f'<rect class="hover" x="{x(px) - half:.1f}" y="{TOP}" width="{2 * half:.1f}" height="{BOTTOM - TOP}">'
        f"<title>{escape(f'{label} {px:g}: ' + ', '.join(texts))}</title></rect>"
        for px, texts in sorted(values.items())
    )


def cut(text: str, room: float) -> str:
    """A text that takes about `room` units at most, in the letters of a chart."""
    most = max(4, int(room / LETTER))
    return text if len(text) <= most else text[: most - 1] + "…"


def frame(title: str, words: str, width: float, height: float, body: str) -> str:
    """A drawing, as SVG, with its title above it; words: what it shows, for those who do not see it."""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(f"{title}: {words}")}">'
        f"{body}</svg></figure>"
    )


def floor(values: Sequence[float]) -> float:
    """Where an axis may begin: at the lowest value, or at the lowest of the others where up to a quarter of the values
    lie below these by more than twice what these span."""
    ordered = sorted(values)
    for out in range(1, len(ordered) // 4 + 1):
        rest = ordered[out:]
        if rest[0] - ordered[out - 1] > 2 * (rest[-1] - rest[0]):
            return rest[0]
    return ordered[0]


def dots(
    title: str, rows: Sequence[Dots], form: Form, tick_form: Form, *, zero: bool = False, width: float = WIDTH
) -> str:
    """Values as dots, one row below the other, with their mean as a tick and in figures at the end of the row.

    zero: the values are differences: 0 is in the picture, and what lies above it has another colour than what lies
    below. A row far to the left of all others is an arrow, and its figure.
    """
    pitch = 18
    longest = max(len(row.name) for row in rows)
    left, right, top = min(132.0, LETTER * longest + 6) + 8, width - 56, 6
    bottom = top + pitch * len(rows) + 4
    low = floor([row.mean for row in rows])
    near = [row for row in rows if row.mean >= low]
    reach = [v for row in near for v in (*row.values, row.mean, *(row.interval or ()), *([0.0] if zero else []))]
    xs = ticks(min(reach), max(reach), most=4)

    def x(value: float) -> float:
        return left + 5 + max(0.0, (value - xs[0]) / (xs[-1] - xs[0])) * (right - left - 10)

    body = "".join(
        f'<line class="{"axis" if zero and abs(v) < 1e-12 else "grid"}" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{top}" '
        f'y2="{bottom}"/><text class="tick" x="{x(v):.1f}" y="{bottom + 14}" text-anchor="middle">{tick_form(v)}</text>'
        for v in xs
    )
    for k, row in enumerate(rows):
        y = top + pitch * (k + 0.5) + 2
        least, most = row.interval or (row.mean, row.mean)
        side = " below" if zero and row.mean < 0 else ""
        sure = "" if not zero or row.interval is None or least > 0 or most < 0 else " unsure"
        strong = " strong" if row.strong else ""
        interval = f", 95 % interval {form(least)} to {form(most)}" if row.interval else ""
        hint = f"{row.name}: {form(row.mean)}{interval}; {', '.join(form(v) for v in row.values)}"
        body += (
            f'<g class="row{side}{sure}{strong}"><title>{escape(hint)}</title>'
            f'<rect class="hover" x="0" y="{y - pitch / 2:.1f}" width="{width}" height="{pitch}"/>'
            f'<text class="name" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(cut(row.name, left - 8))}</text>"
        )
        if row.mean < low:
            corners = f"{left:.1f},{y:.1f} {left + 8:.1f},{y - 5:.1f} {left + 8:.1f},{y + 5:.1f}"
            body += f'<polygon class="off" points="{corners}"/>'
        else:
            if row.interval:
                ends = f'x1="{x(least):.1f}" x2="{x(most):.1f}"'
                body += f'<line class="span" {ends} y1="{y:.1f}" y2="{y:.1f}"/>'
            body += "".join(f'<circle class="seed" cx="{x(v):.1f}" cy="{y:.1f}" r="3.2"/>' for v in row.values)
            ends = f'x1="{x(row.mean):.1f}" x2="{x(row.mean):.1f}"'
            body += f'<line class="mean" {ends} y1="{y - 6:.1f}" y2="{y + 6:.1f}"/>'
        body += f'<text class="figure" x="{width}" y="{y + 4:.1f}" text-anchor="end">{form(row.mean)}</text></g>'
    words = "; ".join(f"{row.name} {form(row.mean)}" for row in rows)
    return frame(title, words, width, bottom + 20, body)


def standalone(figure: str, style: str) -> str:
    """A figure of one drawing as an SVG document of its own, its title above it and the page's style inside."""
    title = figure[figure.index("<figcaption>") + len("<figcaption>") : figure.index("</figcaption>")]
    head, _, body = figure[figure.index("<svg") : figure.index("</svg>")].partition(">")
    width, height = (float(edge) + more for edge, more in zip(head.split('"')[1].split()[2:], (28, 48), strict=True))
    head = head.replace(head.split('"')[1], f"-14 -34 {width:g} {height:g}", 1)
    own = (
        f"svg {{ width: {width:g}px; height: {height:g}px; background: var(--card); font-family: {LETTERS}; }}"
        "svg .title { font-size: 13px; font-weight: 600; fill: var(--ink); }"
    )
    return (
        f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}{own}</style>'
        f'<text class="title" x="0" y="-14">{title}</text>{body}</svg>\n'
    )
