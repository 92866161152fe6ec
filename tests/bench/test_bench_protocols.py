"""Protocols: what they say of each method and task, that a fit would take it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitgraft import methods
from vitgraft.bench import protocols, suites
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import Settings

VTAB = suites.find("vtab-1k").task_names
PAPERS = {"hst": "hst", "convpass": "convpass", "sct": "sct", "consolidator": "consolidator"}
COMMON = {
    "epochs": 100,
    "batch_size": 64,
    "warmup": 0.1,
    "image_size": [224, 224],
    "train_split": "train+val",
    "eval_split": "test",
}


def cases() -> list[tuple[str, str, str]]:
    """(protocol, method, task) of every value that a protocol has."""
    found = []
    for name in protocols.names():
        protocol = protocols.find(name)
        for method, recipe in protocol.methods.items():
            found += [(name, method, task) for task in recipe.tasks or ["any"]]
    return found


def test_every_value_is_one_that_a_fit_takes():
    assert len(cases()) == 8 * 19 + 5 - 19 + 1
    for name, method, task in cases():
        options = protocols.find(name).options(method, task)
        Settings(**{key: value for key, value in options.items() if key in Settings.names()})
        methods.create(method, **{key: value for key, value in options.items() if key not in Settings.names()})


@pytest.mark.parametrize(("name", "method"), PAPERS.items())
def test_a_papers_protocol_has_its_values_of_all_19_tasks(name: str, method: str):
    assert set(protocols.find(name).methods[method].tasks) == set(VTAB)


# One line of each table of the papers' code, and what is odd in it.
@pytest.mark.parametrize(("name", "method", "task", "own"), [
    ("hst", "hst", "cifar", {"lr": 1e-2, "weight_decay": 5e-4, "drop_path": 0}),
    ("hst", "hst", "oxford_flowers102", {"lr": 1e-3, "weight_decay": 5e-5, "drop_path": 0}),
    ("hst", "hst", "kitti", {"lr": 5e-3, "weight_decay": 5e-2, "drop_path": 0.1}),
    ("hst", "hst", "smallnorb_ele", {"lr": 1e-3, "weight_decay": 5e-2, "drop_path": 0.2}),
    ("convpass", "convpass", "dtd", {"scale": 0.01, "conv_init": "xavier"}),
    ("convpass", "convpass", "svhn", {"scale": 100, "conv_init": "xavier"}),
    ("convpass", "convpass", "sun397", {"scale": 0.1, "conv_init": "identity"}),
    ("convpass-attn", "convpass", "resisc45", {"scale": 100, "conv_init": "xavier"}),
    ("sct", "sct", "cifar", {"lr": 0.013, "weight_decay": 1.0, "label_smoothing": 0.1}),
    ("sct", "sct", "smallnorb_ele", {"lr": 0.0011, "weight_decay": 0.0005, "label_smoothing": 0}),
    ("sct-scaled", "sct", "clevr_count", {"lr": 0.0033, "weight_decay": 0.01, "scale": 0.52, "scale_x": True}),
    ("sct-scaled", "sct", "resisc45", {"lr": 0.01, "weight_decay": 0.01, "scale": 0.4, "scale_x": False}),
    ("consolidator", "consolidator", "cifar", {"lr": 0.001, "weight_decay": 0, "branch_drop": 0.8}),
    ("consolidator", "consolidator", "oxford_iiit_pet", {"lr": 0.002, "weight_decay": 0, "branch_drop": 0.8}),
    ("consolidator", "consolidator", "smallnorb_ele", {"lr": 0.0005, "weight_decay": 0.1, "branch_drop": 0.2}),
    ("consolidator-mocov3", "consolidator", "kitti", {"lr": 0.001, "weight_decay": 0.0001, "branch_drop": 0.5}),
    ("hst-fgvc", "hst", "nabirds", {"lr": 5e-4, "weight_decay": 5e-2, "batch_size": 128}),
])  # fmt: skip
def test_values_of_one_task(name: str, method: str, task: str, own: dict[str, Any]):
    options = protocols.find(name).options(method, task)
    assert options == {**options, **COMMON, **own}


def test_what_the_papers_protocols_have_in_common():
    for name in PAPERS:
        protocol = protocols.find(name)
        assert protocol.epoch == "best on test"
        assert any(flag.startswith("best epoch on test") for flag in protocol.flags)
        assert "one seed" in protocol.flags
        assert protocol.seeds == 1
        assert any("ours reports the last one" in text for text in protocol.deviations)
    backbones = {name: protocols.find(name).backbone for name in PAPERS}
    assert backbones.pop("hst") == "vit_base_patch16_224.augreg_in21k"
    assert set(backbones.values()) == {"vit_base_patch16_224.orig_in21k"}
    assert {protocols.find(name).options(name, "dtd")["normalisation"] for name in backbones} == {"imagenet"}
    assert protocols.find("hst").options("hst", "dtd")["normalisation"] == "inception"


def test_only_sct_augments_on_11_tasks_and_smooths_on_12():
    sct = protocols.find("sct")
    for method in ("sct", "lora"):  # what is done to pictures is the task's, whatever the method
        augmented = [task for task in VTAB if sct.options(method, task).get("augmentation") == "randaugment"]
        assert len(augmented) == 11
        assert {"dtd", "kitti", "dmlab"} <= set(augmented)
    assert "augmentation" not in sct.options("sct", "cifar")
    assert sum(sct.options("sct", task)["label_smoothing"] == 0.1 for task in VTAB) == 12
    assert all("augmentation" not in protocols.find(name).options(name, "kitti") for name in PAPERS if name != "sct")
    assert protocols.find("hst-fgvc").options("hst", "cub")["augmentation"] == "crop"


def test_strict_flatters_nothing():
    strict = protocols.find("strict")
    assert (strict.flags, strict.epoch, strict.suites) == ((), "last", ())
    assert not {"normalisation", "augmentation"} & strict.options("hst", "kitti").keys()  # the weights' own, and none
    assert strict.seeds >= 3
    final, choosing = strict.options("hst", "kitti"), strict.options("hst", "kitti", choosing=True)
    assert (final["train_split"], final["eval_split"]) == ("train+val", "test")
    assert (choosing["train_split"], choosing["eval_split"]) == ("train", "val")
    assert "lr" not in final  # a method's own, until it was chosen


@pytest.mark.parametrize("name", protocols.names())
def test_nothing_is_chosen_on_the_test_set(name: str):
    assert protocols.find(name).choice == {"train_split": "train", "eval_split": "val"}


def test_another_method_has_the_common_settings_only():
    pictures = {"normalisation": "imagenet", "augmentation": "randaugment"}
    assert protocols.find("sct").options("lora", "kitti") == {**COMMON, "drop_path": 0.1, "seed": 42, **pictures}


def test_an_unknown_protocol_task_or_suite():
    with pytest.raises(RequestError, match=r"no protocol 'convpas'.*Did you mean 'convpass'"):
        protocols.find("convpas")
    with pytest.raises(RequestError, match=r"protocol hst has values of hst for cifar, .* none for 'kiti'.*'kitti'"):
        protocols.find("hst").options("hst", "kiti")
    with pytest.raises(
        RequestError, match=r"protocol hst is for vtab-1k, but the suite is fgvc: take the protocol strict"
    ):
        protocols.find("hst").check_suite(suites.find("fgvc"))
    protocols.find("hst").check_suite(suites.find("vtab-1k"))
    protocols.find("strict").check_suite(suites.find("fgvc"))


@pytest.mark.parametrize(("change", "said"), [
    ({"epoch": "best"}, r"The epoch of .* is 'best', but there is last, best on test, unknown"),
    ({"settings": {"normalisation": "imagnet"}}, r"no normalisation 'imagnet'.*Did you mean 'imagenet'"),
    ({"tasks": {"kitti": {"augmentation": "randaug"}}}, r"no augmentation 'randaug'.*Did you mean 'randaugment'"),
    ({"tasks": {"kitti": {"scale": 3}}}, r"part tasks, kitti, of .* has a field 'scale'"),
    ({"settings": {"epoch": 3}}, r"settings of .* has a field 'epoch'.*Did you mean 'epochs'"),
    ({"settings": {"epochs": 0}}, r"epochs is 0"),
    ({"choice": {"val": 1}}, r"choice of .* has a field 'val'"),
    ({"methods": {"hst": {"task": {}}}}, r"method hst of .* has a field 'task'.*'tasks'"),
    ({"methods": {"hst": {"tasks": {"kiti": {}}}}}, r"values for the task 'kiti'.*Did you mean 'kitti'"),
    ({"tasks": {"birds": {"augmentation": "flip"}}}, r"values for the task 'birds'"),
    ({"suites": ["vtab"]}, r"no suite 'vtab'"),
    ({"methods": []}, r"has \[\] as its methods, but that is an object"),
    ({"methods": {"hst": {"options": 3}}}, r"method hst of .* has 3 as its options"),
    ({"seeds": "three"}, r"has 'three' as its seeds, but that is a whole number"),
    ({"flag": []}, r"has a field 'flag'.*Did you mean 'flags'"),
])  # fmt: skip
def test_a_broken_protocol_file(tmp_path: Path, change: dict, said: str):
    whole = json.loads((Path(protocols.__file__).parent / "protocols" / "hst.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps({**whole, **change}))
    with pytest.raises(RequestError, match=said):
        protocols.load(tmp_path / "p.json")
    (tmp_path / "p.json").write_text(json.dumps({name: value for name, value in whole.items() if name != "flags"}))
    with pytest.raises(RequestError, match="lacks flags"):
        protocols.load(tmp_path / "p.json")
