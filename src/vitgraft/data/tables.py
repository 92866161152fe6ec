"""Text files with a line or row for each picture or class: CSV, TSV, JSON lines, Parquet; lines of other files."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..common.errors import RequestError
from .folders import SPLITS, folders_in, held_out_by_class, is_picture, same_form, some, split_of

Value = TypeVar("Value")
Pairs = list[tuple[Path, Any]]  # pictures, each with what is said of it

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


class Named(NamedTuple):
    """A table whose rows name pictures: the column of these, of the split if there is one, and all others; and of each
    row its number, the row and the picture."""

    file: Path
    column: str
    by_split: str | None
    others: list[str]
    rows: list[tuple[int, dict[str, Any], Path]]


def named(root: Path) -> list[Named]:
    """The tables in `root` that name pictures; RequestError where a row names one that is not there."""
    found: list[Named] = []
    for table in tables_in(root):
        rows = _rows(table)
        columns = list(rows[0]) if rows else []
        where = next((there for column in columns if (there := _paths(root, rows, column))), None)
        if where is None:
            continue
        column, paths = where
        by_split = next((name for name in columns if name.lower() in OF_SPLIT), None)
        given = []
        for number, (row, path) in enumerate(zip(rows, paths, strict=True), 2):
            if path is None:
                raise RequestError(
                    f"{table}:{number} names the picture {row[column]!r}, but there is no such file in {root}; correct "
                    "the path, or remove the row"
                )
            given.append((number, row, path))
        found.append(
            Named(table, column, by_split, [name for name in columns if name not in (column, by_split)], given)
        )
    return found


def by_split(
    tables: Iterable[Named], value: Callable[[Named], Callable[[int, dict[str, Any]], Value]]
) -> dict[str, list[tuple[Path, Value]]]:
    """What `value` gives for a table's rows, by split; under "" what is of no split by its table's name or column."""
    splits: dict[str, list[tuple[Path, Value]]] = {}
    for table in tables:
        of_row = value(table)
        for number, row, path in table.rows:
            split = split_of(str(row[table.by_split])) if table.by_split else split_of(table.file.stem)
            splits.setdefault(split or "", []).append((path, of_row(number, row)))
    return splits


def read(
    root: Path, seed: int, val_share: float, notes: list[str]
) -> tuple[dict[str, list[tuple[Path, str]]], tuple[str, ...], str] | None:
    """The splits, classes and layout of pictures that tables in `root` label; None where no table names pictures.

    A table of a split is named so (train.csv); of another one without a column "split" a share is held out.
    """
    if not (found := named(root)):
        return None
    labels = {table.file: _label_column(table.file, table.others, [row for _, row, _ in table.rows]) for table in found}

    def class_of(table: Named) -> Callable[[int, dict[str, Any]], str]:
        label = labels[table.file]

        def of_row(number: int, row: dict[str, Any]) -> str:
            name = same_form(str(row[label]).strip())
            if not name:
                raise RequestError(f"{table.file}:{number} has no {label!r}, but each picture has a class; add it")
            return name

        return of_row

    given = by_split(found, class_of)
    for table in found:
        note_unread(table, [labels[table.file]], notes)
    how = f"table {', '.join(f'{t.file.name} (columns {t.column} and {labels[t.file]})' for t in found)}"
    splits = settled(given, notes, lambda pool: held_out_by_class(pool, val_share, lambda path: path.name, seed))
    if [*given] == [""] and "val" in splits:
        how += f", {val_share:.0%} of each class held out by seed {seed}"
    classes = sorted({name for pairs in splits.values() for _, name in pairs}, key=numbers_by_value)
    if len(classes) > 2 and all(name.isdecimal() for name in classes):
        notes.append("the labels are whole numbers and were read as classes: --task regress takes them as amounts")
    return splits, tuple(classes), how


def settled(
    given: Mapping[str, Pairs], notes: list[str], hold_out: Callable[[Pairs], Mapping[str, Pairs]]
) -> dict[str, Pairs]:
    """The splits in their order. What is of none belongs to train; a share of it is held out where there is nothing
    else."""
    splits, pool = dict(given), given.get("", [])
    if pool and len(splits) > 1:
        notes.append(f"{len(pool)} rows of no split were added to train")
        splits["train"] = splits.get("train", []) + pool
    elif pool:
        splits = dict(hold_out(pool))
    return {name: splits[name] for name in SPLITS if splits.get(name)}


def note_unread(table: Named, columns: Iterable[str], notes: list[str]) -> None:
    unread = [name for name in table.others if name not in set(columns)]
    if unread:
        notes.append(f"{table.file.name}: the columns {some(unread)} were not read")


def numbers_by_value(name: str) -> tuple[bool, int, str]:
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _rows(table: Path) -> list[dict[str, Any]]:
    """A table's rows by column; RequestError where it cannot be read."""
    ending = table.suffix.lower()
    if ending == ".parquet":
        try:
            import pyarrow.parquet as parquet
        except ModuleNotFoundError as error:
            raise RequestError(f"{table} needs the package pyarrow: install it, or save the table as CSV") from error
        try:
            return parquet.read_table(table).to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's own are of these
            said = str(error).rstrip(".")
            raise RequestError(
                f"{table} cannot be read as Parquet ({said}): write it again, or save it as CSV"
            ) from error
    text = text_of(table)
    if ending == ".jsonl":
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise RequestError(f"{table} cannot be read as JSON lines ({error}): correct it") from error
        return found if all(isinstance(row, dict) for row in found) else []
    first = text.split("\n", 1)[0]
    between = max(",;\t|", key=first.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=between)
    try:
        rows = list(reader)
    except csv.Error as error:  # such as a cell without an end, behind a quotation mark that stands alone
        raise RequestError(
            f"{table}:{reader.line_num} cannot be read as a table ({error}): correct it, above all quotation marks "
            "that are opened and not closed"
        ) from error
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
