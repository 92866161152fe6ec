"""A figure of one transformer block and of all that a method adds to it, drawn from the method's own contacts.

    python -m docs.figures.figure docs/methods      # draws the figures of every method again

Nothing here knows a method: a new file in `methods/` has its figure at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitgraft import methods
from vitgraft.backbones import Backbone
from vitgraft.common.files import write_bytes
from vitgraft.method import Method
from vitgraft.pages.catalogue import VIT_B16, attached, shape_of

from .places import ATTENTION, EMBEDDING, MLP, Part, parts, reads, size_of, where
from .shapes import Shapes

STREAM = 112  # x of the residual stream; what stands on it is WIDE
WIDE = 144
COLUMNS, COLUMN = (198, 310, 422, 534, 646), 94  # x of the boxes of a sub-layer, and their width
RETURN = 754  # x of the line on which a sub-layer comes back to the stream
LINE = 19  # from one line in a box to the next

LEGEND = {
    "train": "trains: a copy of these tensors",
    "weight": "changed: other values in the layer's place",
    "branch": "beside: added to what comes out",
    "after": "the stream passes through it",
    "tokens": "extra tokens, in front of the others",
    "prefix": "extra keys and values",
    "tap": "read by a side network",
}


class Figure(Shapes):
    """The figure of an attached method, from top to bottom; `y` is how far down it has come."""

    def __init__(self, method: Method, backbone: Backbone) -> None:
        super().__init__()
        self.method, self.backbone, self.contacts = method, backbone, method.contacts
        self.names = set(backbone.tensors())
        self.parts = parts(method)
        inside = sum(sum(part.sizes.values()) for found in self.parts.values() for part in found)
        self.tokens = {first: make(1) for first, (make, _) in self.contacts.tokens.items()}
        extra = sum(tokens.numel() for tokens in self.tokens.values())
        self.rest = size_of(method) - inside - extra  # parameters that stand at no place: a side network's, or shared
        if self.contacts.taps:
            self.parts["side"] = [Part("tap", "side network", sizes={None: self.rest})]
        self.y = 122.0

    def draw(self) -> str:
        self.header()
        top = self.embedding()
        self.block()
        bottom = self.end()
        self.below.append(f'<path class="stream" d="M{STREAM} {top:g}V{bottom:g}"/>')
        self.legend()
        return self.svg(self.y + 20, f"{self.method.title}: one block of {self.backbone.name} and what is added to it")

    # ---------------------------------------------------------------------------------------------- boxes

    def lines(self, place: str) -> list[tuple[str, str]]:
        """What stands in a box: (kind, label) of each part, then its parameters and its blocks."""
        found = self.parts.get(place, [])
        sizes: dict[int | None, int] = {}
        for part in found:
            for block, size in part.sizes.items():
                sizes[block] = sizes.get(block, 0) + size
        lines = [(part.kind, part.label) for part in found]
        lines += [("", _range(sizes.values()))] if any(sizes.values()) else []
        blocks = [block for block in sizes if block is not None]
        return lines + ([("", where(blocks, self.backbone.depth))] if 0 < len(blocks) < self.backbone.depth else [])

    def height(self, *places: str, named: bool = True) -> float:
        """Of boxes that are drawn beside each other."""
        lines = max(len(self.lines(place)) for place in places)
        return 14 + LINE * lines + (18 + 4 * (lines > 0) if named else 0)

    def box(self, x: float, y: float, w: float, h: float, name: str, place: str, plain: str = "plain") -> None:
        """A box with a name, or none, and with what the method does there."""
        found, lines = self.parts.get(place, []), self.lines(place)
        self.rect(x, y, w, h, found[-1].kind if found else plain)
        at = y + h / 2 + (4.5 if name else 6) - LINE / 2 * (len(lines) - (not name))
        if name:
            self.text(x + w / 2, at - (len(lines) > 0), name, "strong" if found else "soft", most=w - 8)
            at += LINE
        for i, (kind, words) in enumerate(lines):
            if kind:
                self.pill(x + w / 2, at + LINE * i, words, kind, most=w - 8)
            else:
                self.text(x + w / 2, at + LINE * i, words, "small soft", most=w - 8)

    # ---------------------------------------------------------------------------------------------- from top to bottom

    def header(self) -> None:
        """The method, its size, and what follows from its contacts."""
        m, backbone = self.method, self.backbone
        usual = type(m)().arguments()
        given = [_words(key, value) for key, value in m.arguments().items() if value != usual[key]]
        self.text(40, 44, m.title, "title", "start")
        if given:
            self.text(760, 44, " · ".join(given)[:60], "soft", "end", most=330)
        size = f"{m.size:,} parameters" + (f" stored, {size_of(m):,} while they train," if size_of(m) != m.size else "")
        on = f"{_short(backbone.name)} ({backbone.depth} blocks of width {backbone.width})"
        self.text(40, 70, f"{size} on {on}", "", "start")
        crosses = "gradients cross the backbone" if m.crosses_backbone else "no gradient crosses the backbone"
        merges = "can be merged into it" if m.mergeable else "cannot be merged into it"
        self.text(40, 91, f"{crosses} · {merges}", "soft", "start")

    def embedding(self) -> float:
        """Picture, patch embedding, class token and position; where the stream begins."""
        h, beside = self.height("patch"), self.height("position")
        self.text(STREAM, self.y, "picture", "soft")
        self.wire((STREAM, self.y + 6), (STREAM, self.y + 26))
        self.box(STREAM - WIDE / 2, self.y + 26, WIDE, h, "patch embedding", "patch")
        top = self.y + 26 + h
        self.y = top + max(24, beside / 2 - h + 10)
        there = [words for name, words in EMBEDDING.items() if name in self.names]
        if there:
            self.box(COLUMNS[0], self.y - beside / 2, 230, beside, ", ".join(there), "position")
            self.wire((COLUMNS[0], self.y), (STREAM + 9, self.y))
            self.plus(STREAM, self.y)
        self.y += max(31, beside / 2 + 16)
        return top

    def block(self) -> None:
        """The frame, and what happens in it."""
        top = self.y
        self.text(RETURN + 6, top + 24, f"one of {self.backbone.depth} blocks", "strong", "end")
        self.y += 36
        if "before" in self.parts:
            h = self.height("before", named=False)
            self.box(STREAM - WIDE / 2, self.y - 8, WIDE, h, "", "before")
            self.y += h + 12
        if self.contacts.tokens:
            self.enter()
        for name, boxes in (("attn", ATTENTION), ("mlp", MLP)):
            self.sublayer(name, boxes)
        self.leave()
        for style, by in (("behind", 8), ("behind", 4), ("block", 0)):
            frame = f'x="{24 + by}" y="{top + by:g}" width="744" height="{self.y - top:g}" rx="12"'
            self.below.append(f'<rect class="{style}" {frame}/>')
        self.y += 8

    def sublayer(self, name: str, boxes: dict[str, str]) -> None:
        """Norm to LayerScale beside the stream, branches beside them, the sum, and what comes after it."""
        h = self.height(*boxes)
        middle = self.y + h / 2
        x = float(STREAM)
        for left, (place, words) in zip(COLUMNS, boxes.items(), strict=True):
            self.wire((x, middle), (left, middle))
            absent = words == "LayerScale" and f"blocks.0.{place}.gamma" not in self.names
            self.box(left, self.y, COLUMN, h, words, place, "absent" if absent else "plain")
            x = left + COLUMN
        self.y += h
        self.wire((x, middle), (RETURN, middle), tip=False)
        start = middle
        if branch := self.parts.get(f"{name} branch"):
            assert branch[0].module is not None
            top, h = self.y + 22, self.height(f"{name} branch", named=False)
            for read, left in zip(reads(branch[0].module, self.backbone), (COLUMNS[0], COLUMNS[3]), strict=True):
                if read:
                    at = left + COLUMN + 6
                    self.dot(at, middle, "branch", 2.5)
                    self.wire((at, middle), (at, top), kind="branch")
            self.box(COLUMNS[1] - 30, top, COLUMNS[4] - COLUMNS[1] + 46, h, "", f"{name} branch")
            start = top + h / 2
            self.wire((COLUMNS[4] + 16, start), (RETURN - 7, start), kind="branch")
            self.wire((RETURN, middle), (RETURN, start - 7), tip=False)
            self.plus(RETURN, start, 7)
            self.y, start = top + h, start + 7
        self.y += 22
        self.wire((RETURN, start), (RETURN, self.y), (STREAM + 9, self.y))
        self.plus(STREAM, self.y)
        self.y += 30
        if f"{name} after" in self.parts:
            h = self.height(f"{name} after", named=False)
            self.box(STREAM - WIDE / 2, self.y - 8, WIDE, h, "", f"{name} after")
            self.y += h + 12

    def enter(self) -> None:
        """Extra tokens on their way into the sequence."""
        sets, depth = self.tokens, self.backbone.depth
        many = _range(tokens.shape[1] for tokens in sets.values())
        how = f"put in at {where(sets, depth)}" if len(sets) < depth else "each block has its own"
        self.wire((COLUMNS[0] - 6, self.y), (STREAM + 5, self.y), kind="tokens")
        end = self.squares()
        self.text(end, self.y - 2, f"{many} extra token{'s' * (many != '1')}, {how}", "", "start")
        self.text(end, self.y + 15, _range(tokens.numel() for tokens in sets.values()), "small soft", "start")
        self.y += 32

    def squares(self) -> float:
        """A few tokens in a row; where they end."""
        many = max(tokens.shape[1] for tokens in self.tokens.values())
        self.dot(STREAM, self.y, "tokens", 4.5)
        for i in range(min(many, 6)):
            self.rect(COLUMNS[0] + 16 * i, self.y - 6, 12, 12, "tokens", 3)
        end = COLUMNS[0] + 16 * min(many, 6)
        if many > 6:
            self.text(end, self.y + 4, "…", "", "start")
        return end + (22 if many > 6 else 8)

    def leave(self) -> None:
        """What leaves the block on its way down: extra tokens, and taps."""
        c, depth = self.contacts, self.backbone.depth
        self.down: list[tuple[float, float, str]] = []  # x, y and kind of the lines to the side network
        if c.tokens:
            own = all(first == last for first, (_, last) in c.tokens.items())
            lasts = where((last for _, last in c.tokens.values()), depth).removesuffix(" only")
            end = "at the end of the block" if own else f"after {lasts}"
            self.y += 4
            if c.taps:  # what became of them is handed back together with the taps
                self.dot(STREAM, self.y, "tokens", 4.5)
                self.text(STREAM + 18, self.y - 8, f"the extra tokens {end}", "", "start", most=370)
                self.down.append((506, self.y, "tokens"))
            else:
                self.text(self.squares(), self.y + 4, f"taken off again {end}", "", "start")
                self.wire((STREAM + 5, self.y), (COLUMNS[0] - 6, self.y), kind="tokens")
            self.y += 34
        if c.taps:
            inner = [i for i in c.taps if i >= 0]
            words = [f"output of {where(inner, depth)}"] if inner else []
            words += ["input of block 0"] if -1 in c.taps else []
            words += ["normalised"] if all(c.taps.values()) else []
            self.y += 4
            self.dot(STREAM, self.y, "tap", 4.5)
            self.text(STREAM + 18, self.y - 8, ", ".join(words), "", "start", most=330)
            self.down.append((460, self.y, "tap"))
            self.y += 22

    def end(self) -> float:
        """Final norm and head, or side network and head; how far down the stream goes."""
        side = bool(self.contacts.taps)
        h = max(self.height("norm", "side" if side else "pool"), 50)
        top = self.y + 30
        middle = top + h / 2
        self.box(STREAM - WIDE / 2, top, WIDE, h, "norm", "norm")
        if side:
            self.box(278, top, 264, h, "", "side")
            for x, y, kind in self.down:
                self.wire((STREAM + 5, y), (x, y), (x, top), kind=kind)
        else:
            self.box(COLUMNS[1], top, COLUMN, h, "pooling", "pool")
            self.wire((STREAM + WIDE / 2, middle), (COLUMNS[1], middle))
        self.wire((542 if side else COLUMNS[1] + COLUMN, middle), (COLUMNS[4], middle))
        self.rect(COLUMNS[4], top, COLUMN, h, "head")
        self.text(COLUMNS[4] + COLUMN / 2, middle - 4, "head", "strong")
        self.text(COLUMNS[4] + COLUMN / 2, middle + 14, "always trains", "small soft")
        self.y = top + h
        return top

    def legend(self) -> None:
        """Only what occurs."""
        kinds = {part.kind for found in self.parts.values() for part in found} | ({"tokens"} & set(self.contacts.kinds))
        scales = {f"blocks.{i}.{name}.gamma" for i in range(self.backbone.depth) for name in ("ls1", "ls2")}
        entries = [("plain", "left as it is")]
        entries += [] if scales & self.names else [("absent", "not in this backbone")]
        entries += [(kind, words) for kind, words in LEGEND.items() if kind in kinds]
        if self.rest and not self.contacts.taps:
            entries.append(("", f"{self.rest:,} parameters shared by the coloured places"))
        elif kinds:
            entries.append(("", "numbers: parameters (in a block: of one block)"))
        else:
            entries.append(("", "nothing is added"))
        self.y += 24
        self.below.append(f'<path class="rule" d="M40 {self.y:g}H{RETURN + 6}"/>')
        for i, (kind, words) in enumerate(entries):
            x, y = 40 + 372 * (i % 2), self.y + 26 + 24 * (i // 2)
            if kind:
                self.rect(x, y - 12, 22, 15, kind, 4)
            self.text(x + 32 if kind else x, y, words, "soft", "start")
        self.y += 26 + 24 * ((len(entries) - 1) // 2)


def _range(values: Iterable[int]) -> str:
    low, *_, high = sorted([*(values := list(values)), *values])
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _words(key: str, value: Any) -> str:
    """An argument that differs from its default."""
    text = " ".join(map(str, value)) or "none" if isinstance(value, (tuple, list)) else str(value)
    return key.replace("_", " ") + ("" if value is True else f" {text}")


def _short(name: str) -> str:
    """ViT-B/16 for vit_base_patch16_224."""
    found = re.match(r"vit_(tiny|small|base|large|huge)_patch(\d+)", name)
    return f"ViT-{'Ti' if found[1] == 'tiny' else found[1][0].upper()}/{found[2]}" if found else name


def svg(method: Method, backbone: Backbone) -> str:
    """The figure of an attached method as SVG; its tensors may be on torch's meta device."""
    return Figure(method, backbone).draw()


