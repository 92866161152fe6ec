"""What a person sees while a job runs: lines and progress bars on standard error, from the first process only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tqdm import tqdm


def first_process() -> bool:
    """Whether this process is the one that writes and speaks (the others are its helpers, one per device)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


class Show:
    """Lines and bars, or nothing when `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet or not first_process()

    def line(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    def bar(self, what: str, unit: str) -> Callable[..., None]:
        """A function (done, total, note="") that draws a bar, made at its first call and closed when done == total."""
        bars: list[tqdm] = []

        def update(done: int, total: int, note: str = "") -> None:
            if self.quiet:
                return
            if not bars:
                bars.append(tqdm(total=total, desc=what, unit=unit, initial=0, dynamic_ncols=True, leave=True))
            bars[0].set_postfix_str(note, refresh=False)
            bars[0].update(done - bars[0].n)
            if done >= total:
                bars[0].close()

        return update
