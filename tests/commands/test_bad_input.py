"""Every mistake that a user can make: what the command says, what it exits with, and that nothing was written."""

import json
import shutil

import pytest
from helpers_cli import (
    CLASSES,
    call,
    fit,
    fit_words,
    has,
    make_backbone,
    make_pictures,
    metrics_of,
    result_of,
)

from vitgraft.adapters import file as adapter

pytestmark = pytest.mark.usefixtures("no_network")


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
    (data / "train" / "dots" / "notes.png").write_text("the first dots were better\n")
    (data / "train" / "dots" / "none.png").touch()
    has(
        refused_fit(data=data, code=1), "notes.png (its content is in no picture format", "none.png (the file is empty)"
    )


# The request


def test_an_image_size_that_the_patch_does_not_divide(refused_fit):
    has(refused_fit("--image-size", 30), "30", "patch", "24", "32")
    has(refused_fit("--image-size", 32, 30), "32", "30", "24")


def test_an_unknown_method(refused_fit):
    has(refused_fit("--method", "hts"), "no method 'hts'", "fact, full, heart_lora, hst", "Did you mean 'hst'")
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
    has(refused_fit("--backbone", "resnet18"), "'resnet18' cannot be a backbone", "it is a ResNet", "choose")
    has(refused_fit("--backbone", "not/there.safetensors"), "there is no such file", "give a .safetensors")


def test_a_backbone_that_no_source_has(refused_fit):
    said = refused_fit("--backbone", "vit_tiny_patch16_224", code=1, lines=5)
    has(said, "'vit_tiny_patch16_224'", "cache:", "model hub: not asked, as HF_HUB_OFFLINE is set", "packages:")
    has(said, "Connect to the model hub", "ARCHITECTURE=PATH")


def test_fewer_blocks_than_stages(refused_fit, tmp_path):
    backbone = make_backbone(tmp_path / "three.safetensors", depth=3)
    has(refused_fit("--backbone", backbone), "HST has 4 stages", "has 3", "take a backbone")


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


def test_a_finished_run_can_be_read_after_all_this(finished):
    """The runs that the tests above were refused to touch."""
    assert adapter.read(finished / "adapter.safetensors")[1]["classes"] == list(CLASSES)
