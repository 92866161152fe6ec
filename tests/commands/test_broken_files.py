"""Broken files, files of another backbone, full disks, losses that are no number: what the command says, what it exits
with, and that what was there is still there."""

import errno
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
from helpers_cli import (
    CLASSES,
    adapter_of,
    call,
    checkpoint_of,
    contents,
    fit,
    fit_words,
    has,
    make_backbone,
    metrics_of,
    result_of,
    same,
    start,
)

from vitgraft.adapters import file as adapter
from vitgraft.common.errors import WorkError
from vitgraft.common.files import make_folder, write_bytes
from vitgraft.training import loop as training

pytestmark = pytest.mark.usefixtures("no_network")


def test_an_adapter_for_another_backbone(finished, ground, tmp_path, refused):
    other = make_backbone(tmp_path / "other.safetensors", seed=1)
    picture = ground.easy / "test" / "dots" / "0.png"
    said = refused("predict", finished, picture, "--backbone", other)
    prints = result_of(finished)["backbone"]["fingerprint"][:12], fingerprint(other)[:12]
    assert prints[0] != prints[1]
    has(said, finished / "adapter.safetensors", "was trained on", ground.backbone, other, *prints, "load the weights")
    has(refused("evaluate", finished, ground.easy, "--backbone", other), "was trained on")


def fingerprint(backbone):
    from vitgraft import Backbone

    return Backbone.load(str(backbone)).fingerprint


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "cut in half": lambda b: b[: len(b) // 2],
    "cut by a byte": lambda b: b[:-1],
    "cut to three bytes": lambda b: b[:3],
    "empty": lambda b: b"",
    "a bit of a tensor": lambda b: flipped(b, len(b) - 40),
    "a bit of the sizes": lambda b: flipped(b, 0),
    "a class name": lambda b: b.replace(b'\\"rings\\"', b'\\"kings\\"'),
    "the value": lambda b: b.replace(b'top-1 accuracy\\", \\"value\\": ', b'top-1 accuracy\\", \\"value\\":1'),
    "the format": lambda b: b.replace(b'\\"format\\": 2', b'\\"format\\": 7'),
    "text": lambda b: b"hello" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter(damage, finished, ground, tmp_path, refused):
    run = shutil.copytree(finished, tmp_path / "run")
    file = run / "adapter.safetensors"
    before = file.read_bytes()
    file.write_bytes(DAMAGES[damage](before))
    assert file.read_bytes() != before
    reason = "reads format 2" if damage == "the format" else "altered"
    for words in (
        ["predict", run, ground.easy / "test" / "dots" / "0.png"],
        ["evaluate", run, ground.easy],
        ["info", file],
    ):
        has(refused(*words), file, reason)


def test_a_safetensors_file_that_is_no_adapter(ground, refused):
    has(refused("info", ground.backbone), ground.backbone, "no adapter of vitgraft", "that `vitgraft fit` wrote")


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.fixture
def sprung(tmp_path):
    """The file that a trap touches; the trap does work."""
    file = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(file))).close()
    assert file.exists()
    file.unlink()
    return file


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_named_safetensors(form, ground, tmp_path, sprung, refused, refused_fit):
    file = tmp_path / "new.safetensors"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"head.fc.weight": Trap(sprung)}, file)
    has(refused("predict", file, ground.easy / "test" / "dots" / "0.png"), file, "no readable safetensors")
    has(refused("info", file), file, "no readable safetensors", "take an intact copy")
    has(refused_fit("--backbone", file), file, "cannot be read as safetensors")
    has(refused_fit("--backbone", f"vit_tiny_patch16_224={file}"), file, "cannot be read as safetensors")
    pickled = shutil.copy(file, tmp_path / "new.pth")
    has(refused_fit("--backbone", f"vit_tiny_patch16_224={pickled}"), pickled, "weights_only")
    assert not sprung.exists()


def test_a_backbone_file_that_was_cut_off(ground, tmp_path, refused_fit):
    file = tmp_path / "cut.safetensors"
    file.write_bytes(ground.backbone.read_bytes()[:5000])
    has(refused_fit("--backbone", file), file, "cannot be read as safetensors", "fetch it again")


# A full disk


