"""A record says everything about a run, is whole or refused, and is found again by its key."""

import json
import platform
import subprocess
from dataclasses import asdict, replace

import pytest
from helpers_bench import TINY, make_data, make_job, make_record, result, suite_of, task_of

from vitgraft.bench import provenance, record
from vitgraft.common.errors import RequestError, WorkError


def written(folder, made=None):
    made = made or make_record()
    path = folder / f"{made.job.key}.json"
    record.write(made, path)
    return path


def test_comes_back_as_it_was(tmp_path):
    made = make_record()
    assert record.read(written(tmp_path, made), TINY) == made
    assert made.job.options() == {
        "lr": 1e-3, "image_size": [32, 32], "rank": 4, "method": "lora", "backbone": "vit.safetensors", "seed": 0,
    }  # fmt: skip


def test_key_is_the_same_tomorrow():
    """Were it another one, every benchmark there is would begin anew."""
    assert make_job().key == "bf7764125b7b6f32"


@pytest.mark.parametrize(
    "change",
    [
        {"suite": "other"},
        {"task": "svhn"},
        {"protocol": "hst"},
        {"method": "adapter"},
        {"arguments": {"rank": 8}},
        {"settings": {"lr": 1e-3, "image_size": (32, 64)}},
        {"seed": 1},
        {"fingerprint": "e" * 64},
        {"digest": "e" * 64},
    ],
)
def test_key_tells_runs_apart(change):
    assert make_job(**change).key != make_job().key


@pytest.mark.parametrize(
    "change",
    [
        {"label": "LoRA 4"},
        {"root": "/elsewhere"},
        {"backbone": "/elsewhere/vit.safetensors"},
        {"flags": ["best epoch on test"]},
        {"settings": {"image_size": [32, 32], "lr": 0.001}},
        {"settings": {"lr": 1e-3, "image_size": (32.0, 32), "workers": 8, "gradient_checkpointing": True}},
    ],
)
def test_key_is_blind_to_what_changes_no_result(change):
    assert make_job(**change).key == make_job().key


def test_a_precision_is_one_setting_as_a_number_and_as_a_word():
    assert record.sort_options({"precision": 32, "rank": 4}) == record.sort_options({"precision": "32", "rank": 4})


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(RequestError, match="arguments of 'lora' cannot be written as JSON"):
        make_job(arguments={"rank": float("nan")})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_cut_off(share, tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RequestError, match=r"is no whole record: it cannot be read .*delete it"):
        record.read(path)


@pytest.mark.parametrize("name", [*asdict(make_record()), "key", "format"])
def test_every_field_is_needed(name, tmp_path):
    path = written(tmp_path)
    told = json.loads(path.read_text())
    del told[name]
    path.write_text(json.dumps(told))
    with pytest.raises(RequestError, match="is no whole record"):
        record.read(path)


@pytest.mark.parametrize("name", asdict(make_record()))
def test_every_field_is_checked(name, tmp_path):
    path = written(tmp_path)
    told = json.loads(path.read_text())
    told[name] = ["nonsense"]
    path.write_text(json.dumps(told))
    with pytest.raises(RequestError, match=f"nonsense.* in the field {name}, which holds"):
        record.read(path)


@pytest.mark.parametrize("name", asdict(make_job()))
def test_every_field_of_the_job_is_checked(name, tmp_path):
    path = written(tmp_path)
    told = json.loads(path.read_text())
    told["job"][name] = 0.5
    path.write_text(json.dumps(told))
    with pytest.raises(RequestError, match=f"has 0.5 in the field job.{name}, which holds"):
        record.read(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("value", 75.0),
        ("value", float("nan")),
        ("value", True),
        ("interval", [0.9, 0.1]),
        ("seconds", -1),
        ("extra", 1),
    ],
)
def test_numbers_that_cannot_be(name, value, tmp_path):
    path = written(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(RequestError, match=f"{name}"):
        record.read(path)


def test_altered_job_does_not_pass_for_another(tmp_path):
    path = written(tmp_path)
    told = json.loads(path.read_text())
    told["job"]["seed"] = 1
    path.write_text(json.dumps(told))
    with pytest.raises(RequestError, match="says that it is the run"):
        record.read(path)


def test_renamed_record(tmp_path):
    path = written(tmp_path).rename(tmp_path / "0123456789abcdef.json")
    with pytest.raises(RequestError, match="says that it is the run"):
        record.read(path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "vitgraft bench record 99"}', "null"])
def test_foreign_file(content, tmp_path):
    path = tmp_path / "0.json"
    path.write_text(content)
    with pytest.raises(RequestError, match="does not begin as one"):
        record.read(path)


def test_other_suite(tmp_path):
    path = written(tmp_path)
    with pytest.raises(RequestError, match="is a record of the suite tiny, but other was asked for"):
        record.read(path, replace(TINY, name="other"))
    with pytest.raises(RequestError, match="of the task 'pets', but the suite tiny has cars"):
        record.read(path, suite_of(task_of("cars")))


def test_result_without_a_number():
    with pytest.raises(WorkError, match="measured nothing: give the setting eval_split"):
        record.of_result(make_job(), result(value=0.5) | {"value": None})
    with pytest.raises(WorkError, match="no number to keep: has nan in the field value"):
        record.of_result(make_job(), result(value=0.5) | {"value": float("nan")})


def test_result_on_other_weights():
    other = {"name": "vit", "source": "", "fingerprint": "0" * 64}
    with pytest.raises(WorkError, match=r"on weights with fingerprint f{12}, but vit.safetensors has 0{12}"):
        record.of_result(make_job(), result(backbone=other))


def test_data_digest(tmp_path):
    pets = make_data(tmp_path)["pets"]
    (pets / "images").mkdir()
    picture = pets / "images" / "0.jpg"
    picture.write_bytes(b"12345")
    (pets / ".cache").write_text("does not count")
    first = provenance.data_digest(pets)
    assert provenance.data_digest(pets.rename(tmp_path / "elsewhere")) == first
    changes = [lambda: (tmp_path / "elsewhere" / "train.txt").write_text("pets.jpg 1\n")]
    changes += [lambda: (tmp_path / "elsewhere" / "images" / "0.jpg").write_bytes(b"123456")]
    changes += [lambda: (tmp_path / "elsewhere" / "images" / "0.jpg").rename(tmp_path / "elsewhere" / "1.jpg")]
    seen = {first}
    for change in changes:
        change()
        seen.add(provenance.data_digest(tmp_path / "elsewhere"))
    assert len(seen) == 4


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="but the system refuses"):
        provenance.data_digest(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no file"):
        provenance.data_digest(tmp_path / "empty")


def git(folder, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_commit_and_dirty(tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    now = provenance.commit.__wrapped__
    assert now() == (None, None)  # no checkout
    git(tmp_path / "checkout", "init")
    assert now() == (None, None)  # a checkout that does not know the package: it is installed inside another project
    git(tmp_path / "checkout", "add", ".")
    git(tmp_path / "checkout", "commit", "-m", "first")
    commit, dirty = now()
    assert len(commit) == 40
    assert dirty is False
    (package.parent / "notes.txt").write_text("a folder of results beside the package changes no number")
    assert now() == (commit, False)
    (package / "new.py").write_text("")
    assert now() == (commit, True)


def test_machine_has_no_name():
    assert platform.node() not in provenance.machine().values()
    assert set(provenance.machine()) == {"system", "processor", "cores", "threads", "gpu"}
