"""Text files with a line or row for each picture or class: CSV, TSV, JSON lines, Parquet; lines of other files."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from ..common.errors import RequestError
from .folders import SPLITS, folders_in, held_out_by_class, is_picture, same_form, some, split_of

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
OF_SPLIT = ("split", "set", "subset")  # columns
LABELS = ("label", "labels", "class", "category", "target", "classname", "class_name", "species", "breed", "y")
# A class with its colour: "name r g b", "name,r,g,b" or CVAT's "name:r,g,b:parts:actions".
COLOUR = re.compile(r"(?P<name>.*?)[\s,;:]+(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})\s*(?::.*)?")


def text_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1."""
    return [(number, line.strip()) for number, line in enumerate(text_of(path).split("\n"), 1) if line.strip()]


def text_of(path: Path) -> str:
    """A text file's content; RequestError where it is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # -sig: some editors put a mark before the first line
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} was to be read as text, but is not in UTF-8 ({error.reason}); save it so"
        ) from error


def tables_in(root: Path) -> list[Path]:
    """The tables in a folder, by name."""
    return sorted(item for item in root.iterdir() if item.is_file() and item.suffix.lower() in ENDINGS)


def read(
    root: Path, seed: int, val_share: float, notes: list[str]
) -> tuple[dict[str, list[tuple[Path, str]]], tuple[str, ...], str] | None:
    """The splits, classes and layout of pictures that tables in `root` label; None where no table names pictures.

    A table of a split is named so (train.csv); of another one without a column "split" a share is held out.
    """
    splits: dict[str, list[tuple[Path, str]]] = {}
    read_files = []
    for table in tables_in(root):
        rows = _rows(table)
        columns = list(rows[0]) if rows else []
        where = next((found for column in columns if (found := _paths(root, rows, column))), None)
        if where is None:
            continue
        column, paths = where
        label = _label_column(table, [name for name in columns if name != column], rows)
        by_split = next((name for name in columns if name.lower() in OF_SPLIT), None)
        for number, (row, path) in enumerate(zip(rows, paths, strict=True), 2):
            if path is None:
                raise RequestError(
                    f"{table}:{number} names the picture {row[column]!r}, but there is no such file in {root}; correct "
                    "the path, or remove the row"
                )
            split = split_of(str(row[by_split])) if by_split else split_of(table.stem)
            name = same_form(str(row[label]).strip())
            if not name:
                raise RequestError(f"{table}:{number} has no {label!r}, but each picture has a class; add it")
            splits.setdefault(split or "", []).append((path, name))
        unread = [name for name in columns if name not in (column, label, by_split)]
        if unread:
            notes.append(f"{table.name}: the columns {some(unread)} were not read")
        read_files.append(f"{table.name} (columns {column} and {label})")
    if not splits:
        return None
    how = f"table {', '.join(read_files)}"
    pool = splits.pop("", [])
    if pool and splits:
        notes.append(f"{len(pool)} rows of no split were added to train")
        splits["train"] = splits.get("train", []) + pool
    elif pool:
        splits = held_out_by_class(pool, val_share, lambda path: path.name, seed)
        if "val" in splits:
            how += f", {val_share:.0%} of each class held out by seed {seed}"
    classes = sorted({name for pairs in splits.values() for _, name in pairs}, key=_numbers_by_value)
    return {name: splits[name] for name in SPLITS if name in splits}, tuple(classes), how


def _numbers_by_value(name: str) -> tuple[bool, int, str]:
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _rows(table: Path) -> list[dict[str, Any]]:
    """A table's rows by column; RequestError where it cannot be read."""
    ending = table.suffix.lower()
    if ending == ".parquet":
        try:
            import pyarrow.parquet as parquet
        except ModuleNotFoundError as error:
            raise RequestError(f"{table} needs the package pyarrow: install it, or save the table as CSV") from error
        return parquet.read_table(table).to_pylist()
    text = text_of(table)
    if ending == ".jsonl":
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise RequestError(f"{table} cannot be read as JSON lines ({error}): correct it") from error
        return found if all(isinstance(row, dict) for row in found) else []
    first = text.split("\n", 1)[0]
    between = max(",;\t|", key=first.count)
    rows = list(csv.DictReader(io.StringIO(text), delimiter=between))
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise RequestError(f"{table}:{number} has not as many cells as the first line names columns; correct it")
    return rows


def _paths(root: Path, rows: list[dict[str, Any]], column: str) -> tuple[str, list[Path | None]] | None:
    """The column and the picture of each row, where that is what its cells name: paths from `root` or from one of its
    folders, with their ending or without."""
    bases = [root, *folders_in(root), *(inner for folder in folders_in(root) for inner in folders_in(folder))]
    stems: dict[Path, dict[str, Path]] = {}

    def find(cell: str) -> Path | None:
        for base in bases:
            if (path := base / cell).is_file() and is_picture(path):
                return path
        for base in bases:
            if base not in stems:
                stems[base] = {path.stem: path for path in base.iterdir() if path.is_file() and is_picture(path)}
            if cell in stems[base]:
                return stems[base][cell]
        return None

    cells = [str(row[column]).replace("\\", "/").strip() for row in rows]
    if not any(cells) or find(next(filter(None, cells))) is None:
        return None
    return column, [find(cell) if cell else None for cell in cells]


def _label_column(table: Path, columns: list[str], rows: list[dict[str, Any]]) -> str:
    """The column of the classes: that of a known name, or the only one."""
    named = [column for column in columns if column.lower().strip() in LABELS]
    others = [column for column in columns if column.lower() not in (*OF_SPLIT, "id", "")]
    chosen = named or others
    if len(chosen) != 1:
        raise RequestError(
            f"{table} has the columns {some(columns)}: which of them is the class is not clear; call one of them label"
        )
    return chosen[0]
