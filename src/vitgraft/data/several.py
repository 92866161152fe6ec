"""Pictures with several labels each, or with a number: tables and lists that say so."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.errors import RequestError, near_misses
from . import outside, tables
from .dataset import DataSet, Split, check_data_folder
from .folders import held_out, of_splits, same_form, some, unwrapped
from .layouts import LISTS, has_classes, parsed_line, read_class_names

PLURAL = ("labels", "tags", "classes", "attributes", "categories", "findings", "targets")
AMOUNTS = ("value", "target", "score", "amount", "number", "y", "label")
BETWEEN = (";", "|", ",")  # labels of a cell
YES_OR_NO = {"0", "1", "0.0", "1.0", "true", "false", "True", "False"}
BEHIND_A_FILE = re.compile(r"\.\w+\"?[\s,;]+([-+\d.eE]+([\s,;]+\d+)*)$")  # numbers at the end of a list's line
LAYOUTS = {
    "multilabel": "a table with a path and either one cell of labels ('cat;dog') or a column of 0 and 1 for each "
    "label, or lists train.txt, val.txt, test.txt of lines 'path label label'",
    "regress": "a table with a path and a column of numbers, or lists train.txt, val.txt, test.txt of lines 'path "
    "number'",
}


def recognise(root: Path) -> str:
    """ "multilabel" where the first table of pictures gives them several labels, "regress" where it gives them numbers
    that are not whole; the same of the first list; else empty."""
    lists = [root / name for name in LISTS if (root / name).is_file()]
    if lists:
        ends = [BEHIND_A_FILE.search(text) for _, text in tables.text_lines(lists[0])]
        labels = [end[1] for end in ends if end]
        if any(len(re.split(r"[\s,;]+", label)) > 1 for label in labels):
            return "multilabel"
        return "regress" if labels and _fractions(labels) else ""
    if has_classes(root) or not (found := tables.named(root)):
        return ""
    cells = _columns(found[0])
    if any(_separated(name, of) for name, of in cells.items()):
        return "multilabel"
    named = {name: of for name, of in cells.items() if name.lower().strip() in tables.LABELS}
    if not named and len(_flags(cells)) > 1:
        return "multilabel"
    return "regress" if sum(_fractions(of) for of in (named or cells).values()) == 1 else ""


def read(
    root: str | os.PathLike[str],
    task: str,
    *,
    seed: int = 0,
    val_share: float = 0.2,
    classes: Sequence[str] | None = None,
) -> DataSet:
    """A folder for one of LAYOUTS. The labels of a picture are a tuple of indices into the classes, or its number; the
    one class of a regression is the name of its column.

    A table or list of a split is named so, or has a column for it; else a share of the pictures is held out by seed.
    With `classes`, those of an adapter that is evaluated, nothing to train on is needed. Raises RequestError.
    """
    root = Path(root).expanduser()
    check_data_folder(root)
    if (other := outside.read(root, task, seed=seed, classes=classes)) is not None:
        return other
    notes: list[str] = []
    lists = of_splits(root, {name: split for name, split in LISTS.items() if (root / name).is_file()})
    if lists:
        given, column, how = _of_lists(root, lists, task), "value", "lists " + ", ".join(lists.values())
    else:
        given, column, how = _of_tables(unwrapped(root, notes), task, notes)

    def hold_out(pool: tables.Pairs) -> dict[str, tables.Pairs]:
        kept = held_out([path for path, _ in pool], val_share, lambda path: path.name, seed)
        return {name: [one for one in pool if (one[0] in kept) == (name == "val")] for name in ("train", "val")}

    found = tables.settled(given, notes, hold_out)
    if [*given] == [""]:
        how += f", {len(found.get('val', []))} of {len(given[''])} pictures held out by seed {seed}"
    splits = {
        name: Split(name, tuple(path for path, _ in pairs), tuple(own for _, own in pairs))
        for name, pairs in found.items()
    }
    if classes is None and "train" not in splits:
        raise RequestError(f"{root} was to be trained on, but has only {' and '.join(splits)}; add training pictures")
    if task == "regress":
        known, labels = tuple(classes or (column,)), f"numbers, {column}"
        if classes is None and len(set(splits["train"].labels)) < 2:
            raise RequestError(
                f"{root} gives every training picture the same number, of which nothing can be learned; add others"
            )
    else:
        named = classes or (read_class_names(root / "classes.txt") if lists else None)
        known, splits = _numbered(root, splits, named)
        labels = f"{len(known)} labels"
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    return DataSet(root, known, splits, f"{how}; {labels}; pictures: {counts}", tuple(notes))


def _numbered(
    root: Path, splits: dict[str, Split], named: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """All labels, and the splits with indices into them. named: where they are known; then labels may be written as
    indices too."""
    written = {label for split in splits.values() for own in split.labels for label in own}
    known = tuple(named or sorted(written, key=tables.numbers_by_value))
    index = {name: k for k, name in enumerate(known)}
    if named and not written <= index.keys() and all(label.isdecimal() for label in written):
        index = {str(k): k for k in range(len(known))}
    return known, {
        name: replace(split, labels=tuple(_indices(root, own, index) for own in split.labels))
        for name, split in splits.items()
    }


def _indices(root: Path, own: tuple[str, ...], index: dict[str, int]) -> tuple[int, ...]:
    for name in own:
        if name not in index:
            raise RequestError(
                f"{root} has the label {name!r}, but those known are {some(index)}; correct it, or leave it out."
                f"{near_misses(name, index)}"
            )
    return tuple(sorted({index[name] for name in own}))


# What the cells of a table hold


def _columns(table: tables.Named) -> dict[str, list[Any]]:
    return {name: [row[name] for _, row, _ in table.rows] for name in table.others if name}


def _flags(cells: dict[str, list[Any]]) -> list[str]:
    """The columns of 0 and 1."""
    return [name for name, of in cells.items() if {str(cell).strip() for cell in of} <= YES_OR_NO]


def _separated(column: str, cells: list[Any]) -> str:
    """What stands between the labels in the cells of a column; "list" where they are lists; empty where each is one.

    A class's own name may hold a comma: so parts have to come back in other cells, unless the column's name is plural.
    """
    if any(isinstance(cell, list) for cell in cells):
        return "list"
    texts = {str(cell).strip() for cell in cells}
    for between in BETWEEN:
        parts = {text: [part.strip() for part in text.split(between) if part.strip()] for text in texts}
        several = {text: of for text, of in parts.items() if len(of) > 1}
        alone = {part for of in parts.values() for part in of}
        if several and not _numbers(alone) and (column.lower().strip() in PLURAL or len(alone) < len(texts)):
            return between
    return ""


def _numbers(texts: Sequence[Any] | set[str]) -> bool:
    return all(_as_number(text) is not None for text in texts)


def _fractions(cells: Sequence[Any]) -> bool:
    """Whether all are numbers, of which some are not whole."""
    found = [_as_number(cell) for cell in cells]
    return all(n is not None for n in found) and any(n != int(n) for n in found if n is not None)


def _as_number(cell: Any) -> float | None:
    try:
        found = float(str(cell).strip())
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _labels_of(given: list[tables.Named], notes: list[str]) -> Callable[[int, dict[str, Any]], tuple[str, ...]]:
    """How a row tells its labels, in all tables alike: in a cell of several, or by columns of 0 and 1."""
    cells: dict[str, list[Any]] = {}
    for table in given:
        for name, of in _columns(table).items():
            cells.setdefault(name, []).extend(of)
    column = next((name for name, of in cells.items() if _separated(name, of)), "")
    if column:
        between = _separated(column, cells[column])
        for table in given:
            tables.note_unread(table, [column], notes)

        def of_cell(number: int, row: dict[str, Any]) -> tuple[str, ...]:
            parts = row.get(column) if between == "list" else str(row.get(column) or "").split(between)
            return tuple(dict.fromkeys(name for part in parts or () if (name := same_form(str(part).strip()))))

        return of_cell
    flags = _flags(cells)
    if not flags:
        raise RequestError(
            f"{given[0].file} has the columns {some(given[0].others)}, none of which holds several labels; give "
            f"{LAYOUTS['multilabel']}"
        )
    for table in given:
        tables.note_unread(table, flags, notes)

    def of_flags(number: int, row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(same_form(name) for name in flags if str(row.get(name)).strip().lower() in ("1", "1.0", "true"))

    return of_flags


def _amount(table: tables.Named, task: str) -> str:
    """The column of the numbers, where those are wanted."""
    if task != "regress":
        return ""
    found = [name for name, of in _columns(table).items() if _numbers(of) and name.lower() != "id"]
    chosen = [name for name in found if name.lower().strip() in AMOUNTS] or found
    if len(chosen) != 1:
        there = f"the numbers are in {some(found)}" if found else "none holds numbers alone"
        raise RequestError(
            f"{table.file} has the columns {some(table.others)}: {there}; call the one that is meant value"
        )
    return chosen[0]


def _number_of(table: tables.Named, notes: list[str]) -> Callable[[int, dict[str, Any]], float]:
    column = _amount(table, "regress")
    tables.note_unread(table, [column], notes)
    return lambda number, row: float(str(row[column]).strip())


def _of_tables(root: Path, task: str, notes: list[str]) -> tuple[dict[str, list[tuple[Path, Any]]], str, str]:
    """The labels or number of each picture by split, the column of the numbers, and the layout in words."""
    found = tables.named(root)
    if not found:
        raise RequestError(f"{root} was to be read for the task {task}, but holds no such table; give {LAYOUTS[task]}")
    if task == "multilabel":
        of_row = _labels_of(found, notes)
        splits: dict[str, list[tuple[Path, Any]]] = tables.by_split(found, lambda table: of_row)
    else:
        splits = tables.by_split(found, lambda table: _number_of(table, notes))
    return splits, _amount(found[0], task), "table " + ", ".join(table.file.name for table in found)


def _of_lists(root: Path, lists: dict[str, str], task: str) -> dict[str, list[tuple[Path, Any]]]:
    """lists: split -> name."""
    splits: dict[str, list[tuple[Path, Any]]] = {}
    for split, name in lists.items():
        for number, text in tables.text_lines(root / name):
            line = parsed_line(root, text, f"{root / name}:{number}")
            if task == "multilabel":
                splits.setdefault(split, []).append((line.path, tuple(re.split(r"[\s,;]+", line.label))))
            elif (value := _as_number(line.label)) is not None:
                splits.setdefault(split, []).append((line.path, value))
            else:
                raise RequestError(f"{line.where} has {line.label!r}, but a number is wanted; correct it")
    return splits
