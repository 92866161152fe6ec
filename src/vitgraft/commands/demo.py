"""The demo: a real pre-trained backbone put to work on real pictures, in a few minutes on two cores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..adapters.run import Run
from ..backbones import Backbone
from ..common.console import Console
from ..common.errors import RequestError
from ..common.settings import BACKBONE
from ..pages import report
from ..training.fitting import fit
from . import digits

SIZE = 64  # pixels: 4 x 4 patches, so that two cores are enough
TASKS = ("digits", "place")
METHODS: dict[str, dict[str, Any]] = {"linear": {}, "hst": {"detached": True}}
EPOCHS = 12
PICTURES = {"train": 1000, "test": 500}


def demo(out: str | Path = "vitgraft-demo", *, quiet: bool = False) -> dict[tuple[str, str], Run]:
    """Writes the pictures, fits a linear probe and HST to each task, prints the comparison, and leaves a page.

    Gives the runs by (task, method). Raises RequestError where `out` already holds something.
    """
    out, console, begun = Path(out), Console(quiet), time.perf_counter()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} already holds something: choose another --out, or remove it.")
    backbone = Backbone.load(BACKBONE, say=console.line)
    runs = {}
    for task in TASKS:
        console.line(f"\ntask {task}: {digits.TASKS[task].about}")
        digits.write(out / "pictures" / task, task, size=SIZE, **PICTURES)
        for method, options in METHODS.items():
            runs[task, method] = fit(
                out / "pictures" / task,
                out=out / task / method,
                method=method,
                backbone=backbone,
                image_size=(SIZE, SIZE),
                epochs=EPOCHS,
                eval_split="test",
                cache=True,  # the second task reads what the first has kept, and a second demo all of it
                quiet=quiet,
                **options,
            )
    _page(out / "index.html", backbone, runs)
    print(_table(runs))
    print(f"\nopen {out / 'index.html'}   (all of it took {time.perf_counter() - begun:.0f} s)")
    return runs


def _table(runs: dict[tuple[str, str], Run]) -> str:
    lines = [
        f"{'task':8} {'method':8} {'trained':>9} {'accuracy':>9} {'95 % interval':>16} {'seconds':>8} {'adapter':>9}"
    ]
    for (task, method), run in runs.items():
        result = run.result
        low, high = result["interval"]
        trained = result["parameters"] + result["head_parameters"]
        lines.append(
            f"{task:8} {method:8} {trained:9,} {result['value']:9.1%} {f'{low:.1%} to {high:.1%}':>16} "
            f"{result['seconds']:8.1f} {result['adapter_bytes'] / 1e6:6.2f} MB"
        )
    return "\n".join(lines)


def _page(path: Path, backbone: Backbone, runs: dict[tuple[str, str], Run]) -> None:
    rows = [
        report.Row(task, method, run.result, f"{task}/{method}/report.html") for (task, method), run in runs.items()
    ]
    sections = []
    for task in TASKS:
        evaluations = {m: found for m in METHODS if (found := runs[task, m].evaluation) is not None}
        sections.append(report.Section(task, f"The class is {digits.TASKS[task].about}.", evaluations))
    intro = (
        f"One frozen {backbone.name} (from {backbone.source}), two questions about the same pictures, two ways to "
        f"answer. The pictures are made of 1,797 real handwritten digits, one on each sheet of {SIZE} x {SIZE} pixels; "
        "training and test share no digit. A linear probe trains a classifier on the backbone's final vector; HST, "
        "detached, trains a small side network that reads every block. Both leave the backbone as it is: a picture "
        "passed it once for each of the two, and what came out served both questions."
        "\n\n"
        "Which small digit lies somewhere on a sheet, and where, the final vector has mostly forgotten; the blocks on "
        "the way to it have not."
    )
    report.comparison(path, title="Why adapt a backbone?", intro=intro, rows=rows, sections=sections)
