"""The reader of Pascal VOC's XML files: with its lists, beside the pictures, or in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from .folders import SPLITS, files_in, is_picture, same_form, some, split_of
from .layouts import read_class_names
from .objects import Entry, Fault, Row, Tally, fitted, names_in, picture_size, truth_beside
from .tables import text_lines
from .truth import DenseSet, Problem, gathered

LAYOUT = "JPEGImages/ with Annotations/STEM.xml and ImageSets/Main/SPLIT.txt, or STEM.xml beside the pictures"
FLAGS = ("-1", "0", "1")  # behind a stem in VOC's lists of one class
UNLABELLED = "# pictures without an XML file were left out"


def is_voc(root: Path) -> bool:
    """Whether XML files of VOC's form lie beside the pictures, or in a folder named for them."""
    found = (xml for pairs in truth_beside(root, ".xml").values() for _, xml in pairs if xml)
    return _is_lists(root) or any(_is_annotation(xml) for xml, _ in zip(found, range(3), strict=False))


def _is_lists(root: Path) -> bool:
    return all((root / inner).is_dir() for inner in ("JPEGImages", "Annotations", "ImageSets/Main"))


def _is_annotation(file: Path) -> bool:
    try:
        return _parsed(file).tag == "annotation"
    except Fault:
        return False


def _parsed(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except Exception as error:  # an unknown encoding is a LookupError, a wrong one a UnicodeError
        raise Fault(f"it cannot be read as XML ({error}); add or correct it") from error


def read_voc(
    root: Path, classes: tuple[str, ...] | None, problems: list[Problem], notes: list[str], seed: int = 0
) -> DenseSet:
    """Reads `root` in Pascal VOC's form; what is wrong is added to `problems` and left out, what was guessed to
    `notes`.

    The classes are `classes`, or those of classes.txt, or every name that an object has, sorted. Objects that are
    marked difficult become crowds: VOC neither trains on them nor counts them.
    """
    tally = Tally()
    pairs = _listed(root, problems, notes) if _is_lists(root) else truth_beside(root, ".xml")
    found: dict[str | None, list[Entry]] = {}
    for split, files in pairs.items():
        for picture, file in files:
            if file is None:
                tally[UNLABELLED] += 1
            else:
                found.setdefault(split, []).append(_entry(picture, file, tally))
    names = names_in(entry for entries in found.values() for entry in entries)
    known = classes or read_class_names(root / "classes.txt") or tuple(names)
    _spelt_alike(names, notes)
    return gathered(root, "detect", known, found, "VOC annotations", problems, notes, tally, seed)


def _listed(root: Path, problems: list[Problem], notes: list[str]) -> dict[str | None, list[tuple[Path, Path | None]]]:
    """The pictures of each list and their annotations."""
    lists = root / "ImageSets" / "Main"
    stems = {item.stem: item for item in sorted(lists.glob("*.txt"))}
    of_split: dict[str, Path] = {}
    for name, item in stems.items():
        if meant := split_of(name):
            of_split.setdefault(meant, item)
    if "train" not in of_split and "trainval" in stems:
        of_split["train"] = stems["trainval"]
    pictures = {same_form(path.stem): path for path in files_in(root / "JPEGImages") if is_picture(path)}
    found: dict[str | None, list[tuple[Path, Path | None]]] = {}
    where: dict[str, str] = {}
    for split, file in ((split, of_split[split]) for split in SPLITS if split in of_split):
        for number, line in text_lines(file):
            stem = _stem(same_form(line), pictures)
            if stem is None:
                sentence = f"there is no picture {line} in {root / 'JPEGImages'}; add it, or remove the line"
                problems.append(Problem(file, f"line {number}", sentence))
            elif stem in where:
                sentence = f"the picture {stem} stands in {where[stem]} too; name it once"
                problems.append(Problem(file, f"line {number}", sentence))
            else:
                where[stem] = f"{file.name}:{number}"
                annotation = root / "Annotations" / f"{pictures[stem].stem}.xml"
                found.setdefault(split, []).append((pictures[stem], annotation))
    return found


def _stem(line: str, pictures: Iterable[str]) -> str | None:
    """The picture that a line names: as a whole, with its ending, or before one of VOC's flags."""
    words = line.rsplit(None, 1)
    flagged = words[0] if len(words) == 2 and words[1] in FLAGS else line
    return next((stem for stem in (line, Path(line).stem, flagged, Path(flagged).stem) if stem in pictures), None)


def _entry(picture: Path, file: Path, tally: Tally) -> Entry:
    try:
        tree = _parsed(file)
        entry = Entry(picture, file, _size(tree) or picture_size(picture))
    except Fault as fault:
        return Entry(picture, file, (0, 0), faults=[("", str(fault))])
    for index, element in enumerate(tree.iter("object"), 1):
        try:
            entry.rows.append((f"object {index}", _row(element, entry.size, tally)))
        except Fault as fault:
            entry.faults.append((f"object {index}", str(fault)))
    return entry


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """(h, w) as written, or None where it isn't: some tools leave it out or write 0."""
    h, w = ((tree.findtext(f"size/{side}") or "").strip() for side in ("height", "width"))
    return (int(h), int(w)) if h.isdecimal() and w.isdecimal() and int(h) and int(w) else None


def _row(element: ElementTree.Element, size: tuple[int, int], tally: Tally) -> Row:
    name = same_form((element.findtext("name") or "").strip())
    corners = [element.findtext(f"bndbox/{corner}", "") for corner in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = map(float, corners)
    except ValueError as error:
        raise Fault(f"its corners are {corners}, but a bndbox has four numbers; correct or remove it") from error
    if not name:
        raise Fault("it has no name, but an object is of a class; add its name, or remove it")
    # VOC counts pixels from 1, and the last one belongs to the box.
    box = fitted((x0 - 1, y0 - 1, x1, y1), size, tally)
    return Row(name, box, crowd=(element.findtext("difficult") or "0").strip() == "1")


def _spelt_alike(names: list[str], notes: list[str]) -> None:
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(name.casefold(), name)) != name:
            notes.append(f"the classes {some([repr(other), repr(name)])} differ in capital letters alone")
