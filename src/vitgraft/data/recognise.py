"""Which task a folder is for, and reading it as that."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..common.errors import RequestError, near_misses
from ..common.settings import DENSE, WHOLE
from . import coco, masks, outside, panoptic, several, voc, yolo
from .dataset import check_data_folder
from .folders import unwrapped
from .truth import DenseSet, Problem, refuse

TASKS = (*WHOLE, *DENSE)
LAYOUTS = {
    "segment": f"{masks.LAYOUT}; or COCO's {panoptic.LAYOUT}",
    "detect": f"{coco.LAYOUT}; {voc.LAYOUT}; {yolo.LAYOUT}",
    "instance": f"{coco.LAYOUT}; or YOLO's polygons",
    "panoptic": f"COCO's {panoptic.LAYOUT}",
}


def recognise(root: str | os.PathLike[str]) -> str:
    """The task of a folder: "segment", "detect", "instance" (where annotations have polygons or run lengths),
    "panoptic", "multilabel" and "regress" (where a table or list gives pictures several labels, or numbers), else
    "classify".

    Raises RequestError for a folder that is not there, or that fits both segmentation and objects.
    """
    root = Path(root).expanduser()
    check_data_folder(root)
    if task := outside.recognise(root):
        return task
    root = unwrapped(root, [])
    found = []
    files = coco.coco_files(root)
    segments = not files and bool(panoptic.panoptic_files(root))
    if segments or masks.has_masks(root):
        found.append("panoptic" if segments else "segment")
    if files:
        found.append("instance" if coco.has_segmentations(files) else "detect")
    elif voc.is_voc(root):
        found.append("detect")
    elif yolo.is_yolo(root):
        found.append("instance" if yolo.has_polygons(root) else "detect")
    if len(found) > 1:
        raise RequestError(
            f"the task of {root} was to be found, but it holds masks and annotations of objects; say which with "
            f"--task {' or --task '.join(found)}"
        )
    return found[0] if found else several.recognise(root) or "classify"


def survey(
    root: str | os.PathLike[str], task: str, classes: tuple[str, ...] | None = None, *, seed: int = 0
) -> tuple[DenseSet, list[Problem]]:
    """A folder read for segment, detect or instance, and everything that is wrong with it, which is left out.

    With `classes`, those of an adapter that is evaluated, labels are indices into them, and nothing to train on is
    needed. seed: of what is held out where the folder has no splits. Raises RequestError where the folder has no layout
    of the task.
    """
    root = Path(root).expanduser()
    check_data_folder(root)
    if task not in DENSE:
        raise RequestError(
            f"task {task!r} was asked for, but there are {', '.join(TASKS)}; take one.{near_misses(task, TASKS)}"
        )
    problems: list[Problem] = []
    data = outside.read(root, task, seed=seed, classes=classes) or _read(root, task, classes, problems, seed)
    if classes is None and not problems and (fault := _nothing_to_train_on(data)):
        problems.append(Problem(data.root, "", f"it was to be trained on, but {fault}", fatal=True))
    return data, problems


def _read(root: Path, task: str, classes: tuple[str, ...] | None, problems: list[Problem], seed: int) -> DenseSet:
    notes: list[str] = []
    root = unwrapped(root, notes)
    given = (classes, problems, notes, seed)
    if (task in ("segment", "panoptic") or not coco.coco_files(root)) and panoptic.panoptic_files(root):
        return panoptic.read_panoptic(root, task, *given)
    if task == "segment" and (masks.has_masks(root) or all((root / inner).is_dir() for inner in ("images", "masks"))):
        return masks.read_masks(root, *given)
    if task in ("detect", "instance") and coco.coco_files(root):
        return coco.read_coco(root, task, *given)
    if task == "detect" and voc.is_voc(root):
        return voc.read_voc(root, *given)
    if task in ("detect", "instance") and yolo.is_yolo(root):
        return yolo.read_yolo(root, task, *given)
    raise RequestError(
        f"{root} was to be read for the task {task}, but it is not arranged so; arrange it as {LAYOUTS[task]}"
    )


def read_dense(
    root: str | os.PathLike[str],
    task: str,
    *,
    classes: tuple[str, ...] | None = None,
    skip_bad: bool = False,
    seed: int = 0,
) -> DenseSet:
    """A folder read for segment, detect or instance; no picture is decoded here.

    With `classes`, those of an adapter that is evaluated, labels are indices into them and no training split is needed.
    Raises RequestError for a folder that cannot be read so, and where something in it is wrong: with `skip_bad` that
    is left out, and counted in `layout`.
    """
    data, problems = survey(root, task, classes, seed=seed)
    refuse(Path(root), problems, skip_bad)
    if not problems:
        return data
    if classes is None and (fault := _nothing_to_train_on(data)):
        raise RequestError(f"{data.root} was to be trained on, but {fault}; {len(problems)} problems were left out")
    layout = f"{data.layout}; {len(problems)} problems left out (`vitgraft check {root}` lists them)"
    return replace(data, layout=layout)


def _nothing_to_train_on(data: DenseSet) -> str:
    """Why a set cannot be trained on; empty if it can."""
    if "train" not in data.splits:
        there = ", ".join(data.splits) or "no split"
        return f"has only {there}; add the split train, as in {LAYOUTS[data.task]}"
    objects = data.splits["train"].objects
    if data.task != "segment" and not any(len(found) for found in objects):
        return "no picture of its split train has an object; annotate some"
    if data.task != "segment" and not any((~found.crowd).any() for found in objects):
        return (
            "every object of its split train is marked as a crowd (iscrowd 1, or difficult), which nothing trains on: "
            "mark single objects with 0"
        )
    val = data.splits.get("val")
    if val is not None and data.task != "segment" and not any((~found.crowd).any() for found in val.objects):
        return "no picture of its split val has an object that counts, so that nothing could be measured; annotate some"
    return ""
