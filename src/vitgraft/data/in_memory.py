"""Pictures and data sets that lie in memory: a `torch.utils.data.Dataset`, a Hugging Face `datasets.Dataset`, or pairs
of picture and truth, written once as a folder that is read like any other."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..common.errors import RequestError, WorkError
from ..common.files import write_json
from .folders import some, split_of
from .pictures import to_rgb
from .segmentations import encode

PICTURES = ("image", "img", "picture", "pixel_values", "pixels", "photo", "input")  # columns
TRUTHS = ("label", "labels", "class", "target", "targets", "fine_label", "mask", "annotation", "value", "y")
FORMS = (
    "pairs of a picture and a class (number or name), several classes, a number, a mask [H, W], or a dict of boxes and "
    "labels as torchvision has them; of each split one, as {'train': ..., 'val': ...}, or one alone"
)
TASK = ".task.json"  # in the folder: what the data set is for
TASKS = {"class": "classify", "labels": "multilabel", "value": "regress", "mask": "segment"}


# Pictures


def encoded(given: Any) -> bytes:
    """A picture as the content of a file, without loss: bytes or the path of one, a PIL picture, an array uint8 [H, W],
    [H, W, 3] or [H, W, 4], a tensor [C, H, W] or [H, W] of uint8 or of floats 0..1. RequestError for anything else."""
    if isinstance(given, bytes):
        return given
    if isinstance(given, (str, Path)):
        try:
            return Path(given).read_bytes()
        except OSError as error:
            raise RequestError(f"There is no picture {given}: name files that exist.") from error
    if isinstance(given, (np.ndarray, torch.Tensor)):
        given = _of_array(given)
    if not isinstance(given, Image.Image):
        raise RequestError(f"A {type(given).__name__} is no picture: give a PIL picture, an array or a tensor.")
    kept = io.BytesIO()
    whole = given if given.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else to_rgb(given)
    whole.save(kept, "PNG", compress_level=1)
    return kept.getvalue()


def _of_array(given: Any) -> Image.Image:
    """An array [H, W] or [H, W, C], or a tensor [C, H, W], as a picture."""
    array = given
    if isinstance(given, torch.Tensor):
        if given.ndim == 3 and given.shape[0] not in (1, 3, 4):
            raise RequestError(f"A tensor of the shape {list(given.shape)} is no picture: give [3, H, W].")
        array = given.detach().cpu()
        if array.is_floating_point():
            if not 0 <= float(array.min()) <= float(array.max()) <= 1:
                raise RequestError(
                    "A tensor of floats was given, but not all lie in 0..1: give it before it is normalised, as uint8 "
                    "or as floats 0..1."
                )
            array = (array * 255).round().to(torch.uint8)
        array = array.numpy().transpose(1, 2, 0) if array.ndim == 3 else array.numpy()
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise RequestError(
            f"An array {array.dtype} of the shape {list(array.shape)} is no picture: give uint8 [H, W, 3] or [H, W]."
        )
    return Image.fromarray(np.ascontiguousarray(array))


# Data sets


class Truth(NamedTuple):
    """What is said of a picture: its kind, and the class's name, names, the number, the mask uint8 or uint16 [H, W], or
    {"boxes": x0 y0 x1 y1 in pixels, "labels": names, "masks": [n, H, W] or None}."""

    kind: str
    value: Any


def as_folder(
    data: Any, folder: Path, *, progress: Callable[[int, int], None] = lambda done, pictures: None, alone: str = ""
) -> str:
    """Writes a data set as `folder`, whole or not at all, in the place of what was there; gives its task.

    data: one of FORMS. A picture is taken once, as the data set gives it: random changes belong into --augmentation.
    alone: the split that a data set alone is; none: a fifth of it is held out later. Raises RequestError.
    """
    splits = dict(data) if isinstance(data, Mapping) else {alone: data}
    for name in splits:
        if name and (not isinstance(name, str) or split_of(name) is None):
            raise RequestError(f"{name!r} is no split: give train, val and test, of which the last two may be missing.")
    made = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        kinds = {_write(name, part, made, progress) for name, part in splits.items()}
        if len(kinds) > 1:
            raise RequestError(f"The splits are of different kinds ({some(sorted(kinds))}): give the same in all.")
        (task,) = kinds
        write_json(made / TASK, {"task": task})
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    except OSError as error:
        raise WorkError(f"{folder} could not be written ({error.strerror or error}): make room.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return task


def _write(split: str, part: Any, folder: Path, progress: Callable[[int, int], None]) -> str:
    """One split; gives the task that it is for."""
    part, names = _undecoded(part), _names(part)
    total = len(part) if hasattr(part, "__len__") else 0
    pictures = folder / "images" / split
    pictures.mkdir(parents=True)
    writer: _Writer | None = None
    kind, k = "", -1
    for k, (picture, given) in enumerate(_pairs(part)):
        try:
            content = encoded(picture)
            truth = _truth(given, names)
        except RequestError as error:
            raise RequestError(f"Item {k} of {split or 'the data set'}: {error}") from error
        if kind not in ("", truth.kind):
            raise RequestError(
                f"Item {k} of {split or 'the data set'} has a {truth.kind}, but those before it have a {kind}: give "
                "the same in all."
            )
        kind = truth.kind
        path = pictures / f"{k:06}.{_ending(content)}"
        path.write_bytes(content)
        writer = writer or WRITERS[kind](folder, split, names)
        writer.add(path, truth.value)
        progress(k + 1, total or k + 1)
    if writer is None:
        raise RequestError(f"{split or 'The data set'} holds no picture: give {FORMS}.")
    return writer.end()


def _undecoded(part: Any) -> Any:
    """A Hugging Face data set whose pictures come as the bytes that they are stored as."""
    features = getattr(part, "features", None)
    if isinstance(features, Mapping) and hasattr(part, "cast_column"):
        for name in [name for name, kind in features.items() if type(kind).__name__ == "Image"]:
            part = part.cast_column(name, type(features[name])(decode=False))
    return part


def _names(part: Any) -> dict[int, str] | None:
    """The names of the classes by number, where the data set says them."""
    features = getattr(part, "features", None)
    if isinstance(features, Mapping):
        for kind in features.values():
            named = getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)
            if named:
                return dict(enumerate(map(str, named)))
    named = getattr(part, "classes", None)
    if isinstance(named, (list, tuple)):
        return dict(enumerate(map(str, named)))
    return _names(part.dataset) if hasattr(part, "dataset") else None  # a torch Subset


def _pairs(part: Any) -> Iterator[tuple[Any, Any]]:
    """Picture and truth of each item."""
    if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        items: Iterable[Any] = (part[k] for k in range(len(part)))  # a torch Dataset need not end by itself
    elif isinstance(part, Iterable):
        items = part
    else:
        raise RequestError(f"A {type(part).__name__} is no data set: give a folder, or {FORMS}.")
    picture = truth = ""
    for k, item in enumerate(items):
        if isinstance(item, Mapping):
            if not k:
                picture, truth = _columns(list(item))
            yield _picture(item[picture]), item[truth]
        elif isinstance(item, (tuple, list)) and len(item) >= 2:
            yield _picture(item[0]), item[1]
        else:
            raise RequestError(f"Item {k} is a {type(item).__name__}, but a picture with its truth is wanted: {FORMS}.")


def _columns(names: list[str]) -> tuple[str, str]:
    """The columns of the picture and of the truth."""
    pictures = [name for name in names if name.lower() in PICTURES] or names[:1]
    others = [name for name in names if name not in pictures]
    truths = [name for name in others if name.lower() in TRUTHS] or others
    if len(pictures) != 1 or len(truths) != 1:
        raise RequestError(
            f"The data set has the columns {some(names)}: keep the picture's and one of the truth, called image and "
            "label."
        )
    return pictures[0], truths[0]


def _picture(given: Any) -> Any:
    """A picture that a Hugging Face data set has not decoded as its bytes or path; any other as it is."""
    if isinstance(given, Mapping) and {"bytes", "path"} >= given.keys():
        return given.get("bytes") or given.get("path")
    return given


def _truth(given: Any, names: dict[int, str] | None) -> Truth:
    """What is said of a picture."""
    given = _picture(given)
    if isinstance(given, Mapping):
        return Truth("objects", _objects(given, names))
    if isinstance(given, bytes):  # a mask of a Hugging Face data set
        given = Image.open(io.BytesIO(given))
    if isinstance(given, (Image.Image, np.ndarray, torch.Tensor)):
        array = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
        if array.ndim == 3 and array.shape[0] == 1:
            array = array[0]
        if array.ndim == 2:
            return Truth("mask", _mask(array))
        if array.ndim == 1 and array.dtype.kind in "fb" and len(array) > 1:  # one number for each class
            return Truth("labels", [_name(k, names) for k in np.flatnonzero(array).tolist()])
        if array.size == 1 and array.ndim <= 1:
            given = array.reshape(()).item()
        elif array.ndim == 1:
            given = array.tolist()
        else:
            raise RequestError(f"an array of the shape {list(array.shape)} says nothing of a picture; give {FORMS}.")
    if isinstance(given, (list, tuple, set, frozenset)):
        return Truth("labels", [_name(each, names) for each in given])
    if isinstance(given, (float, np.floating)):
        return Truth("value", float(given))
    if isinstance(given, (int, np.integer, str)):
        return Truth("class", _name(given, names))
    raise RequestError(f"a {type(given).__name__} says nothing of a picture; give {FORMS}.")


def _name(label: Any, names: dict[int, str] | None) -> str:
    if isinstance(label, str):
        return label
    if names is None:
        return str(int(label))
    if int(label) not in names:
        raise RequestError(f"the label {label} is none of the classes, which are 0 to {len(names) - 1}; correct it.")
    return names[int(label)]


def _mask(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iub" or array.min() < 0 or array.max() > 65535:
        raise RequestError(
            f"a mask of {array.dtype} from {array.min()} to {array.max()} has no classes; give whole numbers from 0."
        )
    return array.astype(np.uint8 if array.max() < 256 else np.uint16)


def _objects(given: Mapping[str, Any], names: dict[int, str] | None) -> dict[str, Any]:
    if not {"boxes", "labels"} <= given.keys():
        raise RequestError(
            f"a dict of {some(given)} says nothing of a picture; give boxes (x0, y0, x1, y1 in pixels) and labels."
        )
    masks = given.get("masks")
    return {
        "boxes": np.asarray(given["boxes"], dtype=np.float64).reshape(-1, 4).tolist(),
        "labels": [_name(label, names) for label in np.asarray(given["labels"]).tolist()],
        "masks": None if masks is None else np.asarray(masks),
    }


def _ending(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return (image.format or "png").lower()
    except Exception:  # what it cannot be decoded for is said where all are
        return "png"


# Folders


class _Writer:
    """The truth of one split in a form that the readers know."""

    def __init__(self, folder: Path, split: str, names: dict[int, str] | None) -> None:
        self.folder, self.split, self.names = folder, split, names

    def add(self, path: Path, value: Any) -> None:
        raise NotImplementedError

    def end(self) -> str:
        """Gives the task."""
        raise NotImplementedError


class _Table(_Writer):
    kind = ""

    def __init__(self, folder: Path, split: str, names: dict[int, str] | None) -> None:
        super().__init__(folder, split, names)
        self.rows: list[str] = []

    def add(self, path: Path, value: Any) -> None:
        row = {"path": path.relative_to(self.folder).as_posix(), self.kind: value}
        self.rows.append(json.dumps(row, ensure_ascii=False) + "\n")

    def end(self) -> str:
        (self.folder / f"{self.split or 'labels'}.jsonl").write_text("".join(self.rows), encoding="utf-8")
        return TASKS[self.kind]


class _Classes(_Table):
    kind = "class"


class _Labels(_Table):
    kind = "labels"


class _Values(_Table):
    kind = "value"


class _Masks(_Writer):
    def add(self, path: Path, value: np.ndarray) -> None:
        masks = self.folder / "masks" / self.split
        masks.mkdir(parents=True, exist_ok=True)
        Image.fromarray(value).save(masks / f"{path.stem}.png")

    def end(self) -> str:
        if self.names:
            (self.folder / "classes.txt").write_text("\n".join(self.names.values()) + "\n", encoding="utf-8")
        return "segment"


class _Boxes(_Writer):
    """COCO's form."""

    def __init__(self, folder: Path, split: str, names: dict[int, str] | None) -> None:
        super().__init__(folder, split, names)
        self.images: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []
        self.masks = False

    def add(self, path: Path, value: Mapping[str, Any]) -> None:
        with Image.open(path) as image:
            width, height = image.size
        self.images.append({"id": len(self.images), "file_name": path.name, "width": width, "height": height})
        masks = [None] * len(value["boxes"]) if value["masks"] is None else value["masks"]
        for (x0, y0, x1, y1), name, mask in zip(value["boxes"], value["labels"], masks, strict=True):
            found = {"image_id": len(self.images) - 1, "category": name, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            found |= {"id": len(self.objects) + 1, "iscrowd": 0, "area": (x1 - x0) * (y1 - y0)}
            if mask is not None:
                self.masks = True
                found |= {"segmentation": encode(np.asarray(mask) > 0), "area": float((mask > 0).sum())}
            self.objects.append(found)

    def end(self) -> str:
        shown = sorted({found["category"] for found in self.objects})
        names = (
            list(self.names.values()) if self.names else sorted(shown, key=lambda n: (not n.isdecimal(), n.zfill(9)))
        )
        ids = {name: k + 1 for k, name in enumerate(names)}
        content = {
            "images": self.images,
            "annotations": [
                {"category_id": ids[f["category"]], **{k: v for k, v in f.items() if k != "category"}}
                for f in self.objects
            ],
            "categories": [{"id": k, "name": name} for name, k in ids.items()],
        }
        (self.folder / f"instances_{self.split or 'train'}.json").write_text(json.dumps(content), encoding="utf-8")
        return "instance" if self.masks else "detect"


WRITERS: dict[str, type[_Writer]] = {
    "class": _Classes,
    "labels": _Labels,
    "value": _Values,
    "mask": _Masks,
    "objects": _Boxes,
}
