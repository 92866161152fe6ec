"""A Ray cluster that shares the jobs of a grid: each job is a task, on one GPU where there are some, else on CPUs.

Ray chooses the machine, replaces workers that die and repeats their tasks; the folder says, as always, what is done and
from where a fit goes on. So all machines have to see the folder, and the same data.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..common.errors import RequestError, VitgraftError, WorkError
from . import locks, provenance, work
from .record import Job

RETRIES = 3  # of a run whose worker died: enough for machines that go, and an end for a run that kills each of them
PAUSE = 1.0  # seconds between two looks at the lock that a dead worker has left
ANSWER = 5.0  # seconds for a cluster to answer
STORE = 80 << 20  # bytes for what tasks exchange, about the least that Ray takes: ours exchange lines of text


@dataclass(frozen=True)
class OnRay:
    """The workers of a Ray cluster.

    address: HOST:PORT of its head, or "auto" for the one that runs on this machine; empty: what RAY_ADDRESS says, or,
    if nothing, a cluster of this machine alone that ends with the work. cpus: of one run. Raises RequestError for no
    CPUs, and where Ray is not installed.
    """

    address: str = ""
    cpus: int = 1

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise RequestError(f"A run on Ray was to have {self.cpus} CPUs, but needs 1 or more: give another value.")
        if importlib.util.find_spec("ray") is None:
            raise RequestError(
                "The runs were to be shared by Ray, which is not installed: install vitgraft[ray], or give a number "
                "of workers on this machine."
            )

    def share(
        self,
        jobs: Sequence[Job],
        out: Path,
        fit: Callable[..., Any] | None,
        begun: float,
        say: Callable[[str], None],
    ) -> None:
        """Does what is left of the jobs on the cluster.

        A run whose worker died at every try has failed. RequestError where there is no such cluster or none of its
        machines is large enough; WorkError where a worker cannot work: it does not see the folder or the data.
        """
        import ray

        if not any(work.is_open(job, out, begun) for job in jobs):
            return
        with _connected(self.address), tempfile.NamedTemporaryFile(dir=out.absolute(), prefix=".ray-") as token:
            task: Any = ray.remote(_do).options(max_retries=RETRIES, **self._place(say))

            def started(some: Iterable[Job]) -> dict[Any, Job]:
                left = [job for job in some if work.is_open(job, out, begun)]
                return {task.remote(job, token.name, fit, begun, os.getcwd()): job for job in left}

            running = started(jobs)
            try:
                while running:
                    [ended], _ = ray.wait(list(running))
                    fitted = running.pop(ended)
                    _tell(ended, fitted, out, say)
                    running |= started(job for job in jobs if job.source == fitted.key)
            finally:  # Ctrl-C, or a worker that cannot work: what the others were at is continued at the next start
                for under_way in running:
                    ray.cancel(under_way, force=True)
                if running:
                    ray.wait(list(running), num_returns=len(running), timeout=ANSWER)

    def _place(self, say: Callable[[str], None]) -> dict[str, int]:
        """What a run asks of its machine; RequestError where none has that."""
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {"CPU": self.cpus}
        if any(machine.get("GPU") for machine in machines):
            wanted["GPU"] = 1
        places = sum(min(int(machine.get(what, 0) // n) for what, n in wanted.items()) for machine in machines)
        if not places:
            raise RequestError(
                f"A run was to have {' and '.join(f'{n} {what}' for what, n in wanted.items())}, but the machines of "
                f"the Ray cluster have {', '.join(str(int(each.get('CPU', 0))) for each in machines)} CPU: ask for "
                "fewer."
            )
        say(f"ray       {places} runs at a time, machines: {len(machines)}")
        return {f"num_{what.lower()}s": n for what, n in wanted.items()}


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    address = address or os.environ.get("RAY_ADDRESS", "") or "local"
    own: dict[str, Any] = {}
    if address == "local":
        own = {"object_store_memory": STORE, "include_dashboard": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    elif address != "auto":
        _check_answers(address)
    try:
        # What workers print stays in Ray's own logs; what a run says comes back as its result.
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _nobody(address, str(error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """RequestError unless somebody answers there; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except (OSError, ValueError) as error:
        raise _nobody(address, str(error)) from error


def _nobody(address: str, reason: str) -> RequestError:
    return RequestError(
        f"A Ray cluster was expected at {address}, but none answered ({reason.strip().splitlines()[0]}): give the "
        "HOST:PORT that `ray start --head` says, or none for a cluster of this machine."
    )


def _tell(ended: Any, job: Job, out: Path, say: Callable[[str], None]) -> None:
    """Says what came of a task that has ended."""
    import ray
    from ray import exceptions

    try:
        for line in ray.get(ended):
            say(line)
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, VitgraftError):
            raise error.cause from None
        raise WorkError(
            f"A worker of the Ray cluster could not begin a run ({str(error.cause).strip().splitlines()[-1]}): install "
            "the same vitgraft on all machines."
        ) from error
    except exceptions.RayError as error:
        how = f"Its worker died {RETRIES + 1} times ({type(error).__name__})"
        work.give_up(job, out, f"{how}: look for a lack of memory, or for the reason in the logs of Ray.", say)


def _do(job: Job, token: str, fit: Callable[..., Any] | None, begun: float, folder: str) -> list[str]:
    """One job, in a worker; what it says. token: a file that the start keeps in OUT; folder: where it was started."""
    out, owner = Path(token).parent, Path(token).name
    if not Path(token).is_file():
        raise WorkError(
            f"A Ray worker on {platform.node()} was to write to {out}, but does not see that folder: choose an --out "
            "that all machines share."
        )
    _check_data(job)
    with suppress(OSError):  # a machine without it has no use for relative paths either, and the fit will say so
        os.chdir(folder)
    said: list[str] = []
    while not work.do(job, out, fit, begun, owner=owner, say=said.append):
        if said or not locks.is_left_by(out / "locks" / job.key, owner):
            break
        # A worker of this same start has died at it: its lock is free once the last of its processes has ended.
        time.sleep(PAUSE)
    return said


def _check_data(job: Job) -> None:
    """WorkError unless this machine sees the data that the job is about."""
    try:
        found = _digest(job.root)
    except RequestError:
        found = ""
    if found != job.digest:
        raise WorkError(
            f"A Ray worker on {platform.node()} was to read {job.root}, but {'other' if found else 'no'} data are "
            "there: name a --data that all machines share, or copy it to each of them."
        )


_digest = cache(provenance.data_digest)  # once for each process: the folders may hold many files
