"""The pictures of one split, decoded once and checked, then handed out in batches; and which pictures make a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..common.errors import RequestError, WorkError
from .audit import Shown, shown_labels
from .batch import Batch
from .dataset import Split
from .pictures import BadPicture, open_picture
from .preprocess import Preprocess
from .reader import Reader

if TYPE_CHECKING:
    from .recipes import Recipe

GIVEN = "given"  # the split of pictures that belong to no data set
AS_THEY_ARE = ("",)  # the one view of pictures that are not augmented
_CHUNK = 32  # pictures that a worker process decodes at a time when all are checked


class _Key(NamedTuple):
    """A picture by index and file; the epoch of training that sees it, if any; whether its pixels are wanted."""

    picture: int
    path: Path
    epoch: int | None = None
    wanted: bool = True


class _Decoded(NamedTuple):
    pixels: Tensor  # uint8 [b, 3, H, W], the good ones; without numbers where they are not wanted
    indices: list[int]  # of the good ones
    bad: list[tuple[int, str]]  # index and reason


class _Decode(Dataset[tuple[int, Tensor | str]]):
    """Key to (index, pixels) or, for a bad picture, (index, reason)."""

    def __init__(self, preprocess: Preprocess, recipe: Recipe | None) -> None:
        self.preprocess, self.recipe = preprocess, recipe

    def __getitem__(self, key: _Key) -> tuple[int, Tensor | str]:
        try:
            pixels = self._pixels(key)
        except BadPicture as bad:
            return key.picture, bad.reason
        return key.picture, pixels if key.wanted else torch.empty(0, dtype=torch.uint8)

    def _pixels(self, key: _Key) -> Tensor:
        if self.recipe is None or key.epoch is None:
            return self.preprocess.load(key.path)
        image = open_picture(key.path, self.preprocess.levels)
        return self.recipe.pixels(image, self.recipe.key(key.epoch, key.picture))


def _stack(items: list[tuple[int, Tensor | str]]) -> _Decoded:
    good = [(index, item) for index, item in items if isinstance(item, Tensor)]
    pixels = torch.stack([item for _, item in good]) if good else torch.empty(0, dtype=torch.uint8)
    return _Decoded(pixels, [i for i, _ in good], [(i, item) for i, item in items if isinstance(item, str)])


class Truth:
    """What the labels of a split are."""

    def tensor(self, labels: Sequence[Any]) -> Tensor:
        """As the head takes them, one row for each picture."""
        raise NotImplementedError

    def shown(self, labels: Sequence[Any]) -> Shown:
        """What the pictures show of each class."""
        raise NotImplementedError

    def check(self, split: Split, good: list[int]) -> None:
        """WorkError where too little is left without the bad pictures; good: the indices of the others."""


class OneClass(Truth):
    """Indices into so many classes."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def tensor(self, labels: Sequence[int]) -> Tensor:
        return torch.tensor(labels, dtype=torch.int64)

    def shown(self, labels: Sequence[int]) -> Shown:
        return shown_labels([(label,) for label in labels], self.classes)

    def check(self, split: Split, good: list[int]) -> None:
        left = {split.labels[index] for index in good}
        for path, label in zip(split.paths, split.labels, strict=True):
            if label not in left:
                raise WorkError(
                    f"the bad pictures of split {split.name!r} were left out, but then none is left of the class of "
                    f"{path} (label {label}, {split.labels.count(label)} bad); replace its pictures, or remove the "
                    "class"
                )


