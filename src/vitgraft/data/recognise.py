"""Which task a folder is for, and reading it as that."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..common.errors import RequestError, near_misses
from . import boxes, coco, masks
from .dataset import check_data_folder
from .truth import DenseSet, Problem, refuse

TASKS = ("classify", "segment", "detect", "instance")
LAYOUTS = {
    "segment": masks.LAYOUT,
    "detect": f"{coco.LAYOUT}; {boxes.VOC}; {boxes.YOLO}",
    "instance": coco.LAYOUT,
}
# A segmentation that is not empty: run lengths, or a list with something in it.
_SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*(\{|\[\s*[^\s\]])')
_CHUNK = 1 << 22


def recognise(root: str | os.PathLike[str]) -> str:
    """The task of a folder: "segment", "detect", "instance" (where a COCO file has segmentations), else "classify".

    Raises RequestError for a folder that is not there, or that fits both segmentation and objects.
    """
    root = Path(root).expanduser()
    check_data_folder(root)
    files = coco.coco_files(root)
    found = []
    if _is_masks(root):
        found.append("segment")
    if files:
        found.append("instance" if any(map(_has_segmentations, files.values())) else "detect")
    elif _is_voc(root) or _is_yolo(root):
        found.append("detect")
    if len(found) > 1:
        raise RequestError(
            f"the task of {root} was to be found, but it holds masks and annotations of objects; say which with "
            f"--task {' or --task '.join(found)}"
        )
    return found[0] if found else "classify"


def _has_segmentations(path: Path) -> bool:
    """Looks at the text, up to the first one: COCO's own file is too large to be read for this."""
    with open(path, "rb") as file:
        end = b""
        while chunk := file.read(_CHUNK):
            if _SEGMENTATION.search(end + chunk):
                return True
            end = chunk[-64:]
    return False


def _is_masks(root: Path) -> bool:
    return masks.is_ade(root) or all((root / inner).is_dir() for inner in ("images", "masks"))


def _is_voc(root: Path) -> bool:
    return all((root / inner).is_dir() for inner in ("JPEGImages", "Annotations", "ImageSets/Main"))


def _is_yolo(root: Path) -> bool:
    return (root / "images").is_dir() and (root / "labels").is_dir()


def survey(
    root: str | os.PathLike[str], task: str, classes: tuple[str, ...] | None = None
) -> tuple[DenseSet, list[Problem]]:
    """A folder read for segment, detect or instance, and everything that is wrong with it, which is left out.

    With `classes`, those of an adapter that is evaluated, labels are indices into them.
    Raises RequestError where the folder has no layout of the task.
    """
    root = Path(root).expanduser()
    check_data_folder(root)
    problems: list[Problem] = []
    if task not in TASKS[1:]:
        raise RequestError(
            f"task {task!r} was asked for, but there are {', '.join(TASKS)}; take one.{near_misses(task, TASKS)}"
        )
    if task == "segment" and _is_masks(root):
        return masks.read_masks(root, classes, problems), problems
    if task != "segment" and coco.coco_files(root):
        return coco.read_coco(root, task, classes, problems), problems
    if task == "detect" and _is_voc(root):
        return boxes.read_voc(root, classes, problems), problems
    if task == "detect" and _is_yolo(root):
        return boxes.read_yolo(root, classes, problems), problems
    raise RequestError(
        f"{root} was to be read for the task {task}, but it is not arranged so; arrange it as {LAYOUTS[task]}"
    )


def read_dense(
    root: str | os.PathLike[str], task: str, *, classes: tuple[str, ...] | None = None, skip_bad: bool = False
) -> DenseSet:
    """A folder read for segment, detect or instance; no picture is decoded here.

    With `classes`, those of an adapter that is evaluated, labels are indices into them and no training split is needed.
    Raises RequestError for a folder that cannot be read so, and where something in it is wrong: with `skip_bad` that
    is left out, and counted in `layout`.
    """
    data, problems = survey(root, task, classes)
    refuse(Path(root), problems, skip_bad)
    if classes is None:
        _check_training(data)
    if not problems:
        return data
    layout = f"{data.layout}; {len(problems)} problems left out (`vitgraft check {root}` lists them)"
    return DenseSet(data.root, task, data.classes, data.splits, layout)


def _check_training(data: DenseSet) -> None:
    if "train" not in data.splits:
        raise RequestError(
            f"{data.root} was to be trained on, but has only {', '.join(data.splits) or 'no split'}; add the split "
            f"train, as in {LAYOUTS[data.task]}"
        )
    if data.task != "segment" and not any(len(found) for found in data.splits["train"].objects):
        raise RequestError(
            f"{data.root} was to be trained on, but no picture of its split train has an object; annotate some"
        )
