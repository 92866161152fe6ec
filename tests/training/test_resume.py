"""A fit that is stopped at any moment goes on as if nothing had happened; two processes compute what one does."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers_cli import (
    adapter_of,
    call,
    checkpoint_of,
    environment,
    fit,
    fit_words,
    free_port,
    metrics_of,
    result_of,
    same,
    start,
    wait_for,
)

from vitgraft.training import checkpoint, fitting

EPOCHS = 6
EXACT = ["--precision", "32", "--drop-path", "0.2", "--epochs", EPOCHS, "--lr", "3e-3"]
WAYS = {
    "published": [],
    "detached": ["--detached"],
    "averaged": ["--ema", "0.9", "--clip", "0.5"],
}


@pytest.fixture(scope="module")
def undisturbed(ground, tmp_path_factory):
    """A run that was never killed, for each way; in another process, as those that are killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for way, words in WAYS.items():
        assert start(fit_words(ground, folder / way, *EXACT, *words), folder / f"{way}.log").ends() == 0
    return folder


def without_clock(run):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in metrics_of(run)]


def epochs_done(run):
    return len(metrics_of(run)) if (run / "metrics.jsonl").exists() else 0


def kill_when(other, there):
    """SIGKILL at that moment; the process may have been quicker."""
    wait_for(lambda: there() or not other.process.is_alive())
    other.process.kill()
    assert other.ends() in (-signal.SIGKILL, 0)


@pytest.mark.parametrize("way", WAYS)
def test_killed_again_and_again(way, ground, undisturbed, tmp_path):
    run, words = tmp_path / "run", WAYS[way]
    chance = random.Random(way)
    moments = [lambda: (run / "settings.json").exists(), lambda: epochs_done(run) >= 1]
    moments += [lambda: epochs_done(run) >= 3, lambda: epochs_done(run) == EPOCHS]
    killed = 0
    for there in moments:
        other = start(fit_words(ground, run, *EXACT, *words, "--resume"), tmp_path / "log")
        kill_when(other, there)
        killed += other.process.exitcode != 0
        time.sleep(chance.uniform(0, 0.05))
    assert killed >= 2, "every process was quicker than its end: longer epochs are needed"
    assert start(fit_words(ground, run, *EXACT, *words, "--resume"), tmp_path / "log").ends() == 0
    assert same(adapter_of(run), adapter_of(undisturbed / way))
    assert same(checkpoint_of(run), checkpoint_of(undisturbed / way))
    assert without_clock(run) == without_clock(undisturbed / way)
    assert result_of(run)["value"] == result_of(undisturbed / way)["value"]
    assert not [file.name for file in run.iterdir() if file.name.startswith(".")]  # half-written files are swept up


@pytest.mark.parametrize("delay", [0.15, 0.4, 0.8])
def test_killed_after_any_delay(delay, ground, undisturbed, tmp_path):
    run = tmp_path / "run"
    other = start(fit_words(ground, run, *EXACT, "--detached"), tmp_path / "log")
    time.sleep(delay * random.Random(delay).uniform(0.7, 1.3))
    other.process.kill()
    other.ends()
    assert call(*fit_words(ground, run, *EXACT, "--detached", "--resume")) == 0
    assert same(adapter_of(run), adapter_of(undisturbed / "detached"))


class StopError(BaseException):
    pass


@pytest.mark.parametrize("precision", ["bf16", "64"])
@pytest.mark.parametrize("file", ["settings.json", "metrics.jsonl", "checkpoint.safetensors", "result.json"])
def test_stopped_at_each_file(file, precision, ground, tmp_path, monkeypatch):
    """The moment before a file takes its place, which a kill from outside hits rarely; every precision."""
    words = ["--precision", precision, "--epochs", 3, "--method", "bitfit", "--drop-path", "0.2"]
    plain = fit(ground, tmp_path / "plain", *words)
    replace, times = os.replace, []

    def stop(source, target):
        times.append(Path(target).name)
        if times.count(file) == (2 if file in ("metrics.jsonl", "checkpoint.safetensors") else 1):
            raise StopError
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(StopError):
            call(*fit_words(ground, tmp_path / "run", *words))
    assert not (tmp_path / "run" / "result.json").exists()
    run = fit(ground, tmp_path / "run", *words, "--resume")
    assert same(adapter_of(run), adapter_of(plain))
    assert without_clock(run) == without_clock(plain)


@pytest.mark.parametrize(("spared", "written"), [(0.0, 4), (60.0, 2)])
def test_a_checkpoint_is_not_dearer_than_what_it_saves(spared, written, ground, tmp_path, monkeypatch):
    """Written after the first epoch, the last, and no sooner after another than a kill may undo."""
    times, save = [], checkpoint.Checkpoint.save
    monkeypatch.setattr(checkpoint, "SPARED", spared)
    monkeypatch.setattr(checkpoint.Checkpoint, "save", lambda *given: (times.append(given[-1].epoch), save(*given)))
    fit(ground, tmp_path / "run", "--method", "bitfit", "--epochs", 4)
    assert len(times) == written
    assert (times[0], times[-1]) == (1, 4)


