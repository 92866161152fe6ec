"""The picture of the layers, drawn from the contract that CI checks.

python -m docs.figures.layers docs/layers.svg      # draws it again
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

from .shapes import WIDTH, Shapes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
ROW, LEFT = 52, 20


def layers() -> list[list[str]]:
    """The rooms from the roof down, those of one floor together, as pyproject.toml has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    rooms: dict[str, Any] = next(contract for contract in contracts if contract["name"] == "rooms")
    return [layer.split(" | ") for layer in rooms["layers"]]


def described(room: str, short: bool) -> str:
    """What a room is, from its docstring: the first paragraph; short: until its first colon or full stop."""
    path = ROOT / "src" / "vitgraft" / room
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    words = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"[:.]", words)[0] if short else words


def svg() -> str:
    """One row a floor; whatever stands higher may import what stands lower, and nothing else."""
    drawn, floors = Shapes(), layers()
    drawn.text(LEFT, 36, "The rooms of vitgraft: imports run downwards only", "title", "start")
    for k, rooms in enumerate(floors):
        y, wide = 56 + ROW * k, (WIDTH - 2 * LEFT - 12 * (len(rooms) - 1)) / len(rooms)
        for i, room in enumerate(rooms):
            x = LEFT + i * (wide + 12)
            drawn.rect(x, y, wide, ROW - 10, "block")
            is_folder = (ROOT / "src" / "vitgraft" / room).is_dir()
            drawn.text(x + 12, y + 18, f"{room}/" if is_folder else f"{room}.py", "strong", "start")
            drawn.text(x + 12, y + 34, described(room, len(rooms) > 1), "soft small", "start", most=wide - 24)
    return drawn.svg(56 + ROW * len(floors) + 8, "Layers of the package")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(svg(), "utf-8")
