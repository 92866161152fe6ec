"""How long a user waits before anything happens: seconds above a bare interpreter, median of interleaved starts.

python -m benchmarks.startup --repeat 9 --json startup.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from vitgraft.bench.provenance import machine, versions

STARTS = {
    "interpreter": ["-c", "pass"],
    "import vitgraft": ["-c", "import vitgraft"],
    "vitgraft --help": ["-m", "vitgraft.cli", "--help"],
    "vitgraft fit --help": ["-m", "vitgraft.cli", "fit", "--help"],
    "import vitgraft; vitgraft.fit": ["-c", "import vitgraft; vitgraft.fit"],
    "import peft": ["-c", "import peft"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(given.repeat):
        for name, words in STARTS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - begun)
    bare = statistics.median(seconds["interpreter"])
    print("| start | seconds above the interpreter |\n|---|---|")
    for name, taken in seconds.items():
        print(f"| `{name}` | {statistics.median(taken) - bare:.2f} |")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine() | versions(), "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