def limit_files(size):
    """In a new process: no file grows beyond this, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def end_on_a_full_disk(ground, run, log, size, *words):
    other = start(fit_words(ground, run, "--method", "linear", *words), log, limit_files, size)
    assert other.ends() == 1
    said = other.said()
    assert said.count("\n") == 1
    has(said, "vitgraft: ", "could not be written (File too large)", "untouched", "make room", "--resume")
    assert not [file for file in run.iterdir() if file.name.endswith(".tmp")]
    return said


def test_a_disk_that_fills_up_in_the_end(finished, ground, tmp_path):
    run, words = tmp_path / "run", ["--epochs", 2]
    adapter_size = (finished / "adapter.safetensors").stat().st_size
    room = max(adapter_size, (finished / "checkpoint.safetensors").stat().st_size)
    assert (finished / "report.html").stat().st_size > room + 1000
    has(end_on_a_full_disk(ground, run, tmp_path / "log", room + 500, *words), run / "report.html")
    assert not (run / "result.json").exists()
    assert not (run / "report.html").exists()
    assert same(adapter_of(run), adapter_of(finished))
    assert call(*fit_words(ground, run, "--method", "linear", *words, "--resume")) == 0
    assert same(adapter_of(run), adapter_of(finished))
    assert result_of(run)["value"] == result_of(finished)["value"]


def test_a_disk_that_is_full_keeps_what_was_there(ground, tmp_path):
    words = ["--epochs", 1]
    run = fit(ground, tmp_path / "run", "--method", "linear", *words)
    (run / "result.json").unlink()
    before = contents(run)
    has(end_on_a_full_disk(ground, run, tmp_path / "log", 400, *words, "--resume"), run / "settings.json")
    assert contents(run) == before


@pytest.mark.parametrize("moment", ["write_bytes", "fsync", "replace"])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(moment, tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_bytes(file, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path if moment == "write_bytes" else os, moment, full)
        with pytest.raises(WorkError, match=r"file could not be written \(No space left on device\).*make room"):
            write_bytes(file, b"new")
    assert contents(tmp_path) == {file: b"old"}
    write_bytes(file, b"new")
    assert contents(tmp_path) == {file: b"new"}


def test_an_error_of_another_kind_leaves_the_file_too(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_bytes(file, b"old")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(file, b"new")
    assert contents(tmp_path) == {file: b"old"}


def test_what_a_killed_writer_left_is_swept_up(tmp_path):
    for name in (".checkpoint.safetensors.123.tmp", ".result.json.99.tmp", "mine.tmp", ".hidden"):
        (tmp_path / name).touch()
    make_folder(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"mine.tmp", ".hidden"}


# A loss that is not a number


@pytest.fixture
def words(ground, tmp_path):
    """Three steps to an epoch."""
    return fit_words(ground, tmp_path / "run", "--method", "linear", "--precision", "32")


def test_a_loss_that_becomes_nan(words, ground, tmp_path, capsys, monkeypatch):
    run, rate = tmp_path / "run", training.learning_rate
    with monkeypatch.context() as patch:
        patch.setattr(training, "learning_rate", lambda step, *more: 1e38 if step == 4 else rate(step, *more))
        assert call(*words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    has(err, "vitgraft: The loss became", "at step 6", "is kept", "lower --lr")
    assert [record["step"] for record in metrics_of(run)] == [3]
    assert not (run / "adapter.safetensors").exists()
    assert all(bool(t.isfinite().all()) for t in checkpoint_of(run).values())
    assert call(*words, "--resume") == 0  # the good checkpoint can be gone on from
    plain = fit(ground, tmp_path / "plain", "--method", "linear", "--precision", "32")
    assert same(adapter_of(run), adapter_of(plain))


def test_a_loss_that_is_nan_at_once(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "learning_rate", lambda *_: float("inf"))
    assert call(*words) == 1
    has(capsys.readouterr().err, "The loss became nan at step 2")
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "run" / "adapter.safetensors").exists()


@pytest.mark.parametrize(("broken", "kept"), [(3, 0), (6, 1), (9, 2)])
def test_weights_that_become_nan_after_the_last_loss(broken, kept, words, tmp_path, capsys, monkeypatch):
    """What the last step of an epoch does is in the checkpoint before a loss shows it."""
    rate, run = training.learning_rate, tmp_path / "run"
    changed = lambda step, *more: float("nan") if step == broken - 1 else rate(step, *more)  # noqa: E731
    monkeypatch.setattr(training, "learning_rate", changed)
    assert call(*words) == 1
    has(capsys.readouterr().err, "vitgraft: The tensor head.fc.", f"no longer finite after step {broken}", "is kept")
    assert not (run / "adapter.safetensors").exists()
    assert not (run / "result.json").exists()
    if not kept:
        assert not (run / "checkpoint.safetensors").exists()
        return
    assert [record["epoch"] for record in metrics_of(run)] == list(range(1, kept + 1))
    assert all(bool(t.isfinite().all()) for t in checkpoint_of(run).values())


def test_a_finished_run_can_be_read_after_all_this(finished):
    """The runs that the tests above were refused to touch."""
    assert adapter.read(finished / "adapter.safetensors")[1]["classes"] == list(CLASSES)
