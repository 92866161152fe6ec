"""A suite, jobs and results for the tests of the benchmark; free of torch, so that processes start quickly."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vitgraft.bench.grid import Grid
from vitgraft.bench.record import Job, Record, of_result
from vitgraft.bench.suites import Suite, TaskOf

FINGERPRINT = "f" * 64


def task_of(name: str, group: str = "natural") -> TaskOf:
    return TaskOf(name, (), 3, group, "top-1 accuracy")


def suite_of(*tasks: TaskOf, name: str = "tiny") -> Suite:
    return Suite(name, "a suite for tests", "made up", tasks)


TINY = suite_of(task_of("pets"), task_of("svhn"), task_of("clevr", "structured"))


def make_data(root: Path, suite=TINY) -> dict[str, Path]:
    for task in suite.tasks:
        (root / task.name).mkdir(parents=True)
        (root / task.name / "train.txt").write_text(f"{task.name}.jpg 0\n")
    return {task.name: root / task.name for task in suite.tasks}


def make_grid(data, **changes: Any) -> Grid:
    given: dict[str, Any] = {"methods": {"linear": {}, "lora": {"rank": 4}}, "seeds": (0, 1)}
    given |= {"backbone": "vit.safetensors", "fingerprint": FINGERPRINT, "protocol": "strict"}
    return Grid(**{"suite": TINY, "data": data, **given, **changes})


def make_job(**changes: Any) -> Job:
    given: dict[str, Any] = {"suite": "tiny", "task": "pets", "protocol": "strict", "label": "lora", "method": "lora"}
    given |= {"arguments": {"rank": 4}, "settings": {"lr": 1e-3, "image_size": (32, 32)}, "seed": 0}
    given |= {"backbone": "vit.safetensors", "fingerprint": FINGERPRINT, "root": "/data/pets", "digest": "d" * 64}
    return Job(**{**given, "flags": [], **changes})


def result(value: float = 0.75, **changes: Any) -> dict[str, Any]:
    """What a fit leaves in result.json, as far as a record asks for it."""
    given = {
        "task": "classify",
        "head": {"name": "linear", "options": {}},
        "arguments": {"rank": 4},
        "backbone": {"name": "vit", "source": "made up", "fingerprint": FINGERPRINT},
        "metric": "top-1 accuracy",
        "value": value,
        "interval": [max(0.0, value - 0.1), min(1.0, value + 0.1)],
        "split": "test",
        "parameters": 1000,
        "head_parameters": 30,
        "backbone_parameters": 10**6,
        "seconds": 2.5,
        "protocol": {"lr": 0.001, "epochs": 30},
        "cost": {"peak_memory_bytes": 10**9, "gflops_per_picture": 1.5},
        "versions": {"torch": "2.0"},
    }
    return {**given, **changes}


def make_record(value: float = 0.75, told: dict[str, Any] | None = None, **of_job: Any) -> Record:
    made = of_result(make_job(**of_job), result(value, **(told or {})))
    return replace(made, commit="c" * 40, dirty=False)  # whatever the state of the checkout that is tested


# Fits: functions of this module, so that other processes can be asked for them.


def fit(root: str, *, out: Path, **options: Any) -> SimpleNamespace:
    """Leaves a line in calls.txt beside the data, and a value that follows from the seed."""
    with open(Path(root).parent / "calls.txt", "a") as file:  # a short line is appended whole
        file.write(f"{out.name} {os.getpid()}\n")
    return SimpleNamespace(result=result(0.5 + options["seed"] / 10))


def slow_fit(root: str, *, out: Path, **options: Any) -> SimpleNamespace:
    time.sleep(0.15)  # longer than a process waits for a lock
    return fit(root, out=out, **options)


def killed_fit(root: str, *, out: Path, **options: Any) -> SimpleNamespace:
    """The process dies at one of the runs, at once and without a word, as for lack of memory."""
    if options["method"] == "lora" and Path(root).name == "svhn":
        os.kill(os.getpid(), 9)
    return fit(root, out=out, **options)


def endless_fit(root: str, *, out: Path, **options: Any) -> SimpleNamespace:
    fit(root, out=out, **options)
    time.sleep(600)
    raise AssertionError("nobody killed it")


def calls(root: Path) -> list[str]:
    """The keys of the runs that were fitted, in order."""
    file = root / "calls.txt"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def counts(plan):
    """How many jobs of a plan are in each state."""
    return {state: len(getattr(plan, state)) for state in ("done", "running", "failed", "waiting")}


def wait_for(there, seconds: float = 60) -> None:
    """Waits until `there()`; an AssertionError if it takes too long."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