def test_ctrl_c(ground, tmp_path):
    """Long enough that the signal always comes before the end; that such a fit goes on exactly is tested above."""
    run, log = tmp_path / "run", tmp_path / "log"
    other = start(fit_words(ground, run, *EXACT, "--epochs", 5000, "--detached"), log)
    wait_for(lambda: epochs_done(run) >= 2)
    os.kill(other.process.pid, signal.SIGINT)
    assert other.ends() == 130
    assert other.said().splitlines() == [
        "vitgraft: stopped by Ctrl-C; a fit continues with the same command and --resume."
    ]
    assert not (run / "result.json").exists()
    assert checkpoint_of(run)


# What --resume does otherwise


def test_a_finished_run_is_left_alone(ground, tmp_path, capsys, monkeypatch):
    run = fit(ground, tmp_path / "run", "--method", "linear")
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.iterdir()}
    capsys.readouterr()
    monkeypatch.setattr(fitting, "train", lambda *_, **__: pytest.fail("it trains"))
    assert call(*fit_words(ground, run, "--method", "linear", "--resume")) == 0
    assert f"{result_of(run)['value']:.2%}" in capsys.readouterr().out
    assert before == {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.iterdir()}


def test_resume_without_a_run_starts(ground, tmp_path):
    run = fit(ground, tmp_path / "new" / "run", "--method", "linear", "--resume")
    assert len(metrics_of(run)) == 3


def test_other_settings_are_named(ground, tmp_path, capsys):
    run = fit(ground, tmp_path / "run", "--method", "bitfit")
    before = (run / "settings.json").read_bytes()
    more = ground.easy / "train" / "dots" / "more.png"
    more.write_bytes((more.parent / "0.png").read_bytes())
    try:
        words = fit_words(ground, run, "--method", "bitfit", "--lr", 0.5, "--seed", 3, "--resume")
        assert call(*words) == 2
        said = capsys.readouterr().err
        for part in ("lr was 0.001 and is now 0.5", "seed was 0 and is now 3", "train was 36 and is now 37", "--out"):
            assert part in said
        assert "epochs was" not in said
        assert call(*fit_words(ground, run, "--resume")) == 2
        assert "method was bitfit and is now hst" in capsys.readouterr().err
    finally:
        more.unlink()
    assert (run / "settings.json").read_bytes() == before


def test_workers_may_change(ground, tmp_path):
    run = fit(ground, tmp_path / "run", "--method", "linear")
    (run / "result.json").unlink()
    assert call(*fit_words(ground, run, "--method", "linear", "--workers", 1, "--memory", 0.1, "--resume")) == 0
    assert (run / "result.json").exists()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:3], lambda b: b"", lambda b: b"\x80" * 99])
def test_a_checkpoint_that_was_cut_off(damage, ground, tmp_path, capsys):
    run = fit(ground, tmp_path / "run", "--method", "linear")
    (run / "result.json").unlink()
    checkpoint = run / "checkpoint.safetensors"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    before = checkpoint.read_bytes()
    capsys.readouterr()
    assert call(*fit_words(ground, run, "--method", "linear", "--resume")) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"vitgraft: The checkpoint {checkpoint} cannot be read")
    assert "fit again into another folder" in said
    assert checkpoint.read_bytes() == before


def test_settings_that_were_cut_off(ground, tmp_path, capsys):
    run = fit(ground, tmp_path / "run", "--method", "linear")
    (run / "settings.json").write_text('{"task": "cl')
    assert call(*fit_words(ground, run, "--method", "linear", "--resume")) == 2
    assert "settings.json cannot be read" in capsys.readouterr().err


# Two processes

DOUBLE = ["--precision", "64", "--epochs", 2, "--devices"]


def compare(one, two):
    """All but the biases of the side attention's keys: their gradient is zero, Adam turns its rounding into steps."""
    ours, theirs = checkpoint_of(one), checkpoint_of(two)
    assert ours.keys() == theirs.keys()
    compared = [name for name in ours if name.startswith("model.") and not name.endswith(".k.bias")]
    assert len(compared) > 50
    for name in compared:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6, msg=name)
    assert [r["loss"] for r in metrics_of(one)] == pytest.approx([r["loss"] for r in metrics_of(two)], abs=2e-6)
    assert [r["val"] for r in metrics_of(one)] == [r["val"] for r in metrics_of(two)]
    assert result_of(one)["value"] == result_of(two)["value"]


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one(way, ground, tmp_path):
    one = fit(ground, tmp_path / "one", *DOUBLE, 1, *WAYS[way], data=ground.hard)
    two = tmp_path / "two"
    words = fit_words(ground, two, *DOUBLE, 2, *WAYS[way], data=ground.hard)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    others = [start(words, tmp_path / f"log{rank}", **shared, LOCAL_RANK=str(rank)) for rank in range(2)]
    assert [other.ends() for other in others] == [0, 0], [other.said() for other in others]
    compare(one, two)
    assert [other.said() for other in others] == ["", ""]


def test_the_command_starts_its_second_process(ground, tmp_path):
    """And only the first one speaks."""
    run = tmp_path / "run"
    words = fit_words(ground, run, *DOUBLE, 2, "--detached", data=ground.hard)
    done = subprocess.run(
        [sys.executable, "-m", "vitgraft.commands.cli", *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("top-1 accuracy") == 1
    compare(fit(ground, tmp_path / "one", *DOUBLE, 1, "--detached", data=ground.hard), run)