class Pictures:
    """A split whose pictures are known to be good.

    Args:
        split: paths and labels.
        preprocess: the pipeline up to uint8 pixels.
        workers: processes that decode; 0 decodes in this one.
        recipe: what the pictures look like in an epoch of training; none: as in evaluation.
        skip_bad: leave bad pictures out, into `skipped`, where otherwise they are an error.
        truth: what the labels of a split are: one class each, unless given.
        keep_bytes: the decoded pixels stay in memory if they take at most this; else, and with a recipe, each call of
            `batches` decodes.
        progress: called with (pictures done, pictures in all) while they are decoded for the first time.

    Raises WorkError when pictures are bad, or when skipping them leaves a class with none.
    """

    paths: list[Path]
    labels: Tensor  # [n] or [n, K]: int64 of one class each, else float32
    skipped: list[tuple[Path, str]]  # bad pictures that were left out, with the reason
    views: tuple[str, ...]  # of each picture, by name; epochs take turns at them; none: every epoch sees another one
    shown: Shown  # of each class

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        *,
        workers: int,
        recipe: Recipe | None = None,
        skip_bad: bool = False,
        truth: Truth | None = None,
        keep_bytes: int = 2 << 30,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._preprocess = preprocess
        self.views = AS_THEY_ARE if recipe is None else recipe.names
        self.paths = list(split.paths)
        height, width = preprocess.size
        keep = not recipe and len(split) * 3 * height * width <= keep_bytes
        self._reader = Reader(_Decode(preprocess, recipe), _stack, workers)
        self._pixels, good, bad = self._decode_all(keep, progress)
        self.skipped = [(split.paths[index], reason) for index, reason in bad]
        if bad and not skip_bad:
            raise WorkError(bad_pictures(split, self.skipped, "decoded"))
        if truth is None:
            truth = OneClass(max(split.labels, default=0) + 1)
        truth.check(split, good)
        self.paths = [split.paths[index] for index in good]
        if keep:
            self.close()  # nothing is left to read
        labels = [split.labels[index] for index in good]
        self.labels, self.shown = truth.tensor(labels), truth.shown(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def even_batches(self, batch_size: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """The batches of one pass over all pictures, for evaluation: this process's share."""
        return even_batches(len(self), batch_size, rank=rank, world=world)

    def batches(self, indices: Sequence[Sequence[int]], *, epoch: int | None = None) -> Iterator[Batch]:
        """For each list of indices, in order, a batch.

        With an epoch and a recipe, a picture is the epoch's view of it, drawn by the recipe's seed, the view's number
        and the picture's index alone; else it is as in evaluation.
        """
        if self._pixels is not None:
            for batch in indices:
                chosen = torch.tensor(batch, dtype=torch.int64)
                yield self._batch(self._pixels[chosen], chosen)
            return
        for decoded in self._reader([self._keys(batch, epoch) for batch in indices]):
            for index, reason in decoded.bad:  # it was good when all were checked: the file has changed since
                raise BadPicture(self.paths[index], reason)
            chosen = torch.tensor(decoded.indices, dtype=torch.int64)
            yield self._batch(decoded.pixels, chosen)

    def close(self) -> None:
        """Ends the processes that read for it; they start again when they are needed."""
        self._reader.close()

    def _keys(self, indices: Sequence[int], epoch: int | None = None, wanted: bool = True) -> list[_Key]:
        return [_Key(index, self.paths[index], epoch, wanted) for index in indices]

    def _batch(self, pixels: Tensor, chosen: Tensor) -> Batch:
        return Batch(pixels, [self._preprocess.size] * len(chosen), self.labels[chosen], chosen)

    def _decode_all(
        self, keep: bool, progress: Callable[[int, int], None] | None
    ) -> tuple[Tensor | None, list[int], list[tuple[int, str]]]:
        """Every picture once: the good ones' pixels if they are kept, the good indices, the bad ones with reasons."""
        total = len(self.paths)
        pixels = torch.empty((total, 3, *self._preprocess.size), dtype=torch.uint8) if keep else None
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        for decoded in self._reader([self._keys(chunk, wanted=keep) for chunk in even_batches(total, _CHUNK)]):
            if pixels is not None and decoded.indices:
                pixels[len(good) : len(good) + len(decoded.indices)] = decoded.pixels
            good += decoded.indices
            bad += decoded.bad
            if progress is not None:
                progress(len(good) + len(bad), total)
        return (pixels[: len(good)] if pixels is not None else None), good, bad


def bad_pictures(split: Any, bad: list[tuple[Path, str]], wanted: str, *, skip_bad: bool = False, most: int = 5) -> str:
    """That pictures of a split cannot be what was wanted of them, decoded for one, and what to do."""
    listed = ", ".join(f"{path} ({reason})" for path, reason in bad[:most])
    more = f", and {len(bad) - most} more" if len(bad) > most else ""
    what = "were to be read" if split.name == GIVEN else f"of split {split.name!r} were to be {wanted}"
    way = "" if skip_bad else ", or leave them out with --skip-bad"
    return f"{len(split)} pictures {what}, but {len(bad)} cannot be: {listed}{more}; replace or remove them{way}"


def epoch_batches(
    n: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    shares: Sequence[float] | None = None,
) -> list[list[int]]:
    """The batches of one epoch of training, as indices 0..n-1: this process's share of each. With shares, [n], n
    pictures are drawn by them, some more than once; without, each comes once.

    The order depends on (seed, epoch) alone and every rank cuts the same one, so that the ranks' k-th batches together
    are the k-th batch of a single process. The last incomplete batch is dropped; fewer pictures than `batch_size` make
    one batch.
    """
    if batch_size < 1 or batch_size % world:
        raise RequestError(
            f"batches of {batch_size} were asked for, but {world} device(s) share each evenly; give a multiple of "
            f"{world}, such as {max(batch_size // world, 1) * world}"
        )
    if 0 < n < world:
        raise RequestError(
            f"{world} devices were asked for, but there are {n} pictures to share; take at most {n} devices"
        )
    order, draw = list(range(n)), random.Random(f"{seed}/{epoch}")
    if shares is None or not n:
        draw.shuffle(order)
    else:
        order = draw.choices(order, shares, k=n)
    size = max(min(batch_size, n), 1)
    return [order[start : start + size][rank::world] for start in range(0, n - size + 1, size)]


def even_batches(n: int, batch_size: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
    """All indices 0..n-1 in order, once, for evaluation: this process's share; a rank's list may be shorter."""
    if batch_size < 1:
        raise RequestError(
            f"batches of {batch_size} were asked for, but a batch holds a picture at least; give 1 or more"
        )
    shares = (list(range(start, min(start + batch_size, n)))[rank::world] for start in range(0, n, batch_size))
    return [share for share in shares if share]
