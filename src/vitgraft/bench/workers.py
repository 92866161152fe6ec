"""Several processes on this machine that share the jobs of a grid. The folder's locks divide the work among them."""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import WorkError
from . import grid, locks
from .record import Job


def share(
    jobs: Sequence[Job],
    out: Path,
    fit: Callable[..., Any] | None,
    begun: float,
    workers: int,
    say: Callable[[str], None] | None,
) -> None:
    """Does what is left of the jobs with so many processes.

    A job whose process was killed, by the system for its memory for example, has failed; another process takes the
    rest. WorkError where processes end before they begin a job.
    """
    # Not forked: a process that has used torch's threads or a GPU cannot be.
    context = multiprocessing.get_context("spawn")
    while left := [job for job in jobs if _open(job, out, begun)]:
        started = {}
        for _ in range(min(workers, len(left))):
            owner = uuid.uuid4().hex
            process = context.Process(
                target=grid.work, args=(left, out, fit, begun), kwargs={"owner": owner, "say": say}
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
        lost = [_give_up(left, out, owner, process.exitcode or 0) for owner, process in started.items()]
        if not any(lost) and all(_open(job, out, begun) for job in left):
            codes = {process.exitcode for process in started.values()}
            raise WorkError(
                f"The {len(started)} worker processes ended before they did a run (exit code "
                f"{', '.join(map(str, codes))}): start with workers=1, which says why."
            )


def _open(job: Job, out: Path, begun: float) -> bool:
    """Whether a job is left to begin."""
    return not (grid.is_done(job, out) or grid.failed_since(job, out, begun) or locks.is_held(out / "locks" / job.key))


def _give_up(jobs: Sequence[Job], out: Path, owner: str, code: int) -> bool:
    """Notes as failed what a dead process was at; whether it was at one."""
    names = locks.left_by(out / "locks", owner)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    for job in (job for job in jobs if job.key in names):
        with locks.held(out / "locks" / job.key) as free:
            if free and not grid.is_done(job, out):  # nobody else has taken it over
                reason = f"The process that did it {how}: look for a lack of memory, or use fewer workers."
                grid.note_failure(job, out, reason)
    return bool(names)
