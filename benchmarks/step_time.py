"""The time of one training step of a method, as a ratio to what a user would take instead; interleaved, in one process.

    python -m benchmarks.step_time --method convpass lora --against full peft-lora --json step.json

Every contender takes one step in turn, `--repeat` times after two steps that are not counted; a contender's ratio to
another one is the median of the ratios of their steps of the same turn, so that a busy machine slows both alike. `full`
is plain timm trained whole, `peft-lora` peft's LoRA (rank 8, every linear layer of the blocks) on plain timm; neither
runs code of vitgraft. A step is forward, backward and AdamW on random pictures that are on the device already.

`--profile` adds where each step's time goes, by kinds of operation, as shares of the first of `--against`: a step of
each under torch's profiler, scaled to the median step.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from . import contenders, measure

KINDS = {  # of operations, by torch's names
    "products": "(add|b|baddb)?mm",
    "attention": ".*(dot_product|flash_attention|softmax|_Attention).*",
    "GELU, LayerNorm": ".*(gelu|layer_norm).*",
    "convolutions, BatchNorm, ReLU": ".*(conv|batch_norm|threshold|clamp_min|relu|upsample).*",
    "copies and casts": "copy_",
    "sums and elementwise": "(add|sub|mul|div|sum|addcmul|sigmoid)_?(_backward)?",
    "AdamW": ".*(AdamW|adamw).*",
}
OTHER = "all else"


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_small_patch14_dinov2", repeat=5)
    known = list(dict.fromkeys([*contenders.names(), *contenders.CACHED, *contenders.COMPILED, *contenders.RIVALS]))
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=measure.at_least_one, default=64)
    parser.add_argument("--method", action=measure.Names, known=known, default=["convpass"])
    parser.add_argument("--against", action=measure.Names, known=known, default=["full"])
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--profile", action="store_true", help="tell where each step's time goes")
    given = parser.parse_args(words)
    contenders.check(given.model, given.image_size)

    names = dict.fromkeys([*given.against, *given.method])
    what = (given.model, given.image_size, given.batch_size, given.precision)
    steps = {name: contenders.training_step(name, *what) for name in names}
    seconds = measure.turns({name: measure.timed(step) for name, step in steps.items()}, given.repeat)
    print(table(seconds, given.against))
    parts: dict[str, dict[str, float]] = {}
    if given.profile:
        whole = statistics.median(seconds[given.against[0]])
        for name, step in steps.items():
            parts[name] = {kind: statistics.median(seconds[name]) / whole * x for kind, x in shares(step).items()}
        rows = ([kind, *(f"{part[kind]:.3f}" for part in parts.values())] for kind in (*KINDS, OTHER))
        print(f"\n{measure.table([f'/ {given.against[0]}', *parts], rows)}")
    measure.write(given, seconds=seconds, parts=parts)


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Of the time of a step, by kind of operation; their sum is 1."""
    with profile(activities=[ProfilerActivity.CUDA if contenders.DEVICE == "cuda" else ProfilerActivity.CPU]) as seen:
        step()
    found = dict.fromkeys((*KINDS, OTHER), 0.0)
    for event in seen.key_averages():
        name = event.key.removeprefix("aten::")
        own = event.self_device_time_total if contenders.DEVICE == "cuda" else event.self_cpu_time_total
        found[next((kind for kind, names in KINDS.items() if re.fullmatch(names, name)), OTHER)] += own
    whole = sum(found.values())
    return {kind: own / whole for kind, own in found.items()}


def table(seconds: dict[str, list[float]], against: list[str]) -> str:
    """Markdown: median seconds a step, and the median ratio to each of `against`."""
    rows = (
        [name, f"{statistics.median(mine):.3f}", *(f"{measure.ratio(mine, seconds[other]):.2f}" for other in against)]
        for name, mine in seconds.items()
    )
    return measure.table(["", "s a step", *(f"/ {other}" for other in against)], rows)


if __name__ == "__main__":
    measure.run(main)
