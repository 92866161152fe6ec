"""Several processes on this machine that share the jobs of a grid. The folder's locks divide the work among them."""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import RequestError, WorkError
from . import locks, work
from .record import Job


@dataclass(frozen=True)
class Processes:
    """So many processes; 1: this one. RequestError for none."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RequestError(f"workers is {self.count}, but must be 1 or more: give another value.")

    def share(
        self,
        jobs: Sequence[Job],
        out: Path,
        fit: Callable[..., Any] | None,
        begun: float,
        say: Callable[[str], None],
    ) -> None:
        """Does what is left of the jobs.

        A job whose process was killed, by the system for its memory for example, has failed; another process takes
        the rest. WorkError where processes end before they begin a job.
        """
        if self.count == 1:
            work.work(jobs, out, fit, begun, say=say)
            return
        # Not forked: a process that has used torch's threads or a GPU cannot be.
        context = multiprocessing.get_context("spawn")
        while left := [job for job in jobs if work.is_open(job, out, begun)]:
            started = {}
            for _ in range(min(self.count, len(left))):
                owner = uuid.uuid4().hex
                process = context.Process(
                    target=work.work, args=(left, out, fit, begun), kwargs={"owner": owner, "say": say}
                )
                process.start()
                started[owner] = process
            try:
                for process in started.values():
                    process.join()
            except BaseException:  # Ctrl-C: what they were at is continued at the next start
                for process in started.values():
                    process.terminate()
                    process.join()
                raise
            lost = [_give_up(left, out, owner, process.exitcode or 0, say) for owner, process in started.items()]
            if not any(lost) and all(work.is_open(job, out, begun) for job in left):
                codes = {process.exitcode for process in started.values()}
                raise WorkError(
                    f"The {len(started)} worker processes ended before they did a run (exit code "
                    f"{', '.join(map(str, codes))}): start with workers=1, which says why."
                )


def _give_up(jobs: Sequence[Job], out: Path, owner: str, code: int, say: Callable[[str], None]) -> bool:
    """Notes as failed what a dead process was at; whether it was at one."""
    names = locks.left_by(out / "locks", owner)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    reason = f"The process that did it {how}: look for a lack of memory, or use fewer workers."
    for job in (job for job in jobs if job.key in names):
        work.give_up(job, out, reason, say)
    return bool(names)
