"""A scatter chart that follows the page's colours: points over a logarithmic axis, each with its name beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from .charts import LETTER, Form, cut, floor, frame, ticks


class Point(NamedTuple):
    """A named point of a scatter chart; x is 0 or more; spread: of y, both ways; front: nothing beats it."""

    name: str
    x: float
    y: float
    spread: float | None = None
    front: bool = False


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from low to high, both above 0: 1, 2 and 5 times powers of ten, or the powers alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        within = [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(within) <= most:
            break
    return within


class _Log:
    """Numbers of 0 or more on a logarithmic axis from left to right; 0 has a place of its own before it."""

    def __init__(self, values: Sequence[float], left: float, right: float) -> None:
        above = [value for value in values if value > 0] or [1.0]
        self.zero = left + 14 if min(values) <= 0 else None
        self.left, self.right = left if self.zero is None else left + 48, right
        room = max(1.25, (max(above) / min(above)) ** 0.06)  # so that no point stands on an edge
        self.low, self.high = min(above) / room, max(above) * room
        self.ticks = ([] if self.zero is None else [0.0]) + log_ticks(self.low, self.high)

    def __call__(self, value: float) -> float:
        if value <= 0:
            return self.zero if self.zero is not None else self.left
        return self.left + math.log(value / self.low) / math.log(self.high / self.low) * (self.right - self.left)


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def within(self, other: _Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


class _Label(NamedTuple):
    """Where a label stands: its box, how the text is anchored in it, whether a line has to lead there."""

    box: _Box
    anchor: str
    led: bool

    @property
    def x(self) -> float:
        left, _, right, _ = self.box
        return {"start": left, "end": right, "middle": (left + right) / 2}[self.anchor]


def _place(x: float, y: float, width: float, inside: _Box, taken: list[_Box]) -> _Label:
    """The nearest free place for the label of a point; where none is free, to its right."""
    high = 14
    for far in (8, 16, 26, 38, 52):
        for across, up in ((1, 0), (-1, 0), (1, -0.8), (1, 0.8), (-1, -0.8), (-1, 0.8), (0, -1), (0, 1)):
            left = x + across * far - {1: 0.0, -1: width, 0: width / 2}[across]
            middle = y + up * (far + high / 2)
            box = _Box(left, middle - high / 2, left + width, middle + high / 2)
            if box.within(inside) and not any(box.meets(other) for other in taken):
                return _Label(box, {1: "start", -1: "end", 0: "middle"}[across], far > 16)
    return _Label(_Box(x + 8, y - high / 2, x + 8 + width, y + high / 2), "start", False)


def scatter(
    title: str, points: Sequence[Point], form: Form, tick_form: Form, x_form: Form, x_label: str, y_label: str
) -> str:
    """Points over a logarithmic axis, each with its name; those of the front are full and joined by a stair.

    `form` writes y, `x_form` x, both in what the pointer shows; `tick_form` a round y. Empty when there are no points.
    """
    if not points:
        return ""
    width, height = 560, 330
    left, right, top, bottom = 52, width - 8, 22, height - 46
    x = _Log([point.x for point in points], left, right)
    low = floor([point.y for point in points])
    reach = [point.y + sign * (point.spread or 0) for point in points if point.y >= low for sign in (-1, 1)]
    ys = ticks(min(reach), max(reach), most=6)

    def y(value: float) -> float:
        return bottom - max(0.0, (value - ys[0]) / (ys[-1] - ys[0])) * (bottom - top)

    body = "".join(
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{left - 7}" y="{y(v) + 3.5:.1f}" text-anchor="end">{tick_form(v)}</text>'
        for v in ys
    )
    start = left if x.zero is None else x.left - 12  # between 0 and the rest the axis is broken
    body += f'<line class="axis" x1="{start}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    if x.zero is not None:
        body += f'<line class="axis" x1="{left}" x2="{x.zero + 12}" y1="{bottom}" y2="{bottom}"/>'
    body += "".join(
        f'<line class="axis" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        f'<text class="tick" x="{x(v):.1f}" y="{bottom + 17}" text-anchor="middle">{v:,.10g}</text>'
        for v in x.ticks
    )
    body += (
        f'<text class="tick" x="{(left + right) / 2}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    body += f'<text class="tick" x="{left - 44}" y="{top - 10}">{escape(y_label)}</text>'
    best = sorted((x(point.x), y(point.y)) for point in points if point.front)
    if best:
        stair = [best[0]]
        for px, py in best[1:]:
            stair += [(px, stair[-1][1]), (px, py)]
        stair.append((right, stair[-1][1]))
        body += f'<polyline class="front" points="{" ".join(f"{px:.1f},{py:.1f}" for px, py in stair)}"/>'
    taken = [_Box(x(p.x) - 6, y(p.y) - 6, x(p.x) + 6, y(p.y) + 6) for p in points]
    labels, marks = "", ""
    for point in sorted(points, key=lambda point: (not point.front, -point.y)):
        px, py = x(point.x), y(point.y)
        front, off = " front" if point.front else "", point.y < low
        hint = f"<title>{escape(f'{point.name}: {form(point.y)}, {x_form(point.x)}')}</title>"
        if off:  # below the axis: an arrow down, and its value beside its name
            py -= 9
            corners = f"{px - 5.5:.1f},{py - 4:.1f} {px + 5.5:.1f},{py - 4:.1f} {px:.1f},{py + 5:.1f}"
            marks += f'<polygon class="point{front}" points="{corners}">{hint}</polygon>'
        else:
            if point.spread:
                ends = f'y1="{y(point.y - point.spread):.1f}" y2="{y(point.y + point.spread):.1f}"'
                marks += f'<line class="whisker" x1="{px:.1f}" x2="{px:.1f}" {ends}/>'
            marks += f'<circle class="point{front}" cx="{px:.1f}" cy="{py:.1f}" r="4.5">{hint}</circle>'
        words = cut(point.name, 190) + (f" {form(point.y)}" if off else "")
        label = _place(px, py, LETTER * len(words), _Box(left, top - 14, right, bottom), taken)
        taken.append(label.box)
        if label.led:
            end = min(max(py, label.box.top + 3), label.box.bottom - 3)
            labels += f'<line class="lead" x1="{px:.1f}" y1="{py:.1f}" x2="{label.x:.1f}" y2="{end:.1f}"/>'
        labels += (
            f'<text class="name{front}" x="{label.x:.1f}" y="{label.box.bottom - 3.5:.1f}" '
            f'text-anchor="{label.anchor}">{escape(words)}<title>{escape(point.name)}</title></text>'
        )
    words = "; ".join(f"{p.name} {form(p.y)} at {x_form(p.x)}{', on the front' if p.front else ''}" for p in points)
    return frame(title, words, width, height, body + labels + marks)
