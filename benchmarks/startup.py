"""How long a user waits before anything happens: seconds above a bare interpreter, median of interleaved starts.

python -m benchmarks.startup --repeat 9 --json startup.json
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

from . import measure

STARTS = {
    "interpreter": ["-c", "pass"],
    "import vitgraft": ["-c", "import vitgraft"],
    "vitgraft --help": ["-m", "vitgraft.commands.cli", "--help"],
    "vitgraft fit --help": ["-m", "vitgraft.commands.cli", "fit", "--help"],
    "import vitgraft; vitgraft.fit": ["-c", "import vitgraft; vitgraft.fit"],
    "import peft": ["-c", "import peft"],
}


def main(words: list[str] | None = None) -> None:
    given = measure.parser(__doc__, repeat=9).parse_args(words)
    seconds = measure.turns(
        {name: measure.timed(partial(_start, start)) for name, start in STARTS.items()}, given.repeat, warm=1
    )
    bare = statistics.median(seconds["interpreter"])
    rows = ([f"`{name}`", f"{statistics.median(taken) - bare:.2f}"] for name, taken in seconds.items())
    print(measure.table(["start", "seconds above the interpreter"], rows))
    measure.write(given, seconds=seconds)


def _start(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    measure.run(main)
