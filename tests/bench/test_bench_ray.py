"""The same grid on a Ray cluster of two machines, one of which dies."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from helpers_bench import calls, counts, fit, killed_fit, make_data, make_grid, suite_of, task_of, wait_for

from vitgraft.bench import locks, on_ray, work
from vitgraft.bench.grid import plan, run
from vitgraft.bench.on_ray import OnRay
from vitgraft.common.errors import RequestError, WorkError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install vitgraft[ray]")
spawn = multiprocessing.get_context("spawn")
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
# A machine that is gone is missed after a second, not after half a minute.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    """Workers find this module, and nobody is told of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        here = os.path.dirname(__file__)
        for folder in (here, os.path.dirname(here)):
            patch.setenv("PYTHONPATH", folder, prepend=os.pathsep)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster(surroundings):
    """One node that only coordinates, for those that work; all on this machine."""
    from ray.cluster_utils import Cluster

    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


@pytest.fixture
def two(cluster):
    """The cluster with two nodes that work."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(**NODE)
    cluster.wait_for_nodes(timeout=60)  # those that a test before has removed are missed, too
    return OnRay(cluster.address)


# Fits, in processes of the cluster.


def on_a_node(root, *, out, **options):
    """Leaves the node's name beside the data; long enough that both nodes have something to do."""
    with open(Path(root).parent / "nodes.txt", "a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()}\n")
    time.sleep(0.3)
    return fit(root, out=out, **options)


def stuck_once(root, *, out, **options):
    """The first run never ends, until its machine is lost; it says where it is."""
    here = Path(root).parent / "stuck.txt"
    try:
        with open(here, "x") as file:
            file.write(ray.get_runtime_context().get_node_id())
    except FileExistsError:
        return fit(root, out=out, **options)
    fit(root, out=out, **options)
    time.sleep(600)


def failing(root, *, method, **options):
    if method == "lora" and root.endswith("svhn"):
        raise WorkError("The loss is not finite: give a smaller lr.")
    return fit(root, **options)


def with_gpu(root, *, out, **options):
    with open(Path(root).parent / "gpus.txt", "a") as file:
        file.write(f"{os.environ['CUDA_VISIBLE_DEVICES']}\n")
    time.sleep(0.5)
    return fit(root, out=out, **options)


def never_ends(root, *, out, **options):
    fit(root, out=out, **options)
    time.sleep(600)


def interruptible(*given, **options):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in its background ignores it
    run(*given, **options)


# What becomes of the runs.


def test_both_nodes_do_each_run_once(two, grid, out):
    said = []
    assert counts(run(grid, out, fit=on_a_node, workers=two, say=said.append))["done"] == 12
    assert Counter(calls(out.parent / "data")) == Counter(job.key for job in grid.jobs)
    nodes = (out.parent / "data" / "nodes.txt").read_text().split()
    assert len(set(nodes)) == 2
    assert said[0] == "ray       2 runs at a time, machines: 3"
    assert sorted(line.split()[0] for line in said[1:]) == ["done"] * 12
    run(grid, out, fit=on_a_node, workers=two)  # nothing is left
    assert len(calls(out.parent / "data")) == 12
    assert not list(out.glob(".ray-*"))


def test_failing_run_does_not_stop_the_others(two, grid, out):
    found = run(grid, out, fit=failing, workers=two)
    assert counts(found) == {"done": 10, "running": 0, "failed": 2, "waiting": 0}
    assert set(found.reasons.values()) == {"The loss is not finite: give a smaller lr."}
    assert counts(run(grid, out, fit=fit, workers=two))["done"] == 12


def test_lost_machine(two, cluster, grid, out):
    """A node is killed in the middle of a run: the run is repeated on the other one."""
    stuck = out.parent / "data" / "stuck.txt"
    process = spawn.Process(target=run, args=(grid, out), kwargs={"fit": stuck_once, "workers": two})
    process.start()
    try:
        wait_for(lambda: stuck.is_file() and stuck.read_text() and len(calls(out.parent / "data")) > 3)
        [lost] = [node for node in cluster.worker_nodes if node.node_id == stuck.read_text()]
        cluster.remove_node(lost, allow_graceful=False)
        process.join(120)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
    assert counts(plan(grid, out)) == {"done": 12, "running": 0, "failed": 0, "waiting": 0}
    done = Counter(calls(out.parent / "data"))
    assert set(done) == {job.key for job in grid.jobs}
    assert sorted(done.values()) == [1] * 11 + [2]


def test_worker_that_dies_every_time(two, grid, out, monkeypatch):
    monkeypatch.setattr(on_ray, "RETRIES", 1)
    said = []
    found = run(grid, out, fit=killed_fit, workers=two, say=said.append)
    assert counts(found) == {"done": 10, "running": 0, "failed": 2, "waiting": 0}
    assert {job.title for job in found.failed} == {"lora, svhn, seed 0", "lora, svhn, seed 1"}
    assert all("worker died 2 times" in reason for reason in found.reasons.values())
    assert [line.split()[0] for line in said].count("failed") == 2
    assert counts(run(grid, out, fit=fit, workers=two))["done"] == 12


