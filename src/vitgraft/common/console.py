"""What a person sees while a job runs: lines and progress bars on standard error, from the first process only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm


def first_process() -> bool:
    """Whether this process is the one that writes and speaks (the others are its helpers, one per device)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


# As tqdm's own, but with a rate of pictures or steps per second even where it is below one.
FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Console:
    """Lines and bars, or nothing when `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet or not first_process()
        self._open: list[tqdm] = []

    def line(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    def note(self, text: str) -> None:
        """What was guessed, or is odd."""
        self.line(f"note      {text}")

    def skipped(self, bad: list[tuple[Path, str]]) -> None:
        """Bad pictures that were left out, with the reasons."""
        for path, reason in bad:
            self.line(f"skipped   {path}: {reason}")

    def bar(self, what: str, unit: str) -> Callable[..., None]:
        """A function (done, total, note="", what=what) that draws a bar: made at its first call, closed when done."""
        begun = time.time()
        bars: list[tqdm] = []

        def update(done: int, total: int, note: str = "", what: str = what) -> None:
            if self.quiet:
                return
            if not bars:
                every = 0.1 if sys.stderr.isatty() else 10.0  # a log file wants a line now and then, not ten a second
                bar = tqdm(
                    desc=what, total=total, unit=f" {unit}", dynamic_ncols=True, mininterval=every, bar_format=FORMAT
                )
                bar.start_t = bar.last_print_t = begun
                bars.append(bar)
                self._open.append(bar)
            bars[0].set_description(what, refresh=False)
            bars[0].set_postfix_str(note, refresh=False)
            bars[0].update(done - bars[0].n)
            if done >= total:
                bars[0].close()

        return update

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends every bar where it stands, so that what is printed next begins a line of its own."""
        while self._open:
            self._open.pop().close()
