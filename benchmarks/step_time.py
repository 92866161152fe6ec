"""The time of one training step of a method, as a ratio to what a user would take instead; interleaved, in one process.

    python -m benchmarks.step_time --method convpass lora --against full peft-lora --json step.json

Every contender takes one step in turn, `--repeat` times after two steps that are not counted; a contender's ratio to
another one is the median of the ratios of their steps of the same turn, so that a busy machine slows both alike. `full`
is plain timm trained whole, `peft-lora` peft's LoRA (rank 8, every linear layer of the blocks) on plain timm; neither
runs code of vitgraft. A step is forward, backward and AdamW on random pictures that are on the device already.
"""

from __future__ import annotations

import statistics

from . import contenders, measure


def main(words: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, model="vit_small_patch14_dinov2", repeat=5)
    known = list(dict.fromkeys([*contenders.names(), *contenders.CACHED, *contenders.RIVALS]))
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=measure.at_least_one, default=64)
    parser.add_argument("--method", action=measure.Names, known=known, default=["convpass"])
    parser.add_argument("--against", action=measure.Names, known=known, default=["full"])
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    given = parser.parse_args(words)
    contenders.check(given.model, given.image_size)

    names = dict.fromkeys([*given.against, *given.method])
    what = (given.model, given.image_size, given.batch_size, given.precision)
    seconds = measure.turns(
        {name: measure.timed(contenders.training_step(name, *what)) for name in names}, given.repeat
    )
    print(table(seconds, given.against))
    measure.write(given, seconds=seconds)


def table(seconds: dict[str, list[float]], against: list[str]) -> str:
    """Markdown: median seconds a step, and the median ratio to each of `against`."""
    rows = (
        [name, f"{statistics.median(mine):.3f}", *(f"{measure.ratio(mine, seconds[other]):.2f}" for other in against)]
        for name, mine in seconds.items()
    )
    return measure.table(["", "s a step", *(f"/ {other}" for other in against)], rows)


if __name__ == "__main__":
    measure.run(main)
