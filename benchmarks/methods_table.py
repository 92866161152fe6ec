"""Methods x data sets, one fit at a time; can be stopped at any moment and continued by the same command.

    python -m benchmarks.methods_table FOLDER_OF_SETS --sets nlvr_xloc rsscn7 cifar10 --backbone WEIGHTS --out RUNS

Each set is trained on train+val and measured once, after the last epoch, on test. The table is printed at the end, as
Markdown, from the result.json of every run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vitgraft import Backbone, Run, fit

# name in the table -> method and what differs from its own defaults
ROWS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "convpass": {"method": "convpass"},
    "convpass attn": {"method": "convpass", "sublayers": ("attn",)},
    "sct": {"method": "sct"},
    "consolidator": {"method": "consolidator"},
    "consolidator norm": {"method": "consolidator", "originals": ("bias", "norm")},
    "hst": {"method": "hst"},
    "hst detached": {"method": "hst", "detached": True},
    "lora": {"method": "lora"},
    "lora all linears": {"method": "lora", "targets": ("qkv", "proj", "fc1", "fc2")},
    "peft lora all linears": {"method": "peft"},
    "adapter": {"method": "adapter"},
    "adapter houlsby": {"method": "adapter", "form": "houlsby"},
    "adaptformer": {"method": "adaptformer"},
    "vpt": {"method": "vpt"},
    "vpt shallow": {"method": "vpt", "form": "shallow"},
    "ssf": {"method": "ssf"},
    "fact": {"method": "fact"},
    "fact tk": {"method": "fact", "form": "tk", "rank": 32},
    "repadapter": {"method": "repadapter"},
    "bitfit": {"method": "bitfit"},
    "layernorm": {"method": "layernorm"},
    "apt": {"method": "apt"},
    "bapat": {"method": "bapat"},
    "e2vpt": {"method": "e2vpt"},
    "ett": {"method": "ett"},
    "heart_lora": {"method": "heart_lora"},
    "heart_lora head": {"method": "heart_lora", "form": "head"},
    "pro_tuning": {"method": "pro_tuning"},
    "hst+lora": {"method": "hst+lora"},
    "hst+consolidator": {"method": "hst+consolidator"},
    "lst": {"method": "lst"},
    "full": {"method": "full"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lr", type=float, help="in place of the methods' own")
    parser.add_argument("--epochs", type=int, help="in place of 10")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    changed = {name: getattr(given, name) for name in ("lr", "epochs") if getattr(given, name) is not None}

    backbone = Backbone.load(given.backbone)
    runs: dict[tuple[str, str], Run] = {}
    for row in given.rows:
        for name in given.sets:
            runs[row, name] = fit(
                given.root / name,
                out=given.out / "-".join([row.replace(" ", "-"), name, str(given.seed), *map(str, changed.values())]),
                backbone=backbone,
                image_size=given.image_size,
                seed=given.seed,
                train_split="train+val",
                eval_split="test",
                resume=True,
                **{"epochs": 10, **changed},
                **ROWS[row],
            )
            result = runs[row, name].result
            print(f"{row:14} {name:12} {result['value']:.1%}  {result['seconds']:.0f} s", flush=True)
    print(table(given.rows, given.sets, runs))


def table(rows: list[str], sets: list[str], runs: dict[tuple[str, str], Run]) -> str:
    """Markdown: accuracy on test in percent, training seconds, and bytes of the adapter's file."""
    lines = [
        "| method | parameters | lr | " + " | ".join(sets) + " | seconds an epoch | adapter |",
        "|---|---|---|" + "---|" * (len(sets) + 2),
    ]
    for row in rows:
        results = [runs[row, name].result for name in sets]
        trained = " to ".join(sorted({f"{r['parameters'] + r['head_parameters']:,}" for r in results}))
        values = " | ".join(f"{100 * r['value']:.1f}" for r in results)
        seconds = " to ".join(sorted({f"{r['cost']['seconds_per_epoch']:.1f}" for r in results}, key=float))
        size = f"{max(r['adapter_bytes'] for r in results) / 1e6:.2f} MB"
        lines.append(f"| {row} | {trained} | {results[0]['protocol']['lr']:g} | {values} | {seconds} | {size} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