def test_lock_of_a_dead_worker_is_waited_for(grid, out):
    """A process that a dead worker left behind keeps its lock for a while; the run is repeated when it has gone."""
    job = grid.jobs[0]
    work.prepare(grid.suite, out)
    token = out / ".ray-token"
    token.touch()
    code = "import sys; from pathlib import Path; from vitgraft.bench import locks; "
    code += "l = locks.held(Path(sys.argv[1]), sys.argv[2]); l.__enter__(); "
    code += "import time, os; print('held', flush=True); time.sleep(1.5); os._exit(9)"
    words = [sys.executable, "-c", code, str(out / "locks" / job.key), token.name]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as dead:
        assert dead.stdout.readline() == "held\n"
        [line] = on_ray._do(job, str(token), fit, time.time(), os.getcwd())
    assert line.startswith("done")
    with locks.held(out / "locks" / grid.jobs[1].key, "somebody else"):  # that is another start's: left to it
        assert on_ray._do(grid.jobs[1], str(token), fit, time.time(), os.getcwd()) == []


def test_ctrl_c(two, grid, out):
    process = spawn.Process(target=interruptible, args=(grid, out), kwargs={"fit": never_ends, "workers": two})
    process.start()
    try:
        wait_for(lambda: len(calls(out.parent / "data")) == 2)
        assert counts(plan(grid, out)) == {"done": 0, "running": 2, "failed": 0, "waiting": 10}
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 1  # the traceback of a KeyboardInterrupt
    finally:
        process.kill()
        process.join()
    wait_for(lambda: counts(plan(grid, out)) == {"done": 0, "running": 0, "failed": 0, "waiting": 12}, 20)
    assert counts(run(grid, out, fit=fit, workers=two))["done"] == 12


def test_one_gpu_for_each_run(cluster, two, data, out):
    """Ray is told of GPUs that are none, and hands out their numbers."""
    grid = make_grid({"pets": data["pets"]})
    node = cluster.add_node(**{**NODE, "num_cpus": 2}, num_gpus=2)
    try:
        said = []
        assert counts(run(grid, out, fit=with_gpu, workers=two, say=said.append))["done"] == 4
    finally:
        cluster.remove_node(node)
    assert said[0].startswith("ray       2 runs at a time")
    assert set((out.parent / "data" / "gpus.txt").read_text().split()) == {"0", "1"}


# What is asked for in vain.


def test_folder_or_data_that_a_worker_does_not_see(two, grid, out, data):
    job = grid.jobs[0]
    with pytest.raises(WorkError, match=f"was to write to {out}, but does not see that folder"):
        on_ray._do(job, str(out / ".ray-token"), fit, time.time(), ".")
    _ = grid.jobs  # their digests are of the data as they are now
    (data["svhn"] / "train.txt").write_text("other.jpg 1\n")
    with pytest.raises(WorkError, match=r"svhn, but other data are there: name a --data"):
        run(grid, out, fit=fit, workers=two)
    assert not any("svhn" in job.task for job in plan(grid, out).done)
    assert not plan(grid, out).failed


def test_no_machine_is_large_enough(two, grid, out):
    with pytest.raises(
        RequestError, match=r"was to have 9 CPU, but the machines of the Ray cluster have [01], [01], [01] CPU"
    ):
        run(grid, out, fit=fit, workers=OnRay(two.address, cpus=9))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "host.invalid:6379"])
def test_no_cluster(address, grid, out):
    begun = time.monotonic()
    with pytest.raises(RequestError, match=f"A Ray cluster was expected at {address}, but none answered"):
        run(grid, out, fit=fit, workers=OnRay(address))
    assert time.monotonic() - begun < 30


def test_address_of_the_environment(grid, out, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RequestError, match=r"expected at 127\.0\.0\.1:1"):
        run(grid, out, fit=fit, workers=OnRay())


def test_cluster_of_its_own(grid, out, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert counts(run(grid, out, fit=fit, workers=OnRay()))["done"] == 12
    assert not ray.is_initialized()


def test_bad_requests(monkeypatch):
    with pytest.raises(RequestError, match="was to have 0 CPUs"):
        OnRay(cpus=0)
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"not installed: install vitgraft\[ray\]"):
        OnRay()


def test_a_test_begins_once_its_fit_is_done(tmp_path, out, two):
    """The fits leave no folder here, which is what each test says."""
    suite = suite_of(replace(task_of("clevr"), trained_on="pets"), task_of("pets"))
    grid = make_grid(make_data(tmp_path / "data", suite), suite=suite, seeds=(0,))
    found = run(grid, out, fit=fit, workers=two)
    assert counts(found) == {"done": 2, "running": 0, "failed": 2, "waiting": 0}
    assert all("that folder is gone" in reason for reason in found.reasons.values())