def forms(cls: type[Method]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A method by default, and with each other word that one of its arguments takes: a file's ending, the arguments."""
    yield "", {}
    for argument, default in cls.defaults().items():
        if isinstance(default, bool):
            yield f"-{argument}", {argument: not default}
        elif isinstance(default, str):
            yield from ((f"-{word}", {argument: word}) for word in cls.choices.get(argument, ()) if word != default)


def figures(name: str, backbone: Backbone) -> dict[str, str]:
    """A method's figures by file name, one of each of its forms that touches other places than those before it."""
    drawn: dict[str, str] = {}
    seen: list[object] = []
    for ending, arguments in forms(methods.find(name)):
        method = attached(name, backbone, **arguments)
        c = method.contacts
        touched = {place: {(part.kind, part.label) for part in found} for place, found in parts(method).items()}
        if (places := (touched, {first: last for first, (_, last) in c.tokens.items()}, c.taps)) not in seen:
            seen.append(places)
            drawn[f"{name}{ending}.svg"] = svg(method, backbone)
    return drawn


def main(folder: str) -> None:
    """Draws the figures of every method into a folder; those of a method whose package is missing stay as they are."""
    backbone = shape_of(VIT_B16)
    for name in methods.names():
        if (needed := methods.find(name).needs) and find_spec(needed) is None:
            print(f"{name} was not drawn, as the package {needed} is not installed", file=sys.stderr)
            continue
        for file, drawing in figures(name, backbone).items():
            write_bytes(Path(folder) / file, drawing.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
