"""The reader of COCO's panoptic form: for each picture a PNG, its colours segments, and a JSON that says of what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..common.settings import MASKED
from .coco import (
    KEYS,
    LARGE,
    Content,
    File,
    Index,
    in_order,
    is_panoptic,
    json_files,
    key_of,
    load,
    parsed,
    pictures_of,
    place_of,
    split_named,
)
from .folders import SPLITS, some
from .mask_values import checked_names, segment_ids
from .objects import Entry, Fault, Row, Tally, check_class, fitted
from .pictures import reason_of
from .segmentations import encode
from .truth import IGNORED, Coding, DenseSet, DenseSplit, Problem, counted, gathered

LAYOUT = "panoptic_SPLIT.json beside the folder panoptic_SPLIT/ of its PNGs"


def panoptic_files(root: Path) -> list[File]:
    """The annotation files of that form, in the first folder that has some; [] where there are none."""
    for _, files in json_files(root):
        if found := [File(file, *split_named(file)) for file in files if _is_one(file)]:
            return in_order(found)
    return []


def _is_one(file: Path) -> bool:
    if file.stat().st_size > LARGE:
        return file.name.startswith("panoptic_")
    try:
        content = parsed(file)
    except Fault:
        return False
    return is_panoptic(content) and all(isinstance(content.get(key), list) for key in KEYS)


class _Picture(NamedTuple):
    """A picture, the PNG of its segments, and what these are: the class of each, its place in the file, its row."""

    entry: Entry
    png: Path
    segments: dict[int, tuple[str, str, Mapping[str, Any]]]


def read_panoptic(
    root: Path, task: str, classes: tuple[str, ...] | None, problems: list[Problem], notes: list[str], seed: int = 0
) -> DenseSet:
    """Reads `root` for panoptic and segment, where all categories are classes, or for detect and instance, where things
    are.

    What is wrong is added to `problems` and left out, what was guessed to `notes`.
    """
    files, index, tally = panoptic_files(root), Index(root), Tally()
    found: dict[str | None, list[_Picture]] = {}
    names: dict[str, bool] = {}  # whether it is one of things
    for file in files:
        try:
            content = load(file)
        except Fault as fault:
            problems.append(Problem(file.path, "", str(fault), fatal=True))
            continue
        names = {**{name: name in content.things for name in content.names.values()}, **names}
        found.setdefault(file.split, []).extend(_segmented(index, content, problems))
    if len(found) < len(files):
        sentence = f"several of {some(f.path.name for f in files)} are of one split; keep one file for each"
        problems.append(Problem(root, "", sentence, fatal=True))
    how = "COCO panoptic annotations " + ", ".join(file.path.name for file in files)
    if task == "segment":
        return _masks(root, checked_names(root, tuple(names), classes, problems), found, how, problems, notes)
    things = tuple(name for name, is_thing in names.items() if is_thing)
    known = classes or (tuple(names) if task == "panoptic" else things)
    entries = {
        split: [_entry(picture, known, names, task, tally) for picture in pictures] for split, pictures in found.items()
    }
    data = gathered(root, task, known, entries, how, problems, notes, tally, seed)
    if task != "panoptic":
        return data
    numbers = tuple(k for k, name in enumerate(known) if name in things)
    splits = {name: replace(split, things=numbers) for name, split in data.splits.items()}
    return replace(data, splits=splits, things=tuple(known[k] for k in numbers))


def _segmented(index: Index, content: Content, problems: list[Problem]) -> Iterator[_Picture]:
    entries = pictures_of(index, content, problems)
    file = content.file.path
    bases = [folder for folder in (file.with_suffix(""), file.parent, *index.bases(content.file)) if folder.is_dir()]
    done: set[str] = set()
    for number, row in enumerate(content.annotations, 1):
        key, place = key_of(row.get("image_id")), place_of("annotation", row, number)
        if key not in entries:
            continue  # its picture is a problem already, or in no list
        try:
            png = index.find(str(row.get("file_name")), bases)
            if png is None or png == entries[key].path:
                raise Fault(
                    f"its PNG {row.get('file_name')!r} is in none of {some(map(str, bases))}; add or correct it"
                )
            if key in done:
                raise Fault("its image has another annotation already; keep one")
            done.add(key)
            yield _Picture(entries[key], png, _segments(row, content))
        except Fault as fault:
            problems.append(Problem(file, place, str(fault)))


def _segments(row: Mapping[str, Any], content: Content) -> dict[int, tuple[str, str, Mapping[str, Any]]]:
    found: dict[int, tuple[str, str, Mapping[str, Any]]] = {}
    told = row.get("segments_info")
    if not isinstance(told, list) or not all(isinstance(each, dict) for each in told):
        raise Fault("its segments_info is no list of segments; export it again")
    for each in told:
        if type(each.get("id")) is not int or key_of(each.get("category_id")) not in content.names:
            raise Fault(
                f"a segment has the id {each.get('id')!r} and the category {each.get('category_id')!r}, but the "
                f"categories are {some(content.names)}; correct or remove it"
            )
        found[each["id"]] = (content.names[key_of(each["category_id"])], f"segment {each['id']}", each)
    return found


def _masks(
    root: Path,
    known: tuple[str, ...],
    found: Mapping[str | None, list[_Picture]],
    how: str,
    problems: list[Problem],
    notes: list[str],
) -> DenseSet:
    """For segmentation: the PNGs are the masks; what each segment is differs from one to the next."""
    label_of = {name: label for label, name in enumerate(known)}
    splits: dict[str, DenseSplit] = {}
    for split in SPLITS:
        table: dict[str, dict[int, int]] = {}
        kept = []
        for picture in found.get(split, ()):
            names = {name for name, _, _ in picture.segments.values()}
            if stray := sorted(names - set(known)):
                sentence = f"it has segments of {some(stray)}, but the classes are {some(known)}; rename or remove them"
                problems.append(Problem(picture.png, "", sentence))
                continue
            table[str(picture.png)] = {number: label_of[name] for number, (name, _, _) in picture.segments.items()}
            kept.append(picture)
        if kept:
            paths, pngs = tuple(p.entry.path for p in kept), tuple(p.png for p in kept)
            splits[split] = DenseSplit(split, paths, pngs, coding=Coding(segments=table))
    if found.get(None):
        notes.append(f"{len(found[None])} pictures are in no split by name, and were not read")
    if any(picture.segments for pictures in found.values() for picture in pictures):
        notes.append(f"pixels of no segment are {IGNORED}, which is ignored")
    return DenseSet(root, "segment", known, splits, f"{how}; classes: {len(known)}; {counted(splits)}", tuple(notes))


def _entry(picture: _Picture, classes: tuple[str, ...], names: Mapping[str, bool], task: str, tally: Tally) -> Entry:
    """For objects: the segments of things, of all for panoptic, with the masks that the PNG has of them."""
    entry = picture.entry
    entry.file = picture.png
    try:
        with Image.open(picture.png) as image:
            ids = segment_ids(image)
    except Exception as error:  # decoders meet broken bytes with nearly any error
        entry.faults.append(("", f"it cannot be read as a PNG of segments ({reason_of(picture.png, error)})"))
        return entry
    if ids.shape != entry.size:
        said = f"it has {ids.shape[1]} x {ids.shape[0]} pixels, but its picture {entry.size[1]} x {entry.size[0]}"
        entry.faults.append(("", f"{said}; make them the same"))
        return entry
    for number, (name, place, told) in picture.segments.items():
        if task != "panoptic" and not names[name]:
            continue
        try:
            check_class(name, classes)
            own = ids == number
            if not own.any():
                raise Fault("no pixel of the PNG is of it; correct or remove it")
            rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            crowd = bool(told.get("iscrowd", 0))
            mask = encode(own) if task in MASKED else None
            entry.rows.append((place, Row(name, fitted(box, entry.size, tally), crowd, float(own.sum()), mask)))
        except Fault as fault:
            entry.faults.append((place, str(fault)))
    return entry
