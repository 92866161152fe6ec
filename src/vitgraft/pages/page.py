"""Self-contained HTML pages from templates: numbers in words, thumbnails, and the file that is written."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..common.errors import WorkError
from ..common.files import write_bytes
from ..data.pictures import open_picture

SPACE = "\u202f"  # narrow and unbreakable: between a number and its unit


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


def number(count: float) -> str:
    """A whole number with its thousands apart: `"764,840"`."""
    return f"{count:,}"


def name(text: object) -> Markup:
    """A name that somebody else chose, kept from turning the direction of the text around it."""
    return Markup("<bdi>{}</bdi>").format(str(text))


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
    return data_uri(image, 82)[0]


def data_uri(image: Image.Image, quality: int) -> tuple[str, int]:
    """The picture as a JPEG data URI, and the bytes of the JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), buffer.tell()


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader(__package__ or "vitgraft.pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters |= {
        "duration": duration,
        "file_name": lambda path: Path(path).name,
        "interval": interval_text,
        "name": name,
        "number": number,
        "percent": percent,
        "quote": lambda path: quote(Path(path).as_posix()),
        "size": size,
    }
    found.globals["thumbnail"] = thumbnail
    return found


def macro(template: str, name: str, *given: Any, **named: Any) -> Markup:
    """What a macro of a template makes of what it is given."""
    return Markup(getattr(_templates().get_template(template).module, name)(*given, **named))


def style() -> str:
    """The style of every page."""
    return resources.files(__package__ or "vitgraft.pages").joinpath("templates/style.css").read_text("utf-8")


def rendered(template: str, **data: Any) -> str:
    """What a template makes of its data."""
    return _templates().get_template(template).render(data)


def write(path: str | Path, template: str, **data: Any) -> None:
    """Writes a page as a whole or not at all; raises WorkError."""
    write_whole(path, rendered(template, **data))


def write_whole(path: str | Path, text: str) -> None:
    """Writes the page as a whole or not at all; raises WorkError."""
    # A file name may hold bytes that are no text; they show as "?".
    write_bytes(Path(path), text.encode("utf-8", errors="replace"))
