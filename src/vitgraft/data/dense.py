"""The pictures of a dense split with their truth: checked once, then decoded, augmented and handed out in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..common.errors import RequestError, WorkError
from ..common.settings import MASKED
from .audit import Seen, Shown, shown_by
from .augment import STRIDE, Augment, Truth, evaluation_view
from .batch import Batch
from .loader import AS_THEY_ARE, bad_pictures, even_batches
from .mask_values import BadTruth, load_mask
from .mixed import drawn
from .pictures import BadPicture, Levels, open_picture
from .preprocess import Preprocess
from .reader import Reader
from .truth import DenseSplit, Problem

_CHUNK = 32  # pictures that a worker process looks at in one go when all are checked
Item = tuple[Tensor, tuple[int, int], Any, int]  # pixels, (h, w) inside the padding, target, index


class DensePictures:
    """A split for segment, detect or instance whose pictures and truth are known to be good.

    Args:
        split: paths, and masks or objects.
        preprocess: its `size` is the canvas (H, W), whose sides are multiples of 32.
        task: "segment", "detect", "instance" or "panoptic".
        classes: how many there are; what a mask may hold.
        workers: processes that decode; 0 decodes in this one.
        augment: the views of training.
        cover: in evaluation a picture covers the canvas, where it fits it otherwise.
        skip_bad: leave bad pictures, and those with bad truth, out, into `skipped`; otherwise they are an error.
        progress: called with (pictures done, pictures in all) while all are checked.

    Raises WorkError when pictures are bad, or when skipping them leaves none.
    """

    split: DenseSplit  # without what was left out
    sizes: list[tuple[int, int]]  # (h, w) of each picture's file
    shown: Shown  # of each class
    skipped: list[tuple[Path, str]]  # files that were bad, with the reason
    views: tuple[str, ...]  # of each picture, by name; epochs take turns at them; none: every epoch sees another one

    def __init__(
        self,
        split: DenseSplit,
        preprocess: Preprocess,
        *,
        task: str,
        classes: int,
        workers: int,
        augment: Augment | None = None,
        cover: bool = False,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if any(side % STRIDE for side in preprocess.size):
            near = " ".join(str(max(round(side / STRIDE), 1) * STRIDE) for side in preprocess.size)
            raise RequestError(
                f"image size {preprocess.size} was asked for, but the sides (height, width) of a dense task are "
                f"multiples of {STRIDE}; give such as {near}"
            )
        self._preprocess = preprocess
        self._classes = classes
        self._augment = augment
        self.views = AS_THEY_ARE if augment is None else ()
        self._cover = cover
        checked = examine(split, classes, workers, progress)
        bad = [(found.file, _reason(found)) for found in checked if isinstance(found, Problem)]
        good = [index for index, found in enumerate(checked) if not isinstance(found, Problem)]
        if bad and (not skip_bad or not good):
            raise WorkError(bad_pictures(split, bad, "used with their truth", skip_bad=skip_bad))
        self.skipped = [*split.left_out, *bad]
        self.split = split.take(good)
        seen = [found for found in checked if not isinstance(found, Problem)]
        self.sizes = [each.size for each in seen]
        self.shown = shown_by(self.split, seen, classes)
        load = partial(_load, preprocess=preprocess, masks=task in MASKED, augment=augment, cover=cover)
        self._reader = Reader(_Each(self.split, classes, load, preprocess.levels), _same, workers)

    @property
    def paths(self) -> list[Path]:
        return list(self.split.paths)

    def __len__(self) -> int:
        return len(self.split)

    def truth(self, index: int) -> Truth:
        """At the size of the picture's file: the mask, uint8 [h, w] with 255 ignored, or the Objects."""
        return _truth(self.split, self._classes, index)

    def batches(self, indices: Sequence[Sequence[int]], *, epoch: int | None = None) -> Iterator[Batch]:
        """For each list of indices, in order, a batch.

        With an epoch, every picture is augmented anew, by the augmentation's seed, the epoch and its index alone.
        Without, they are as for evaluation, and a list holds pictures of one padded size, as `even_batches` makes them.
        """
        if epoch is not None and self._augment is None:
            raise RequestError("batches of an epoch were asked for, but no augmentation was given; give augment=")
        for items in self._reader([[(index, epoch) for index in batch] for batch in indices]):
            for item in items:
                if isinstance(item, Problem):  # it was good when all were checked: the file has changed since
                    raise BadTruth(item)
            yield _batch(items)

    def close(self) -> None:
        """Ends the processes that read for it; they start again when they are needed."""
        self._reader.close()

    def even_batches(self, batch_size: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """All indices once, for evaluation, in batches of one padded size: this process's share of each.

        The sizes come in the order in which they are first met; a rank's list may be shorter than another's.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(self.sizes):
            groups.setdefault(evaluation_view(size, self._preprocess.size, self._cover).canvas, []).append(index)
        return [
            [group[position] for position in batch]
            for group in groups.values()
            for batch in even_batches(len(group), batch_size, rank=rank, world=world)
        ]


def examine(
    split: DenseSplit, classes: int, workers: int, progress: Callable[[int, int], None] | None = None
) -> list[Seen | Problem]:
    """Opens every picture and its truth: for each what was seen of it, or what is wrong."""
    found: list[Seen | Problem] = []
    reader = Reader(_Each(split, classes, _seen), _same, workers)
    for seen in reader([[(index, None) for index in chunk] for chunk in even_batches(len(split), _CHUNK)]):
        found += seen
        if progress is not None:
            progress(len(found), len(split))
    return found


def unreadable(bad: BadPicture) -> Problem:
    """A picture that cannot be decoded, as a problem."""
    return Problem(bad.path, "", f"it cannot be read as a picture ({bad.reason}); replace or remove it")


def _reason(problem: Problem) -> str:
    return f"at {problem.place}: {problem.sentence}" if problem.place else problem.sentence


def _seen(each: _Each, index: int, epoch: int | None) -> Seen:
    image, truth = each.open(index)
    pixels = np.bincount(truth.ravel(), minlength=256) if isinstance(truth, np.ndarray) else None
    return Seen((image.height, image.width), pixels)


def _load(
    each: _Each,
    index: int,
    epoch: int | None,
    *,
    preprocess: Preprocess,
    masks: bool,
    augment: Augment | None,
    cover: bool,
) -> Item:
    if augment is not None and epoch is not None:
        return *drawn(each.open, index, len(each), augment, preprocess, masks, f"{epoch}/{index}"), index
    image, truth = each.open(index)
    view = evaluation_view((image.height, image.width), preprocess.size, cover)
    return *view.seen(image, truth, preprocess, masks), index


class _Each(Dataset[Any]):
    """(index, epoch) to `make(self, index, epoch)` or, for a bad picture, the Problem; epoch: the one of training that
    sees it, or None."""

    def __init__(
        self,
        split: DenseSplit,
        classes: int,
        make: Callable[[_Each, int, int | None], Any],
        levels: Levels | None = None,
    ) -> None:
        self.levels = levels
        self.split = split
        self.classes = classes
        self.make = make

    def __len__(self) -> int:
        return len(self.split)

    def open(self, index: int) -> tuple[Image.Image, Truth]:
        """A picture and its truth; raises BadPicture, or BadTruth."""
        path = self.split.paths[index]
        image, truth = open_picture(path, self.levels), _truth(self.split, self.classes, index)
        if fault := _misfit(path, image, truth):
            raise BadTruth(fault)
        return image, truth

    def __getitem__(self, key: tuple[int, int | None]) -> Any:
        try:
            return self.make(self, *key)
        except BadPicture as bad:
            return unreadable(bad)
        except BadTruth as bad:
            return bad.problem


def _truth(split: DenseSplit, classes: int, index: int) -> Truth:
    return load_mask(split.masks[index], classes, split.coding) if split.masks else split.objects[index]


def _misfit(path: Path, image: Image.Image, truth: Truth) -> Problem | None:
    """The problem of a picture whose truth is for another size."""
    h, w = truth.shape if isinstance(truth, np.ndarray) else truth.size
    if (image.height, image.width) == (h, w):
        return None
    what = "its mask" if isinstance(truth, np.ndarray) else "the size in its annotation"
    turned = " upright, by its EXIF orientation" if (image.width, image.height) == (h, w) else ""
    said = f"the picture is {image.width} x {image.height} (width x height){turned}, but {what} is {w} x {h}"
    return Problem(path, "", f"{said}; make them the same")


def _same(items: list[Any]) -> list[Any]:
    return items


def _batch(items: list[Item]) -> Batch:
    pixels, sizes, targets, indices = zip(*items, strict=True)
    truth = torch.stack(targets) if isinstance(targets[0], Tensor) else list(targets)
    return Batch(torch.stack(pixels), list(sizes), truth, torch.tensor(indices))
