"""A whole fit, from pictures on disk to the run's folder, as a ratio to peft's LoRA in the same protocol.

    python -m benchmarks.fit_time --pictures 1000 --epochs 10 --project 100 --json fit.json

Every fit goes through `vitgraft.fit`, decoding included, on generated JPEG pictures of the size of photographs; a
turn does all fits once, in one process, and a ratio is the median of the ratios of the same turn. `peft` is peft's
LoRA, rank 8 on every linear layer. A method whose gradients stay out of the backbone is fitted in each way of `--keep`:

    memory   pictures and activations are kept in memory, as far as they fit (the default of `vitgraft fit`)
    disk     activations are kept on disk (`--cache`): once from an empty cache, and again from the full one
    pixels   decoded pictures are kept, activations are not
    nothing  neither: every epoch decodes, and passes the backbone

The last table holds the rate at which pictures are decoded against that at which the fastest fit consumes them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from vitgraft import data, fit
from vitgraft.common.settings import PRECISIONS
from vitgraft.data import Pictures
from vitgraft.pages.catalogue import attached, shape_of

from . import contenders, measure

KEEP = ("memory", "disk", "pixels", "nothing")
AGAIN = "disk again"


class Fit(NamedTuple):
    """The seconds of a fit: in all, and of each epoch."""

    seconds: float
    epochs: list[float]

    @property
    def later(self) -> float:
        """The median of the epochs after the first; of the only one, where there is one."""
        return statistics.median(self.epochs[1:] or self.epochs)

    def projected(self, epochs: int) -> float:
        """Seconds in all with so many epochs, more than were measured."""
        return self.seconds + (epochs - len(self.epochs)) * self.later


Fits = dict[str, list[Fit]]  # by the name in the table, one for each turn


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_small_patch14_dinov2", repeat=1)
    known = contenders.names()
    usual = ["hst-detached", "hst", "lora", "lora-all", "full"]
    parser.add_argument("--image-size", type=int, nargs="+", default=[112])
    parser.add_argument("--pictures", type=measure.at_least_one, default=1000)
    parser.add_argument("--jpeg-size", type=measure.at_least_one, nargs=2, default=[375, 500], metavar=("H", "W"))
    parser.add_argument("--epochs", type=measure.at_least_one, default=10)
    parser.add_argument("--project", type=int, default=100, help="tell the time of so many epochs too (%(default)s)")
    parser.add_argument("--batch-size", type=measure.at_least_one, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (%(default)s)")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB, as of `vitgraft fit` (%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--method", action=measure.Names, known=known, default=usual)
    parser.add_argument("--against", action=measure.Names, known=known, default=["peft"])
    parser.add_argument("--keep", action=measure.Names, known=KEEP, default=["memory", "disk", "pixels"])
    given = parser.parse_args(words)
    contenders.check(given.model, *given.image_size)

    fits: dict[int, Fits] = {}
    decoded: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = contenders.make_pictures(Path(folder, "pictures"), given.pictures, *given.jpeg_size)
        for size in given.image_size:
            work = dict(all_fits(given, root, size, Path(folder, "cache")))
            fitted(root, "linear", given.model, image_size=size, epochs=1)  # imports and first calls, once a process
            fits[size] = measure.turns(work, given.repeat, warm=0)
            decoded[size] = [decoded_a_second(given, root, size) for _ in range(given.repeat)]
            print(f"\nPictures of {size} x {size}\n\n{table(fits[size], given)}", flush=True)
    print(f"\nLoading, {given.workers} workers\n\n{loading(given, fits, decoded)}")
    found = {size: {name: [one._asdict() for one in all] for name, all in by.items()} for size, by in fits.items()}
    measure.write(given, fits=found, pictures_decoded_a_second=decoded, pictures_an_epoch=an_epoch(given))


def all_fits(given: argparse.Namespace, root: Path, size: int, cache: Path) -> Iterator[tuple[str, Callable[[], Fit]]]:
    """Every fit by its name in the table."""
    common = {name: getattr(given, name) for name in ("epochs", "batch_size", "workers", "precision", "memory")}
    pixels = (given.pictures * 3 * size**2 + 1) / 2**30  # GiB: room for decoded pictures, which need less than the rest
    ways: dict[str, dict[str, Any]] = {"memory": {}, "pixels": {"memory": pixels}, "nothing": {"memory": 0}}
    for name in dict.fromkeys([*given.method, *given.against]):
        form = contenders.form(name)
        one = partial(fitted, root, name, given.model, image_size=size, **common)
        if attached(form.pop("method"), shape_of(given.model), **form).crosses_backbone:
            yield name, one
            continue
        for keep in given.keep:
            if keep == "disk":
                yield f"{name}, {keep}", partial(on_disk, one, cache, empty=True)
                yield f"{name}, {AGAIN}", partial(on_disk, one, cache)
            else:
                yield f"{name}, {keep}", partial(one, **ways[keep])


def on_disk(one: Callable[..., Fit], cache: Path, *, empty: bool = False) -> Fit:
    """A fit that keeps activations in the folder `cache`; `empty` removes first what other fits have left there."""
    if empty:
        shutil.rmtree(cache, ignore_errors=True)
    with patch.dict(os.environ, VITGRAFT_CACHE=str(cache)):
        return one(cache=True)


def fitted(root: Path, name: str, model: str, **settings: Any) -> Fit:
    """One fit, by the name of its method; its backbone is made before the clock starts, and nothing is left of it."""
    backbone = contenders.random_backbone(model)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        fit(root, out=Path(folder, "run"), backbone=backbone, quiet=True, **contenders.form(name), **settings)
        seconds = time.perf_counter() - begun
        records = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
        until = [0.0, *(record["seconds"] for record in records)]
    return Fit(seconds, [after - before for before, after in pairwise(until)])


def decoded_a_second(given: argparse.Namespace, root: Path, size: int) -> float:
    """Pictures a second from disk to pixels of this size, the start of the worker processes included."""
    split = data.read(root).split("train")
    begun = time.perf_counter()
    Pictures(split, shape_of(given.model).preprocess(size), workers=given.workers)
    return len(split) / (time.perf_counter() - begun)


def an_epoch(given: argparse.Namespace) -> int:
    """Pictures that an epoch consumes: whole batches."""
    return given.pictures // given.batch_size * given.batch_size or given.pictures


def table(fits: Fits, given: argparse.Namespace) -> str:
    """Markdown: median seconds of a fit and of its epochs, and the median ratio to each of `--against`; the same for
    the fit with the epochs of `--project`."""
    others = [name for name in fits if name.split(",")[0] in given.against]
    told = [given.epochs]
    if given.project > given.epochs > 1:
        told.append(given.project)
    head = ["", "s, first epoch", "s, later epoch"]
    for epochs in told:
        projected = ", projected" if epochs != given.epochs else ""
        head += [f"s, {epochs} epochs{projected}", *(f"/ {other}" for other in others)]
    rows = []
    for name, mine in fits.items():
        row = [name, f"{_median(one.epochs[0] for one in mine):.2f}", f"{_median(one.later for one in mine):.2f}"]
        for epochs in told:
            seconds = [one.projected(epochs) for one in mine]
            ratios = [measure.ratio(seconds, [one.projected(epochs) for one in fits[other]]) for other in others]
            row += [f"{_median(seconds):.1f}", *(f"{ratio:.3f}" for ratio in ratios)]
        rows.append(row)
    return measure.table(head, rows)


def loading(given: argparse.Namespace, fits: dict[int, Fits], decoded: dict[int, list[float]]) -> str:
    """Markdown: pictures decoded a second and consumed a second by the fit whose epoch is the shortest, and which of
    the two would limit an epoch that decodes its pictures."""
    phases: dict[str, Callable[[Fit], float]] = {"first": lambda one: one.epochs[0]}
    if given.epochs > 1:
        phases["later"] = lambda one: one.later
    rows = []
    for size, by_name in fits.items():
        rate = _median(decoded[size])
        for phase, seconds_of in phases.items():
            seconds = {name: _median(seconds_of(one) for one in all) for name, all in by_name.items()}
            fastest = min(seconds, key=seconds.__getitem__)
            consumed = an_epoch(given) / seconds[fastest]
            limit = "decoding" if rate < consumed else "training"
            rows.append([str(size), phase, f"{rate:.0f}", f"{consumed:.0f}", fastest, f"{rate / consumed:.2f}", limit])
    head = ["side", "epoch", "decoded a second", "consumed a second", "by", "decoded / consumed", "bottleneck"]
    return measure.table(head, rows)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    measure.run(main)
