"""A grid is done once, whatever dies meanwhile and however many processes are at it."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers_bench import (
    FINGERPRINT,
    TINY,
    calls,
    counts,
    endless_fit,
    fit,
    killed_fit,
    make_data,
    make_grid,
    result,
    slow_fit,
    suite_of,
    task_of,
    wait_for,
)

from vitgraft.bench import locks, protocols, record, work
from vitgraft.bench.grid import plan, run
from vitgraft.common.errors import RequestError, WorkError

spawn = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def no_backbone_is_left():
    yield
    work._loaded.cache_clear()


def done_calls(out):
    return calls(out.parent / "data")


# What there is to do.


def test_order_and_keys_are_stable(grid, data, tmp_path):
    titles = [job.title for job in grid.jobs]
    assert titles[:3] == ["linear, pets, seed 0", "lora, pets, seed 0", "linear, svhn, seed 0"]
    assert len(titles) == len(set(titles)) == 2 * 3 * 2
    assert [job.seed for job in grid.jobs] == [0] * 6 + [1] * 6  # a whole table first, then more seeds
    moved = make_data(tmp_path / "moved")  # the same data elsewhere, told in another order
    again = make_grid(dict(reversed(moved.items())), backbone="/elsewhere/vit.safetensors")
    assert [job.key for job in again.jobs] == [job.key for job in grid.jobs]


def test_what_wins_over_what(data):
    def options(method, task):
        return {"lr": 1e-2, "epochs": 100, "scale": 0.1 if (method, task) == ("lora", "svhn") else 1.0}

    methods = {"LoRA 4": {"method": "lora", "rank": 4, "lr": 1e-3}}
    variants = {"": {}, "long": {"epochs": 200}}
    jobs = make_grid(data, methods=methods, variants=variants, options=options, seeds=(7,), flags=["flatters"]).jobs
    on_svhn = {job.label: job for job in jobs if job.task == "svhn"}
    assert list(on_svhn) == ["LoRA 4", "LoRA 4 long"]
    assert on_svhn["LoRA 4"].settings == {"lr": 1e-3, "epochs": 100}
    assert on_svhn["LoRA 4"].arguments == {"rank": 4, "scale": 0.1}
    assert on_svhn["LoRA 4 long"].settings == {"lr": 1e-3, "epochs": 200}
    assert {job.method for job in jobs} == {"lora"}
    assert {(job.seed, *job.flags) for job in jobs} == {(7, "flatters")}


def test_a_protocol_says_how_pictures_are_prepared(tmp_path, out):
    suite = suite_of(task_of("cifar"), task_of("dtd"))
    given = {}

    def look(root, *, method, **options):
        given[method, Path(root).name] = [options.get("normalisation"), options.get("augmentation")]
        return SimpleNamespace(result=result())

    data = make_data(tmp_path / "data", suite)
    run(make_grid(data, suite=suite, options=protocols.find("sct").options, seeds=(0,)), out, fit=look)
    for method in ("linear", "lora"):
        assert given[method, "cifar"] == ["imagenet", None]
        assert given[method, "dtd"] == ["imagenet", "randaugment"]


def test_some_of_the_tasks(data):
    jobs = make_grid({name: data[name] for name in ("clevr", "pets")}).jobs
    assert list(dict.fromkeys(job.task for job in jobs)) == ["pets", "clevr"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data": {"petz": "."}}, "There is no task 'petz' in the suite tiny.* Did you mean 'pets'"),
        ({"seeds": ()}, "one or more seeds, but none came"),
        ({"methods": {}}, "one or more methods, but none came"),
    ],
)
def test_no_grid(change, sentence, data):
    with pytest.raises(RequestError, match=sentence):
        make_grid(**{"data": data, **change})


def test_the_same_run_twice_is_refused(data):
    with pytest.raises(RequestError, match="'lora, pets, seed 0' and 'again, pets, seed 0' are the same run"):
        _ = make_grid(data, methods={"lora": {"rank": 4}, "again": {"method": "lora", "rank": 4.0}}).jobs
    with pytest.raises(RequestError, match="are the same run"):
        _ = make_grid(data, seeds=(0, 0)).jobs


def test_what_the_grid_sets_itself(data):
    with pytest.raises(RequestError, match="'lora' on pets sets seed"):
        _ = make_grid(data, methods={"lora": {"seed": 3}}).jobs


# Doing it.


def test_everything_once_in_order(grid, out):
    assert counts(plan(grid, out)) == {"done": 0, "running": 0, "failed": 0, "waiting": 12}
    assert not out.exists()  # to plan changes nothing
    said = []
    assert counts(run(grid, out, fit=fit, say=said.append)) == {"done": 12, "running": 0, "failed": 0, "waiting": 0}
    assert done_calls(out) == [job.key for job in grid.jobs]
    assert len(said) == 12
    for job in grid.jobs:
        found = record.read(out / "records" / f"{job.key}.json", TINY)
        assert found.job == job
        assert found.value == 0.5 + job.seed / 10


def test_what_has_a_record_is_skipped(grid, out):
    run(replace(grid, seeds=(1,)), out, fit=fit)
    run(grid, out, fit=fit)
    run(grid, out, fit=fit)
    assert Counter(done_calls(out)) == Counter(job.key for job in grid.jobs)


def test_what_a_fit_is_given(grid, out, data):
    given = []

    def look(root, **options):
        given.append((root, options))
        return SimpleNamespace(result=result())

    run(replace(grid, methods={"lora": {"rank": 4, "lr": 1e-3}}), out, fit=look)
    root, options = given[0]
    assert root == str(data["pets"].resolve())
    assert options.pop("out").parent == out / "runs"
    asked = {"method": "lora", "rank": 4, "lr": 1e-3, "seed": 0, "backbone": "vit.safetensors"}
    assert options == {**asked, "resume": True, "quiet": True}


@pytest.mark.parametrize("at", range(1, 13, 3))
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_stopped_at_any_run(error, at, grid, out):
    seen = []

    def stopped(root, **options):
        seen.append(options)
        if len(seen) == at:
            raise error
        return fit(root, **options)

    with pytest.raises(error):
        run(grid, out, fit=stopped)
    assert counts(plan(grid, out)) == {"done": at - 1, "running": 0, "failed": 0, "waiting": 13 - at}
    run(grid, out, fit=fit)
    assert done_calls(out) == [job.key for job in grid.jobs]  # each once, and the one that was stopped goes on first


def test_failing_runs_are_listed_and_tried_again(grid, out):
    def failing(root, *, method, **options):
        if root.endswith("svhn") and method == "lora":
            raise WorkError("The loss is not finite: give a smaller lr.")
        if root.endswith("clevr") and method == "linear":
            raise ZeroDivisionError("division by zero")
        return fit(root, **options)

    found = run(grid, out, fit=failing)
    assert counts(found) == {"done": 8, "running": 0, "failed": 4, "waiting": 0}
    assert found.lines()[0] == "12 runs: 8 done, 0 running, 4 failed, 0 waiting"
    assert "lora, svhn, seed 0" in found.lines()[1]
    assert found.lines()[1].endswith("The loss is not finite: give a smaller lr.")
    assert found.lines()[2].endswith("ZeroDivisionError: division by zero")
    told = json.loads((out / "failures" / f"{found.failed[1].key}.json").read_text())
    assert "in failing" in told["traceback"]
    assert told["job"]["task"] == "clevr"
    assert counts(run(grid, out, fit=fit)) == {"done": 12, "running": 0, "failed": 0, "waiting": 0}
    assert not list((out / "failures").iterdir())


@pytest.mark.parametrize(
    "wrong", [{"value": None}, {"backbone": {"fingerprint": "0", "source": ""}}, {"seconds": None}]
)
def test_result_that_is_none_is_a_failure(wrong, grid, out):
    found = run(grid, out, fit=lambda root, **options: SimpleNamespace(result=result() | wrong))
    assert counts(found) == {"done": 0, "running": 0, "failed": 12, "waiting": 0}


def test_record_cut_off_by_another_process(grid, out):
    run(grid, out, fit=fit)
    job = grid.jobs[5]
    path = out / "records" / f"{job.key}.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    left = path.with_name(f".{path.name}.4711.tmp")  # of a process that was killed while it wrote
    left.write_bytes(whole[:100])
    assert plan(grid, out).waiting == (job,)
    run(grid, out, fit=fit)
    assert done_calls(out)[12:] == [job.key]
    assert record.read(path).job == job
    assert not left.exists()


def test_failure_cut_off(grid, out):
    run(grid, out, fit=lambda root, **options: 1 / 0)
    for path in (out / "failures").iterdir():
        path.write_bytes(path.read_bytes()[:30])
    assert counts(plan(grid, out)) == {"done": 0, "running": 0, "failed": 0, "waiting": 12}
    assert counts(run(grid, out, fit=fit))["done"] == 12


def test_folder_of_another_suite(grid, out, tmp_path):
    run(grid, out, fit=fit)
    other = replace(grid, suite=replace(TINY, name="other"))
    for ask in (plan, run):
        with pytest.raises(RequestError, match="is a record of the suite tiny, but other was asked for"):
            ask(other, out)


def test_folder_that_is_a_file(grid, out):
    out.write_text("")
    with pytest.raises(RequestError, match="is a file"):
        run(grid, out, fit=fit)


# Several processes.


def start(grid, out, how, **options):
    process = spawn.Process(target=run, args=(grid, out), kwargs={"fit": how, **options})
    process.start()
    return process


def test_two_processes_never_do_the_same(data, out):
    grid = make_grid(data, seeds=range(4))
    processes = [start(grid, out, slow_fit) for _ in range(2)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert Counter(done_calls(out)) == Counter({job.key: 1 for job in grid.jobs})
    pids = {line.split()[1] for line in (out.parent / "data" / "calls.txt").read_text().splitlines()}
    assert len(pids) == 2, "one of them had nothing to do, so nothing was shown"
    assert counts(plan(grid, out))["done"] == 24


def test_dead_process_is_taken_over(grid, out):
    first = grid.jobs[0]
    process = start(grid, out, endless_fit)
    wait_for(lambda: done_calls(out))
    try:
        assert plan(grid, out).running == (first,)
        beside = run(grid, out, fit=fit)  # another process works beside it, and leaves it its own
        assert counts(beside) == {"done": 11, "running": 1, "failed": 0, "waiting": 0}
    finally:
        process.kill()
        process.join()
    assert plan(grid, out).waiting == (first,)
    assert counts(run(grid, out, fit=fit))["done"] == 12
    assert Counter(done_calls(out)) == Counter(job.key for job in grid.jobs) + Counter([first.key])


def test_killed_again_and_again(grid, out):
    """SIGKILL at moments that nobody chose; what was done stays done."""
    for kills in range(1, 4):
        process = start(grid, out, slow_fit)
        wait_for(lambda least=3 * kills: len(done_calls(out)) >= least)
        process.kill()
        process.join()
        assert process.exitcode == -9
    assert counts(run(grid, out, fit=fit))["done"] == 12
    for job in grid.jobs:
        assert record.read(out / "records" / f"{job.key}.json").job == job
    repeated = Counter(done_calls(out)) - Counter(job.key for job in grid.jobs)
    assert repeated.total() <= 3  # at most what was under way at each kill
    assert sorted(path.suffix for path in (out / "records").iterdir()) == [".json"] * 12


def test_lock_is_free_while_a_fork_of_the_dead_lives(out):
    """Processes that decode pictures are forked in a run, hold its open files, and may outlive it."""
    out.mkdir()
    with locks.held(out / "lock") as free:
        assert free
        sleeper = os.fork()
        if sleeper == 0:
            time.sleep(60)
            os._exit(0)
        assert locks.is_held(out / "lock")
    try:
        assert not locks.is_held(out / "lock")
    finally:
        os.kill(sleeper, 9)
        os.waitpid(sleeper, 0)


def test_looking_does_not_take_a_lock_away(out):
    """`plan` holds a free lock for an instant: a run that begins just then waits for it."""
    out.mkdir()
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a+b'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.readline(); time.sleep(0.03)"
    )
    words = [sys.executable, "-c", code, str(out / "lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with locks.held(out / "lock") as free:
            assert not free
        other.stdin.write("\n")
        other.stdin.flush()
        with locks.held(out / "lock") as free:
            assert free


def test_failed_elsewhere_is_not_tried_again_in_this_start(grid, out):
    begun = time.time()
    run(grid, out, fit=lambda root, **options: 1 / 0)
    for job in grid.jobs:
        assert not work.do(job, out, fit, begun)
    assert not done_calls(out)
    assert all(work.do(job, out, fit, time.time()) for job in grid.jobs)


def test_workers(data, out):
    grid = make_grid(data, seeds=range(3))
    assert counts(run(grid, out, fit=slow_fit, workers=2))["done"] == 18
    assert Counter(done_calls(out)) == Counter({job.key: 1 for job in grid.jobs})


def test_worker_that_is_killed(grid, out):
    found = run(grid, out, fit=killed_fit, workers=2)
    assert counts(found) == {"done": 10, "running": 0, "failed": 2, "waiting": 0}
    assert {job.title for job in found.failed} == {"lora, svhn, seed 0", "lora, svhn, seed 1"}
    assert all("was killed by signal 9" in reason for reason in found.reasons.values())
    assert Counter(done_calls(out)) == Counter(job.key for job in found.done)
    assert counts(run(grid, out, fit=fit, workers=2))["done"] == 12


def test_one_backbone_for_all_runs(data, out, monkeypatch):
    """vitgraft.fit gets a loaded backbone, which runs of one process share."""
    from vitgraft.backbones import Backbone
    from vitgraft.training import fitting

    loads, given = [], []
    monkeypatch.setattr(Backbone, "load", lambda name: loads.append(name) or f"loaded {name}")
    work._loaded.cache_clear()

    def look(root, **options):
        given.append(options)
        return SimpleNamespace(result=result())

    monkeypatch.setattr(fitting, "fit", look)
    assert counts(run(make_grid(data), out))["done"] == 12
    assert loads == ["vit.safetensors"]
    assert {options["backbone"] for options in given} == {"loaded vit.safetensors"}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux only")
def test_memory_is_measured_for_each_run(data, out, monkeypatch):
    """The peak that the operating system keeps for a process is not that of a run that came before."""
    import torch

    from vitgraft.backbones import Backbone
    from vitgraft.engine import cost
    from vitgraft.training import fitting

    monkeypatch.setattr(Backbone, "load", lambda name: name)
    work._loaded.cache_clear()

    def hungry(root, *, method, **options):
        room = bytearray(b"1" * (400 << 20)) if method == "linear" else b""
        spent = {"peak_memory_bytes": cost.peak_memory(torch.device("cpu"))}
        del room
        return SimpleNamespace(result=result(cost=spent))

    monkeypatch.setattr(fitting, "fit", hungry)
    grid = make_grid({"pets": data["pets"]}, seeds=(0,))
    run(grid, out)
    linear, lora = (record.read(out / "records" / f"{job.key}.json").peak_memory for job in grid.jobs)
    assert linear - lora > 300 << 20


def exits(root, **options):
    sys.exit(0)


def test_worker_that_leaves(data, out):
    grid = make_grid(data, seeds=(0,), methods={"linear": {}})
    found = run(grid, out, fit=exits, workers=2)
    assert counts(found)["failed"] == 3
    assert "ended with exit code 0" in found.reasons[found.failed[0].key]


def test_no_workers(grid, out):
    with pytest.raises(RequestError, match="workers is 0, but must be 1 or more"):
        run(grid, out, fit=fit, workers=0)


def test_neither_plan_nor_run_wait_for_torch(data, out):
    code = (
        "import sys; from pathlib import Path; import helpers_bench as h; from vitgraft.bench import grid, reading; "
        "g = h.make_grid({n: Path(sys.argv[1]) / n for n in ('pets', 'svhn', 'clevr')}); "
        "grid.run(g, sys.argv[2], fit=h.fit); assert 'torch' not in sys.modules"
    )
    here = os.path.dirname(os.path.dirname(__file__))
    subprocess.run([sys.executable, "-c", code, str(data["pets"].parent), str(out)], cwd=here, check=True)
    assert len(list((out / "records").iterdir())) == 12
    assert FINGERPRINT in next((out / "records").iterdir()).read_text()
