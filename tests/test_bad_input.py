"""Every mistake that a user can make: what the command says, what it exits with, and that nothing was written."""

import errno
import json
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
    fit,
    fit_words,
    make_backbone,
    make_ground,
    make_pictures,
    metrics_of,
    result_of,
    same,
    start,
)

from vitgraft import adapter, training
from vitgraft.errors import WorkError
from vitgraft.files import make_folder, write_bytes


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return make_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def finished(ground, tmp_path_factory):
    return fit(ground, tmp_path_factory.mktemp("runs") / "linear", "--method", "linear", "--epochs", 2)


@pytest.fixture(autouse=True)
def no_network(tmp_path_factory, monkeypatch):
    """An empty cache, and no model hub."""
    import huggingface_hub

    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path_factory.getbasetemp() / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must fail, and gives what it says: one line, while no file changes."""

    def run(*words, code=2, lines=1):
        before = contents(tmp_path)
        capsys.readouterr()
        assert call(*words) == code
        out, err = capsys.readouterr()
        said = err[err.index("vitgraft: ") :]  # a progress bar may stand before it
        assert out == ""
        assert said.count("\n") == lines
        assert "Traceback" not in said
        assert contents(tmp_path) == before
        return said

    return run


@pytest.fixture
def refused_fit(ground, tmp_path, refused):
    """The same for a fit."""

    def run(*more, data=None, code=2, lines=1):
        return refused(*fit_words(ground, tmp_path / "run", *more, data=data), code=code, lines=lines)

    return run


def has(said, *parts):
    missing = [part for part in parts if str(part) not in said]
    assert not missing, f"{missing} not in {said!r}"


# Data


def test_no_such_folder(refused_fit, tmp_path):
    make_pictures(tmp_path / "pictures")
    has(refused_fit(data=tmp_path / "picturs"), tmp_path / "picturs", "correct the path", "Did you mean 'pictures'")
    has(refused_fit(data=tmp_path / "a" / "b"), "there is no folder", tmp_path / "a")
    (tmp_path / "file").touch()
    has(refused_fit(data=tmp_path / "file"), "is a file", "name the folder")


def test_a_folder_without_pictures(refused_fit, tmp_path):
    (tmp_path / "empty").mkdir()
    has(refused_fit(data=tmp_path / "empty"), tmp_path / "empty", "train/CLASS/picture", "arrange")


@pytest.mark.parametrize("place", ["train/rings", "val/rings", "rings"])
def test_a_class_with_no_pictures(place, refused_fit, tmp_path):
    data = make_pictures(tmp_path / "data", **({"train": 3, "val": 2} if "/" in place else {}))
    for file in (data / place).iterdir():
        file.unlink()
    has(refused_fit(data=data), data / place, "holds no picture", "add some, or remove it")


def test_one_class_only(refused_fit, tmp_path):
    data = make_pictures(tmp_path / "data")
    shutil.rmtree(data / "dots")
    shutil.rmtree(data / "rings")
    has(refused_fit(data=data), data, "only the class 'stripes'", "add a second class")


def test_validation_classes_unseen_in_training(refused_fit, tmp_path):
    data = make_pictures(tmp_path / "data", train=3, val=2)
    (data / "val" / "dots").rename(data / "val" / "dot")
    has(refused_fit(data=data), "'val'", "the class 'dot'", "dots, rings, stripes", "add", "Did you mean 'dots'")


def test_a_split_that_is_not_there(refused_fit, tmp_path):
    data = make_pictures(tmp_path / "data", train=3, val=2)
    has(refused_fit("--eval-split", "test", data=data), "'test'", "has train, val", "take one of them")
    has(refused_fit("--train-split", "trian", data=data), "'trian'", "has train, val", "Did you mean 'train'")
    has(refused_fit("--train-split", "train+train", data=data), "once", "name none twice")


def cut(picture):
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    return picture


def test_a_truncated_picture_is_an_error(refused_fit, tmp_path):
    data = make_pictures(tmp_path / "data", train=4, val=2)
    bad = cut(data / "train" / "rings" / "2.png")
    said = refused_fit(data=data, code=1)
    has(said, "12 pictures of split 'train'", "1 cannot be", bad, "truncated", "replace or remove", "--skip-bad")
    assert "0.png" not in said
    bad = [bad, *(cut(data / "train" / "dots" / f"{i}.png") for i in range(2))]
    has(refused_fit("--workers", 1, data=data, code=1), "3 cannot be", *bad)


def test_a_truncated_picture_is_skipped(ground, tmp_path, capsys):
    data = make_pictures(tmp_path / "data", train=4, val=4)
    bad = [cut(data / "train" / "rings" / "2.png"), cut(data / "val" / "dots" / "1.png")]
    words = fit_words(ground, tmp_path / "run", "--method", "linear", "--skip-bad", data=data)
    words.remove("--quiet")
    assert call(*words) == 0
    said = capsys.readouterr().err
    has(said, *(f"skipped   {path}: " for path in bad))
    assert said.count("skipped") == 2
    assert result_of(tmp_path / "run")["data"]["skipped"] == 2
    assert metrics_of(tmp_path / "run")[0]["step"] == 1  # 11 pictures in a batch of at most 12
    question = ["evaluate", tmp_path / "run", data, "--split", "val"]
    assert call(*question) == 1
    has(capsys.readouterr().err, bad[1], "--skip-bad")
    assert call(*question, "--skip-bad", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["accuracy"]) == (11, result_of(tmp_path / "run")["value"])


def test_skipping_does_not_empty_a_class(refused_fit, tmp_path):
    data = make_pictures(tmp_path / "data", train=2, val=2)
    for i in range(2):
        cut(data / "train" / "rings" / f"{i}.png")
    has(refused_fit("--skip-bad", data=data, code=1), "none is left", data / "train" / "rings", "remove the class")


def test_a_file_that_is_no_picture(refused_fit, tmp_path):
    data = make_pictures(tmp_path / "data", train=4)
    (data / "train" / "dots" / "notes.txt").write_text("the first dots were better\n")
    (data / "train" / "dots" / "none.png").touch()
    has(
        refused_fit(data=data, code=1), "notes.txt (its content is in no picture format", "none.png (the file is empty)"
    )


# The request


def test_an_image_size_that_the_patch_does_not_divide(refused_fit):
    has(refused_fit("--image-size", 30), "30", "patch", "24", "32")
    has(refused_fit("--image-size", 32, 30), "32", "30", "24")


def test_an_unknown_method(refused_fit):
    has(refused_fit("--method", "hts"), "no method 'hts'", "convpass, fact, full, hst", "Did you mean 'hst'")
    has(refused_fit("--method", "../cli"), "no method '../cli'", "choose one of these")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("consolidator --groups 7", ["7 groups do not divide", "multiples of 48", "1, 2, 3, 4, 6, 8, 12, 16, 24, 48"]),
        ("consolidator --groups 24 0", ["0 groups", "possible are"]),
        ("consolidator --groups", ["needs a group number"]),
        ("consolidator --branch-drop 1", ["branch_drop of consolidator is 1.0", "less than 1"]),
        ("consolidator --originals biases", ["'biases'", "bias, norm", "Did you mean 'bias'"]),
        ("sct --channels 49", ["49 salient channels", "has 48 in all", "at most 48"]),
        ("sct --channels 0", ["channels of sct is 0", "above 0"]),
        ("sct --scale 0", ["scale of sct is 0.0", "above 0"]),
        ("sct --mode atn", ["mode of sct cannot be 'atn'", "attn, mlp, qkv", "Did you mean 'attn'"]),
        ("convpass --scale 0", ["scale of convpass is 0.0", "above 0"]),
        ("convpass --scale nan", ["scale of convpass is nan", "above 0"]),
        ("convpass --bottleneck -8", ["bottleneck of convpass is -8", "above 0"]),
        ("convpass --sublayers attn mlpp", ["'mlpp'", "attn, mlp"]),
        ("convpass --sublayers", ["sublayers of convpass is empty", "attn, mlp"]),
        ("convpass --dropout 1.5", ["dropout of convpass is 1.5", "less than 1"]),
        ("lora --rank 0", ["rank of lora is 0", "above 0"]),
        ("lora --targets q w", ["'w'", "q, k, v, qkv, proj, fc1, fc2"]),
        ("lora --targets q q", ["targets of lora", "'q' twice"]),
        ("repadapter --groups 3", ["3 groups do not divide a bottleneck of 8", "possible are 1, 2, 4, 8"]),
        ("fact --form ttt", ["'ttt'", "tt, tk"]),
        ("vpt --prompts 0", ["prompts of vpt is 0", "above 0"]),
        ("lst --reduction 5", ["width 48", "5 times", "possible are 1, 2, 3, 4"]),
    ],
)
def test_arguments_of_methods(refused_fit, words, parts):
    has(refused_fit("--method", *words.split()), *parts)


def test_an_unknown_method_among_methods(refused):
    for words in (["methods", "linaer"], ["methods", "linaer", "--json"]):
        has(refused(*words), "no method 'linaer'", "Did you mean 'linear'")


def test_an_unknown_backbone(refused_fit):
    has(refused_fit("--backbone", "vit_bas_patch16_224"), "no model 'vit_bas_patch16_224'", "Did you mean")
    has(refused_fit("--backbone", "vit_bas_patch16_224"), "'vit_base_patch16_224'")
    has(refused_fit("--backbone", "resnet18"), "'resnet18' cannot be a backbone", "plain VisionTransformer", "choose")
    has(refused_fit("--backbone", "not/there.safetensors"), "there is no such file", "give a .safetensors")


def test_a_backbone_that_no_source_has(refused_fit):
    said = refused_fit("--backbone", "vit_tiny_patch16_224", code=1, lines=5)
    has(said, "'vit_tiny_patch16_224'", "cache:", "model hub: not asked, as HF_HUB_OFFLINE is set", "packages:")
    has(said, "Connect to the model hub", "ARCHITECTURE=PATH")


def test_a_depth_that_four_stages_do_not_divide(refused_fit, tmp_path):
    backbone = make_backbone(tmp_path / "three.safetensors", depth=3)
    has(refused_fit("--backbone", backbone), "4 equal stages", "has 3", "take a backbone")


def test_an_option_of_another_method(refused_fit):
    said = refused_fit("--method", "linear", "--detached")
    has(said, "no option '--detached' with the method linear", "--detached is an option of hst")
    has(said, "vitgraft fit --help", "vitgraft methods linear")
    has(refused_fit("--method", "full", "--meta-tokens=4"), "'--meta-tokens'", "an option of hst")


def test_a_misspelt_option(refused_fit):
    has(refused_fit("--epohcs", 3), "no option '--epohcs'", "Did you mean '--epochs'", "see `vitgraft fit --help`")
    has(refused_fit("--epoch", 3), "no option '--epoch'", "'--epochs'")  # no guessing by the first letters
    has(refused_fit("--detachd"), "'--detachd' with the method hst", "'--detached'", "`vitgraft methods hst`")
    has(refused_fit("further"), "'further' is one word too many")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--epochs 0", ["epochs is 0", "at least 1"]),
        ("--epochs -3", ["epochs is -3", "at least 1"]),
        ("--epochs 2.5", ["--epochs", "invalid int value: '2.5'"]),
        ("--lr -1", ["learning rate is -1.0", "above 0", "1e-3"]),
        ("--lr 0", ["learning rate is 0.0", "above 0"]),
        ("--lr nan", ["learning rate is nan", "above 0"]),
        ("--lr inf", ["learning rate is inf", "1e-3"]),
        ("--lr 1e38", ["learning rate is 1e+38", "at most 1e6"]),
        ("--lr fast", ["--lr", "invalid float value: 'fast'"]),
        ("--weight-decay -0.1", ["weight_decay is -0.1", "at least 0"]),
        ("--weight-decay nan", ["weight_decay is nan", "at least 0"]),
        ("--batch-size 0", ["batch_size is 0", "at least 1"]),
        ("--batch-size 7 --devices 2", ["2 devices", "batch_size is 7", "such as 6"]),
        ("--devices 0", ["devices is 0", "at least 1"]),
        ("--workers -1", ["workers is -1", "at least 0"]),
        ("--memory -1", ["memory is -1.0", "at least 0"]),
        ("--seed -1", ["seed is -1", "0 or more"]),
        ("--seed 4294967296", ["seed is 4294967296", "below 2**32"]),
        ("--warmup 1", ["warmup is 1.0", "less than 1"]),
        ("--warmup 10", ["warmup is 10.0", "is a share"]),
        ("--drop-path 1", ["drop_path is 1.0", "less than 1"]),
        ("--label-smoothing -0.1", ["label_smoothing is -0.1", "0 or more"]),
        ("--precision 8", ["precision '8'", "auto, bf16, 32, 64"]),
        ("--precision bf61", ["precision 'bf61'", "Did you mean 'bf16'"]),
        ("--image-size 1 2 3", ["3 numbers came", "give one or two"]),
        ("--image-size 0", ["0", "patch", "8"]),
        ("--image-size -8", ["-8", "patch", "8"]),
        ("--task clasify", ["no task 'clasify'", "Did you mean 'classify'"]),
        ("--widths 8 16", ["four stages", "2 widths", "give four"]),
        ("--heads 5 4 8 12", ["width 32", "5 heads", "multiple"]),
        ("--meta-tokens 0", ["at least one meta token", "0 came"]),
        ("--mlp-ratio 0", ["mlp_ratio is 0", "at least 1"]),
    ],
)
def test_bad_numbers(words, parts, refused_fit):
    has(refused_fit(*words.split()), *parts)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("", "COMMAND"),
        ("ft data", "invalid choice: 'ft'"),
        ("fit", "DATA"),
        ("fit data", "--out"),
        ("evaluate run", "DATA"),
        ("evaluate run data further", "'further' is one word too many"),
        ("predict run", "PICTURE"),
        ("predict run a.png --jsn", "no option '--jsn'"),
        ("info", "RUN"),
    ],
)
def test_words_that_are_missing_or_too_many(words, part, refused):
    has(refused(*words.split()), part, "--help")


# The folder of a run


def test_a_folder_that_already_holds_a_run(ground, tmp_path, refused_fit):
    fit(ground, tmp_path / "run", "--method", "linear", "--epochs", 1)
    for method in ("linear", "hst"):
        said = refused_fit("--method", method, "--epochs", 1)
        has(said, tmp_path / "run", "already holds a run", "another --out", "--resume")


def test_a_folder_that_holds_something_else(tmp_path, refused_fit):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter.safetensors").write_bytes(b"somebody's")
    has(refused_fit(), "holds adapter.safetensors", "no run of this version", "another --out")


def test_a_file_where_the_folder_should_be(ground, tmp_path, refused, refused_fit):
    (tmp_path / "run").write_text("notes")
    has(refused_fit(), tmp_path / "run", "is a file", "another --out")
    has(refused(*fit_words(ground, tmp_path / "run" / "inside")), "is a file", "another --out")


def test_a_folder_inside_the_pictures(ground, tmp_path, refused):
    data = make_pictures(tmp_path / "data")
    has(refused(*fit_words(ground, data / "run", data=data)), "lies in", "pass for pictures", "another --out")


@pytest.mark.parametrize("command", ["evaluate", "predict", "info"])
def test_a_run_that_is_not_there(command, ground, tmp_path, refused):
    more = {"evaluate": [ground.easy], "predict": [ground.easy / "test" / "dots" / "0.png"], "info": []}[command]
    has(refused(command, tmp_path / "none", *more), "no run", tmp_path / "none", "vitgraft fit --out")
    (tmp_path / "begun").mkdir()
    has(refused(command, tmp_path / "begun", *more), "holds no run", "vitgraft fit --out")
    (tmp_path / "begun" / "settings.json").write_text("{}")
    has(refused(command, tmp_path / "begun", *more), "not finished", "the same command and --resume")


def test_a_result_that_was_altered(finished, tmp_path, refused):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "result.json").write_text((run / "result.json").read_text()[:100])
    has(refused("info", run), run / "result.json", "cannot be read", "intact copy")


# Using a run


def test_evaluate_on_what_is_not_there(finished, tmp_path, refused):
    data = make_pictures(tmp_path / "data", train=2, val=2)
    has(refused("evaluate", finished, data), "'test'", "has train, val", "take one of them")
    has(refused("evaluate", finished, data, "--split", "vall"), "'vall'", "Did you mean 'val'")
    has(refused("evaluate", finished, tmp_path / "dat"), tmp_path / "dat", "correct the path", "Did you mean 'data'")


def test_evaluate_on_classes_that_the_run_does_not_know(finished, tmp_path, refused):
    data = make_pictures(tmp_path / "data", train=2, val=2)
    (data / "val" / "dots").rename(data / "val" / "spots")
    said = refused("evaluate", finished, data, "--split", "val")
    has(said, "the class 'spots'", "the adapter knows dots, rings, stripes", "rename or remove")


def test_predict_with_pictures_that_are_not_there(finished, ground, tmp_path, refused):
    there = ground.easy / "test" / "dots" / "0.png"
    said = refused("predict", finished, there, tmp_path / "a.png", tmp_path)
    has(said, "no picture", tmp_path / "a.png", "name files that exist")
    assert str(there) not in said


def test_predict_with_a_picture_that_is_broken(finished, ground, tmp_path, refused, capsys):
    good, bad = ground.easy / "test" / "dots" / "0.png", tmp_path / "bad.png"
    cut(shutil.copy(good, bad))
    has(refused("predict", finished, good, bad, code=1), bad, "truncated", "--skip-bad")
    assert call("predict", finished, good, bad, "--skip-bad", "--json") == 0
    assert [row["picture"] for row in json.loads(capsys.readouterr().out)] == [str(good)]
    has(refused("predict", finished, bad, "--skip-bad", code=1), "none is left")


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
