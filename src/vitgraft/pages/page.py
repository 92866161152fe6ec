"""Building blocks of a self-contained HTML page: text, tables, thumbnails and the page around them.

Functions take plain text and return HTML; what a parameter named `html` or `*_html` holds is HTML already.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from PIL import Image

from ..common.errors import WorkError
from ..common.files import write_bytes
from ..data.pictures import open_picture

SPACE = "\u202f"  # narrow and unbreakable: between a number and its unit
# Nothing outside the page may be loaded, whatever a class name says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def percent(share: float, digits: int = 1) -> str:
    """`"87.5 %"` for 0.875."""
    return f"{100 * share:.{digits}f}{SPACE}%"


def interval_text(interval: Sequence[float]) -> str:
    """`"82.0–91.3 %"` for (0.82, 0.913)."""
    return f"{100 * interval[0]:.1f}–{percent(interval[1])}"


def small_share(share: float) -> str:
    """A share with three significant digits, for parameters: `"0.891 %"`, `"100 %"`."""
    return f"{100 * share:.3g}{SPACE}%"


def size(count: float) -> str:
    """Bytes in binary units: `"2.9 MiB"`."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g}{SPACE}{unit}" if count < 100 else f"{count:.0f}{SPACE}{unit}"
        count /= 1024
    return f"{count:,.3g}{SPACE}GiB" if count < 100 else f"{count:,.0f}{SPACE}GiB"


def duration(seconds: float) -> str:
    """`"8.2 s"`, `"3 min 12 s"`, `"1 h 05 min"`."""
    if seconds < 59.95:
        return f"{seconds:.1f}{SPACE}s" if seconds >= 0.095 else f"{1000 * seconds:.2g}{SPACE}ms"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    return f"{minutes // 60:,}{SPACE}h {minutes % 60:02}{SPACE}min"


def name(text: object) -> str:
    """A name that somebody else chose, kept from turning the direction of the text around it."""
    return f"<bdi>{escape(str(text))}</bdi>"


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """(label, figure, note) triples as tiles."""
    return f"""<dl class="tiles">{
        "".join(
            f'<div><dt>{escape(label)}</dt><dd>{escape(figure)}<span class="note">{escape(note)}</span></dd></div>'
            for label, figure, note in entries
        )
    }</dl>"""


def settings(groups: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> str:
    """(group, [(label, value)]) as small tables beside each other; groups without rows are left out."""
    tables = []
    for group, rows in groups:
        lines = "".join(f'<tr><th scope="row">{escape(key)}</th><td>{name(value)}</td></tr>' for key, value in rows)
        if lines:
            tables.append(f'<table class="facts"><caption>{escape(group)}</caption>{lines}</table>')
    return f'<div class="columns">{"".join(tables)}</div>'


def section(title: str, *html: str, note: str = "") -> str:
    """A titled card; the part after the title is left out when it is empty."""
    hint = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{hint}{''.join(html)}</section>"


def paragraphs(text: str) -> str:
    """Plain text, with an empty line between paragraphs."""
    return "".join(f"<p>{escape(part)}</p>" for part in text.split("\n\n") if part.strip())


def command(line: str) -> str:
    """A command to copy."""
    return f"<pre><code>{escape(line)}</code></pre>"


def thumbnail(path: str | Path, edge: int = 160) -> str | None:
    """The picture as a JPEG data URI of at most `edge` pixels a side; None when it cannot be read any more."""
    try:
        image = open_picture(Path(path))
    except (WorkError, OSError):
        return None
    if max(image.size) * 2 <= edge:  # a digit of 8 x 8: whole multiples keep its pixels crisp
        factor = edge // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((edge, edge), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def picture(path: str | Path, caption_html: str, alt: str, kind: str = "") -> str:
    """A thumbnail with its caption; `kind` is "good", "bad" or nothing."""
    uri = thumbnail(path)
    body = (
        f'<img src="{uri}" alt="{escape(alt)}" title="{escape(Path(path).name)}">'
        if uri
        else '<div class="missing">The picture cannot be read any more.</div>'
    )
    return f'<figure class="picture {kind}">{body}<figcaption>{caption_html}</figcaption></figure>'


def gallery(pictures: Iterable[str], wide: bool = False) -> str:
    """Pictures in rows; `wide` leaves room for captions of several lines."""
    return f'<div class="gallery{" wide" if wide else ""}">{"".join(pictures)}</div>'


def document(title: str, header_html: str, body_html: str, footer: str) -> str:
    """The whole document, with its style inside."""
    css = resources.files("vitgraft.pages").joinpath("report.css").read_text("utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{css}</style>
</head>
<body>
<header>{header_html}</header>
<main>
{body_html}
</main>
<footer>{escape(footer)}</footer>
</body>
</html>
"""


def write_whole(path: str | Path, text: str) -> None:
    """Writes the page as a whole or not at all; raises WorkError."""
    # A file name may hold bytes that are no text; they show as "?".
    write_bytes(Path(path), text.encode("utf-8", errors="replace"))
