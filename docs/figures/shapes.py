"""Shapes of a figure as SVG: boxes, words, wires. Their look is here, what they show in `figure.py` and `layers.py`."""

from __future__ import annotations

from html import escape

Point = tuple[float, float]
WIDTH = 800  # of a figure, in pixels; its own white ground makes it readable on a light page and on a dark one
SIZE, SMALL = 13, 11.5  # of letters, in pixels
STYLE = """
text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Liberation Sans',sans-serif;fill:#181b20}
.title{font-size:20px;font-weight:650;letter-spacing:-.01em}.soft{fill:#5b6470}.small,.pill{font-size:11.5px}
.pill{fill:#fff;font-weight:600}.strong{font-weight:600}
.page{fill:#fff;stroke:#d9dee5}.block{fill:#fafbfc;stroke:#cdd4dc}.behind{fill:#fff;stroke:#dfe4ea}
.wire{fill:none;stroke:#8d97a4;stroke-width:1.5}.stream{fill:none;stroke:#8d97a4;stroke-width:3.5}
.tip{fill:#8d97a4}.node{fill:#fff;stroke:#6b7683;stroke-width:1.5}.plain{fill:#fff;stroke:#b9c1cb}
.absent{fill:none;stroke:#c9d0d8;stroke-dasharray:4 3}.head{fill:#eef0f3;stroke:#5b6470}.rule{stroke:#e2e6eb}
"""
COLOURS = {  # what a method does to a place -> line and ground
    "train": ("#b45a12", "#fdf2e7"),
    "weight": ("#2a5bd0", "#ecf1fd"),
    "branch": ("#17794a", "#e8f5ee"),
    "after": ("#0b7285", "#e5f4f6"),
    "tokens": ("#7a3db8", "#f4edfb"),
    "prefix": ("#8a6d00", "#fbf6e0"),
    "tap": ("#b02a5b", "#fcecf1"),
}


class Shapes:
    """Shapes in the order in which they are drawn; those in `below` come first."""

    def __init__(self) -> None:
        self.below: list[str] = []
        self.shapes: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "middle", most: float = 0) -> None:
        """most: the width that there is; a text that may be longer in some font is set smaller."""
        size = SMALL if "small" in style or "pill" in style else SIZE
        fit = most / measure(words, size, bold="strong" in style) if most else 1.0
        smaller = f' style="font-size:{size * fit:.1f}px"' if fit < 1 else ""
        kind = f' class="{style}"' if style else ""
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}{smaller}>{escape(words)}</text>')

    def rect(self, x: float, y: float, w: float, h: float, kind: str, r: float = 8) -> None:
        """kind: what a method does there, or a class of the style sheet."""
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r:g}" {_look(kind)}/>')

    def pill(self, x: float, y: float, words: str, kind: str, most: float) -> None:
        """Words on a ground of their own, around x and on the line y."""
        w = min(most, measure(words, SMALL, bold=True) + 14)
        fill = COLOURS[kind][0]
        self.shapes.append(f'<rect x="{x - w / 2:g}" y="{y - 12:g}" width="{w:g}" height="16" rx="8" fill="{fill}"/>')
        self.text(x, y, words, "pill", most=w - 6)

    def wire(self, *points: Point, kind: str = "", tip: bool = True) -> None:
        """A line through the points, with an arrow's tip at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        stroke, fill = (f' style="{what}:{COLOURS[kind][0]}"' if kind else "" for what in ("stroke", "fill"))
        self.shapes.append(f'<polyline class="wire" points="{path}"{stroke}/>')
        if tip:
            (x0, y0), (x, y) = points[-2:]
            dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
            back = f"{-8 * dx - 4 * dy:g} {-8 * dy - 4 * dx:g}l{8 * dy:g} {8 * dx:g}"
            self.shapes.append(f'<path class="tip" d="M{x:g} {y:g}l{back}z"{fill}/>')

    def dot(self, x: float, y: float, kind: str, r: float = 3) -> None:
        self.shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" fill="{COLOURS[kind][0]}"/>')

    def plus(self, x: float, y: float, r: float = 9) -> None:
        """A sum."""
        self.shapes.append(
            f'<circle class="node" cx="{x:g}" cy="{y:g}" r="{r:g}"/>'
            f'<path class="wire" d="M{x - r / 2:g} {y:g}h{r:g}M{x:g} {y - r / 2:g}v{r:g}"/>'
        )

    def svg(self, height: float, title: str) -> str:
        """The figure as a file."""
        title = escape(title)
        page = f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:g}" rx="14"/>'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" role="img" aria-label="{title}">'
        )
        style = f"<title>{title}</title>\n<style>{STYLE}</style>"
        return "\n".join([head, style, page, *self.below, *self.shapes, "</svg>\n"])


def measure(words: str, size: float, *, bold: bool = False) -> float:
    """The width of a text in a wide font, at least."""
    return (0.68 if bold else 0.61) * size * max(len(words), 1)


def _look(kind: str) -> str:
    line, ground = COLOURS.get(kind, ("", ""))
    return f'fill="{ground}" stroke="{line}"' if line else f'class="{kind}"'
