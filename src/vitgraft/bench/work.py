"""One job of many: any number of processes, killed and started again at will, do each of them once.

OUT/records/KEY.json     a finished run; written last, whole
OUT/failures/KEY.json    a run that failed at its last try, with the reason
OUT/runs/KEY/            the run's own folder, from which a fit that was killed continues
OUT/locks/KEY            held by the process that does the run

Some tasks are only tested, with the model of another: such a run has no folder of its own but reads that of the fit,
and is begun once the fit has a record.
"""

from __future__ import annotations

import gc
import math
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import files
from ..common.errors import RequestError, VitgraftError, WorkError
from . import provenance, record
from .locks import held, is_held
from .record import Job

if TYPE_CHECKING:
    from .suites import Suite

FOLDERS = ("records", "failures", "runs", "locks")
Fit = Callable[..., Any]  # as vitgraft.fit: gives an object with `result`, the contents of result.json
Say = Callable[[str], None]


def silent(line: str) -> None:
    pass


def prepare(suite: Suite, out: str | Path) -> Path:
    """Makes the folders in which `do` works; RequestError where they hold records of another suite."""
    out = Path(out)
    files.check_folder(out)
    check(suite, out)
    for name in FOLDERS:
        # Not files.make_folder, which takes away what another process is about to write.
        try:
            (out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(f"{out / name} could not be made ({error.strerror}): choose another folder.") from error
    return out


def work(
    jobs: Sequence[Job], out: Path, fit: Fit | None, begun: float, *, owner: str = "", say: Say | None = None
) -> None:
    """Does, one after the other, each job that is not done, under way elsewhere, or failed since `begun` (seconds since
    1970). owner: what the locks say of who holds them."""
    for job in jobs:
        do(job, out, fit, begun, owner=owner, say=say)


def do(
    job: Job, out: Path, fit: Fit | None = None, begun: float = math.inf, *, owner: str = "", say: Say | None = None
) -> bool:
    """Does one job unless it is done, under way elsewhere, or failed since `begun`; whether it is done then.

    out: a folder that `prepare` made. Any number of processes may ask for the same job.
    """
    if is_done(job, out):
        return True
    with held(out / "locks" / job.key, owner) as free:
        if free and not is_done(job, out) and is_ready(job, out) and not failed_since(job, out, begun):
            _measure(job, out, fit or fit_here, say or silent)
        return is_done(job, out)


def _measure(job: Job, out: Path, fit: Fit, say: Say) -> None:
    failure, started = out / "failures" / f"{job.key}.json", time.monotonic()
    provenance.commit()  # as the code is now, not when the run has ended
    try:
        if job.source:
            result = test_here(job, out / "runs" / job.source)
        else:
            result = fit(job.root, out=out / "runs" / job.key, resume=True, quiet=True, **job.options()).result
        found = record.of_result(job, result)
    except Exception as error:
        reason = str(error) if isinstance(error, VitgraftError) else f"{type(error).__name__}: {error}"
        note_failure(job, out, reason, "".join(traceback.format_exception(error)))
        say(f"failed    {job.title}: {reason}")
        return
    path = out / "records" / f"{job.key}.json"
    record.write(found, path)
    for left in path.parent.glob(files.TEMPORARY.format(name=path.name, process="*")):
        left.unlink(missing_ok=True)  # of writers of this record that were killed; the lock says that none is left
    failure.unlink(missing_ok=True)
    say(f"done      {job.title}: {found.metric} {found.value:.4f}, {time.monotonic() - started:.0f} s")


def fit_here(root: str, *, backbone: str, **options: Any) -> Any:
    """vitgraft.fit with the backbone that the run before left loaded, and memory measured from here on."""
    import torch

    from ..training import fitting

    if torch.cuda.is_available():
        gc.collect()  # what the run before left is not this one's
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of this process begins anew
    return fitting.fit(root, backbone=_loaded(backbone), **options)


def test_here(job: Job, run: Path) -> dict[str, Any]:
    """The result of a run with what its model answers on the pictures of another task in the place of its own.

    A set may show some of the classes that the model knows: it answers with one of these (`measures.accuracy.among`).
    Raises WorkError where the run's folder is gone.
    """
    from ..adapters.run import Run

    if not (run / "result.json").is_file():
        raise WorkError(
            f"The model of {run} was to be tested, but that folder is gone: delete {run.parents[1] / 'records'}/"
            f"{run.name}.json, and the same command fits it again."
        )
    made = Run(run, _loaded(job.backbone))
    result = made.result
    found = made.evaluate(job.root, result["split"], shown_only=True, skip_bad=job.settings.get("skip_bad", False))
    return {**result, "value": found.value, "interval": found.interval, "numbers": found.numbers, "split": found.split}


@lru_cache(maxsize=1)
def _loaded(name: str) -> Any:
    from ..backbones import Backbone

    return Backbone.load(name)


def is_done(job: Job, out: Path) -> bool:
    """Whether there is a record of the job. One that was cut off is none: the run is repeated, the record replaced."""
    return _has_record(job.key, out)


def is_ready(job: Job, out: Path) -> bool:
    """Whether the model that the job tests is there; a fit can always begin."""
    return not job.source or _has_record(job.source, out)


def _has_record(key: str, out: Path) -> bool:
    path = out / "records" / f"{key}.json"
    if not path.is_file():
        return False
    try:
        record.read(path)
    except RequestError:
        return False
    return True


def check(suite: Suite, out: Path) -> None:
    """RequestError where `out` holds records of another suite."""
    for path in sorted((out / "records").glob("*.json")):
        try:
            found = record.read(path)
        except RequestError:
            continue  # damaged: it is repeated, or said where the table is read
        record.check_suite(found.job, suite, path)


def note_failure(job: Job, out: Path, reason: str, trace: str = "") -> None:
    """Writes down why a job failed."""
    told = {"key": job.key, "reason": reason, "time": time.time(), "job": asdict(job), "traceback": trace}
    circumstances = {"versions": provenance.versions(), "machine": provenance.machine()}
    files.write_json(out / "failures" / f"{job.key}.json", {**told, **circumstances})


def failure_of(out: Path, key: str) -> dict[str, Any] | None:
    """What is noted of a job that failed at its last try; None where nothing is."""
    path = out / "failures" / f"{key}.json"
    if not path.is_file():
        return None
    try:
        told = files.read_json(path)
        return told if "reason" in told and "time" in told else None
    except (RequestError, TypeError):
        return None  # cut off: as if it had never been tried


def failed_since(job: Job, out: Path, begun: float) -> bool:
    """Whether the job was tried and failed at or after `begun` (seconds since 1970)."""
    told = failure_of(out, job.key)
    return told is not None and told["time"] >= begun


def is_open(job: Job, out: Path, begun: float) -> bool:
    """Whether a job is left to begin: ready, and neither done, nor failed since `begun`, nor under way in a living
    process."""
    settled = is_done(job, out) or failed_since(job, out, begun) or is_held(out / "locks" / job.key)
    return is_ready(job, out) and not settled


def give_up(job: Job, out: Path, reason: str, say: Say) -> None:
    """Notes as failed a job whose worker is dead, unless another has taken it over or done it."""
    with held(out / "locks" / job.key) as free:
        if free and not is_done(job, out):
            note_failure(job, out, reason)
            say(f"failed    {job.title}: {reason}")
