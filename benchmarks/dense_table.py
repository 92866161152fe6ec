"""Methods with dense heads x data sets, one fit at a time; can be stopped and continued by the same command.

    python -m benchmarks.dense_table FOLDER_OF_SETS --sets camvid pets3 --backbone WEIGHTS --out RUNS

Each set has one budget for all methods: picture size, epochs, learning rate, size of the head. Trained on train,
measured once, after the last epoch. A table per set is printed, as Markdown, from the result.json of every run.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vitgraft import fit
from vitgraft.commands.options import values

METHODS: dict[str, dict[str, Any]] = {
    "frozen": {"method": "linear"},
    "lora": {"method": "lora"},
    "hst": {"method": "hst"},
    "hst detached": {"method": "hst", "detached": True},
    "hst detached added": {"method": "hst", "detached": True, "maps": "added", "widths": (32, 48, 64, 72)},
    "hst+lora": {"method": "hst+lora"},
}
# Few boxes and mild scales: what is compared are methods, after a few hundred steps on a processor.
FEW = {"samples": 32, "proposals": 300}
SHORT = {"lr": 1e-3, "jitter": (0.75, 1.5)}


@dataclass(frozen=True)
class Set:
    """The budget of one data set, the heads on it with their options, and the numbers that its table shows."""

    eval_split: str
    settings: dict[str, Any]
    heads: dict[str, dict[str, Any]]
    numbers: dict[str, tuple[str, ...]]  # as the table names them: where each is in a result


SEGMENTED = {"mIoU": ("mIoU",), "pixel accuracy": ("pixel_accuracy",)}
BOXES = {"box AP": ("box", "AP"), "box AP50": ("box", "AP50")}
SETS = {
    "camvid": Set(
        "test",
        {"task": "segment", "image_size": (192, 256), "epochs": 4, "batch_size": 8, **SHORT},
        {"upernet": {}, "query": {}, "eomt": {}},
        SEGMENTED,
    ),
    "pets3": Set(
        "test",
        {"task": "segment", "image_size": (192, 192), "epochs": 10, "batch_size": 8, **SHORT},
        {"upernet": {}, "query": {}, "eomt": {}},
        SEGMENTED,
    ),
    "pennfudan": Set(
        "val",
        {"task": "instance", "image_size": (256, 256), "epochs": 6, "batch_size": 2, **SHORT},
        {"mask": FEW, "cascade-mask": {**FEW, "mask_every_stage": False}, "query": {}, "eomt": {}},
        {**BOXES, "mask AP": ("mask", "AP"), "mask AP50": ("mask", "AP50")},
    ),
    "bccd": Set(
        "test",
        {"task": "detect", "image_size": (192, 256), "epochs": 3, "batch_size": 2, **SHORT},
        {"faster": FEW},
        BOXES,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    known = dict.fromkeys(head for of in SETS.values() for _, head, _ in chosen(of, list(METHODS)))
    parser.add_argument("--heads", nargs="+", default=list(known), choices=list(known))
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings in place of the sets' own")
    parser.add_argument("--head-options", nargs="*", default=[], metavar="NAME=VALUE", help="beside the sets' own")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    changed = values(given.set, "a fit", "epochs=16")

    for name in given.sets:
        results = {}
        for method, head, options in chosen(SETS[name], given.methods):
            if head not in given.heads:
                continue
            settings = {**SETS[name].settings, **changed}
            marks = [name, method.replace(" ", "-"), head, given.seed, *given.set, *given.head_options]
            results[method, head] = fit_apart(
                given.root / name,
                out=given.out / "-".join(map(str, marks)),
                backbone=given.backbone,
                head=head,
                head_options={**options, **values(given.head_options, "a head", "width=128")},
                eval_split=SETS[name].eval_split,
                seed=given.seed,
                resume=True,
                **settings,
                **METHODS[method],
            )
            print(row(SETS[name], method, head, results[method, head]), flush=True)
        print(table(name, results), flush=True)


def fit_apart(root: Path, **settings: Any) -> dict[str, Any]:
    """The result of a fit in a process of its own, so that its peak of memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_fit, root, settings).result()


def _fit(root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return fit(root, **settings).result


def chosen(of: Set, methods: list[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, head and the head's options of each fit; of a segmentation the linear probe as well."""
    probe = [("frozen", "linear", {})] if of.settings["task"] == "segment" and "frozen" in methods else []
    return probe + [
        (method, head, options) for head, options in of.heads.items() for method in methods if suits(method, head)
    ]


def suits(method: str, head: str) -> bool:
    """Whether there is such a pair: EoMT's queries are in the blocks that a side network would read."""
    return head != "eomt" or not method.startswith("hst")


def table(name: str, results: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Markdown: the numbers in percent, what trained, memory."""
    columns = [name, "head", *SETS[name].numbers, "method", "head, neck", "kept a picture", "peak memory"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join(lines + [row(SETS[name], *key, result) for key, result in results.items()])


def row(of: Set, method: str, head: str, result: dict[str, Any]) -> str:
    cells = [method, head]
    for path in of.numbers.values():
        value: Any = result["numbers"]
        for key in path:
            value = value[key]
        cells.append(f"{100 * (value or 0.0):.1f}")
    spent = result["cost"]
    kept = spent["bytes_kept_for_backward"] / spent["bytes_kept_batch"]
    cells += [f"{result['parameters']:,}", f"{result['head_parameters']:,}"]
    cells += [f"{kept / 2**20:.1f} MiB", f"{spent['peak_memory_bytes'] / 2**30:.2f} GiB"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
