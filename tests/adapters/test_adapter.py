"""The adapter file: small, whole, of this backbone, and never unpickled."""

import base64
import json
import pickle
import struct
import tracemalloc
import zlib
from dataclasses import asdict

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vitgraft import methods
from vitgraft.adapters import file as adapter
from vitgraft.backbones import Backbone
from vitgraft.backbones.weights import Loaded
from vitgraft.common.errors import RequestError
from vitgraft.common.settings import Settings
from vitgraft.engine import cost
from vitgraft.model import build
from vitgraft.testing.backbones import random_backbone, random_images


class Trap:
    """Unpickling it would leave a mark."""

    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def header_of(model, **more):
    backbone = model.backbone
    named = {"name": backbone.name, "source": backbone.source, "fingerprint": backbone.fingerprint}
    return {
        "task": "classify",
        "head": {"name": "linear", "options": {}, "neck_blocks": 0, "neck_width": 0},
        "method": model.method.name(),
        "arguments": model.method.arguments(),
        "backbone": named,
        "classes": ["a", "b", "ç"],
        "preprocess": backbone.preprocess().to_dict(),
        **more,
    }


@pytest.fixture
def model(cls):
    return build(cls, "hst", classes=3).eval()


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "adapter.safetensors"
    adapter.write(path, model.state(), header_of(model))
    return path


def header_edited(path, change):
    """Rewrites the safetensors header of a file in place, its tensors untouched."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + length])
    change(head)
    new = json.dumps(head).encode()
    new += b" " * (-len(new) % 8)
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])


def ours_edited(path, change):
    """Edits vitgraft's own header within it."""

    def outer(head):
        ours = json.loads(head["__metadata__"]["vitgraft"])
        change(ours)
        head["__metadata__"]["vitgraft"] = json.dumps(ours)

    header_edited(path, outer)


def refused(path, backbone, message):
    with pytest.raises(RequestError, match=message) as raised:
        adapter.load(path, backbone)
    assert str(path) in str(raised.value)
    assert raised.value.exit_code == 2


def test_what_is_written_is_read(model, path, cls):
    loaded = adapter.load(path, cls)
    assert loaded.preprocess == cls.preprocess()
    assert loaded.header["classes"] == ["a", "b", "ç"]
    assert not loaded.model.training
    images = random_images(cls)
    assert torch.equal(loaded.model(images), model(images))
    before = path.stat().st_size
    assert adapter.write(path, model.state(), header_of(model)) == before
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing temporary is left"


def test_an_edit_that_changes_nothing_is_no_edit(path, cls):
    """Shows that the edits below are refused for what they change, not for how they are made."""
    ours_edited(path, lambda ours: None)
    adapter.load(path, cls)


@pytest.mark.parametrize("keep", [0, 4, 9, 1000, 0.5, -1])
def test_truncated(path, cls, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refused(path, cls, "no readable safetensors file")


@pytest.mark.parametrize("where", [-1, -1000, 0.5])
def test_a_flipped_bit_in_a_tensor(path, cls, where):
    content = bytearray(path.read_bytes())
    content[int(where * len(content)) if isinstance(where, float) else where] ^= 1
    path.write_bytes(content)
    refused(path, cls, "was altered after it was written")


@pytest.mark.parametrize(
    "change",
    [
        lambda ours: ours["classes"].reverse(),
        lambda ours: ours["arguments"].update(detached=True),
        lambda ours: ours["arguments"].update(heads=[1, 4, 8, 12]),  # the tensors would fit, the answers be others
        lambda ours: ours.pop("backbone"),
        lambda ours: ours.pop("digest"),
        lambda ours: ours.update(method="linear"),
        lambda ours: ours["preprocess"].update(mean=[0, 0, 0]),
    ],
)
def test_an_edited_header(path, cls, change):
    ours_edited(path, change)
    refused(path, cls, "was altered after it was written")


def test_a_header_that_is_no_json(path, cls):
    header_edited(path, lambda head: head["__metadata__"].update(vitgraft="{"))
    refused(path, cls, "no readable safetensors file")


@pytest.mark.parametrize(
    "change", [lambda index: index[:-4], lambda index: index[4:], lambda index: "", lambda _: None]
)
def test_an_edited_index(path, cls, change):
    ours_edited(path, lambda ours: ours.update(tensors=change(ours["tensors"])))
    refused(path, cls, "was altered after it was written")


def test_a_row_that_is_renamed(path, cls):
    header_edited(path, lambda head: head.update(other=head.pop("float32")))
    refused(path, cls, "was altered after it was written")


def test_another_format_version(model, path, cls):
    ours_edited(path, lambda ours: ours.update(format=adapter.FORMAT + 1))
    refused(path, cls, f"format {adapter.FORMAT + 1}, and this version reads format {adapter.FORMAT}")


def test_a_pickle_named_safetensors(path, cls):
    for write in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))):
        write({"head.fc.bias": Trap()}, path)
        refused(path, cls, "no readable safetensors file")
    assert not Trap.sprung
    pickle.loads(pickle.dumps(Trap()))
    assert Trap.sprung, "the trap works"
    Trap.sprung = False


def test_a_safetensors_file_that_is_no_adapter(path, cls):
    save_file({"weight": torch.zeros(3)}, path)
    refused(path, cls, "no adapter of vitgraft")
    save_file({"weight": torch.zeros(3)}, path, {"vitgraft": "[]"})
    refused(path, cls, "no adapter of vitgraft")


def test_no_file_and_a_folder(tmp_path, cls):
    refused(tmp_path / "nothing", cls, "There is no adapter file")
    refused(tmp_path, cls, "There is no adapter file")


def test_another_backbone(path, cls):
    other = random_backbone("cls", seed=1)
    refused(path, other, f"{cls.fingerprint[:12]}.*but the backbone here is .*{other.fingerprint[:12]}")


def test_tensors_of_another_shape(model, path, cls):
    """A whole file whose header and tensors disagree, written so."""
    state = model.state()
    adapter.write(path, {**state, "head.fc.bias": torch.zeros(4)}, header_of(model))
    refused(path, cls, "do not fit its header")
    adapter.write(path, {n: t for n, t in state.items() if n != "head.fc.bias"}, header_of(model))
    refused(path, cls, "do not fit its header")


def test_a_file_of_the_first_form(path, cls):
    """One tensor for each name, no index."""
    save_file({"head.fc.bias": torch.zeros(3)}, path, {"vitgraft": json.dumps({"format": 1, "digest": "0"})})
    refused(path, cls, "format 1, and this version reads format 2: use the version of vitgraft that wrote it")


# The index


ODD = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
    "half": torch.tensor([[0.5]], dtype=torch.float16),
    "bf16": torch.tensor([1.5], dtype=torch.bfloat16),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "transposed": torch.arange(6.0).reshape(2, 3).mT,
    'ä "name"': torch.tensor([-1], dtype=torch.int8),
}


def test_tensors_of_every_kind_come_back_as_they_were(tmp_path):
    adapter.write(tmp_path / "a", ODD, {"task": "none"})
    tensors, header = adapter.read(tmp_path / "a")
    assert header == {"format": adapter.FORMAT, "task": "none"}
    assert tensors.keys() == ODD.keys()
    for name, tensor in ODD.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name
    adapter.write(tmp_path / "again", tensors, header)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "a").read_bytes()
    with safe_open(tmp_path / "a", "pt") as file:
        assert set(file.keys()) == {"float16", "float32", "bfloat16", "float64", "int64", "int8", "bool"}
    adapter.write(tmp_path / "none", {}, {})
    assert adapter.read(tmp_path / "none") == ({}, {"format": adapter.FORMAT})


def deflated(text):
    return base64.b64encode(zlib.compress(text.encode())).decode()


def of_shapes(*shapes, kind="float32"):
    return deflated(json.dumps({kind: [[f"t{i}", shape] for i, shape in enumerate(shapes)]}))


FULL = of_shapes([2, 3], [4])
CRAFTED = {
    "no text": None,
    "an object": {"float32": [["t", [10]]]},
    "no base64": "!" + FULL,
    "no zlib": base64.b64encode(b"something else").decode(),
    "cut off": base64.b64encode(base64.b64decode(FULL)[:-6]).decode(),
    "no JSON": deflated("{"),
    "a list": deflated("[]"),
    "deep": deflated("[" * 100000),
    "too short": of_shapes([2, 3]),
    "too long": of_shapes([2, 3], [5]),
    "much too long": of_shapes([2**62], [2**62], [2**62], [2**62], [10]),
    "larger than any number": of_shapes([10**30], [10]),
    "a product that overflows to none": of_shapes([2**32, 2**32], [10]),
    "below zero": of_shapes([-10, -1]),
    "to be filled in": of_shapes([10], [0, -1]),
    "broken": of_shapes([2.5, 4]),
    "a shape of words": of_shapes(["2", "5"]),
    "no shape": of_shapes(None, [10]),
    "no pair": deflated(json.dumps({"float32": [["t", [10], 0]]})),
    "a name twice": deflated(json.dumps({"float32": [["t", [5]], ["t", [5]]]})),
    "a name that is none": deflated(json.dumps({"float32": [[0, [10]]]})),
    "another dtype": of_shapes([10], kind="int32"),
    "a dtype more": deflated(json.dumps({"float32": [["t", [10]]], "int8": []})),
    "no dtype": deflated("{}"),
}


def crafted(path, monkeypatch, index, rows=None):
    """A file whose digest is right, and whose index holds this."""
    rows = {"float32": torch.arange(10.0)} if rows is None else rows
    with monkeypatch.context() as patched:
        patched.setattr(adapter, "_pack", lambda tensors: (rows, index))
        adapter.write(path, {}, {})


def test_a_crafted_index_that_is_right(tmp_path, monkeypatch):
    """Shows that those below are refused for what they say."""
    crafted(tmp_path / "a", monkeypatch, FULL)
    tensors, _ = adapter.read(tmp_path / "a")
    assert {name: t.flatten().tolist() for name, t in tensors.items()} == {"t0": [0, 1, 2, 3, 4, 5], "t1": [6, 7, 8, 9]}


@pytest.mark.parametrize("index", CRAFTED)
def test_a_crafted_index(index, tmp_path, cls, monkeypatch):
    crafted(tmp_path / "a", monkeypatch, CRAFTED[index])
    refused(tmp_path / "a", cls, "index of its tensors that cannot be read or does not agree with them: take an intact")


@pytest.mark.parametrize("rows", [{"float32": torch.zeros(2, 5)}, {"float32": torch.zeros(10).int()}])
def test_a_crafted_row(rows, tmp_path, cls, monkeypatch):
    crafted(tmp_path / "a", monkeypatch, of_shapes([10]), rows)
    refused(tmp_path / "a", cls, "index of its tensors")


def test_a_name_twice_under_two_dtypes(tmp_path, cls, monkeypatch):
    index = deflated(json.dumps({"float32": [["t", [1]]], "int8": [["t", [1]]]}))
    crafted(tmp_path / "a", monkeypatch, index, {"float32": torch.zeros(1), "int8": torch.zeros(1).to(torch.int8)})
    refused(tmp_path / "a", cls, "index of its tensors")


def test_no_index(tmp_path, cls):
    rows, header = {"float32": torch.zeros(1)}, {"format": adapter.FORMAT}
    header["digest"] = adapter._digest(rows, header)
    save_file(rows, tmp_path / "a", {"vitgraft": json.dumps(header)})
    refused(tmp_path / "a", cls, "index of its tensors")


def test_an_index_that_would_fill_the_memory(tmp_path, cls, monkeypatch):
    """Right to the last byte, but followed by 256 MiB of spaces."""
    packer = zlib.compressobj()
    packed = b"".join([packer.compress(b"{}"), *(packer.compress(b" " * 2**22) for _ in range(64)), packer.flush()])
    crafted(tmp_path / "a", monkeypatch, base64.b64encode(packed).decode(), {})
    tracemalloc.start()
    refused(tmp_path / "a", cls, "index of its tensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert adapter.LONGEST_INDEX < peak < 3 * adapter.LONGEST_INDEX


# Size


def test_float16_only_where_it_holds_the_tensor():
    tensors = {
        "plain": torch.randn(1000),
        "zeros": torch.zeros(5),
        "large": torch.tensor([1.0, 70000.0]),
        "tiny": torch.full((3,), 1e-9),
        "small norm": torch.tensor([1e-7, 3e-7, 5e-7]),
        "not a number": torch.tensor([1.0, float("nan")]),
        "endless": torch.tensor([1.0, float("inf")]),
        "flags": torch.tensor([True, False]),
        "doubles": torch.randn(5, dtype=torch.float64),
        "bf16": torch.randn(5).bfloat16(),
    }
    kept = adapter.compact(tensors)
    assert {name for name, t in kept.items() if t.dtype == torch.float16} == {"plain", "zeros", "bf16"}
    for name, tensor in tensors.items():
        if kept[name].dtype != torch.float16:
            assert kept[name].dtype == tensor.dtype
            torch.testing.assert_close(kept[name], tensor, rtol=0, atol=0, equal_nan=True)
        else:
            assert (kept[name].double() - tensor.double()).norm() <= 1e-3 * tensor.double().norm()


@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [
        ([0, 255], torch.uint8),
        ([-1, 127], torch.int8),
        ([-1, 128], torch.int16),
        ([0, 256], torch.int16),
        ([0, 767], torch.int16),
        ([-(2**15), 2**15 - 1], torch.int16),
        ([2**15], torch.int32),
        ([-(2**31), 2**31 - 1], torch.int32),
        ([2**31], torch.int64),
        ([-(2**63), 2**63 - 1], torch.int64),
    ],
)
def test_integers_take_the_smallest_type_that_holds_them(numbers, dtype):
    kept = adapter.compact({"t": torch.tensor(numbers)})["t"]
    assert kept.dtype == dtype
    assert kept.tolist() == numbers
    assert adapter.compact({"t": torch.zeros(0, dtype=torch.int64)})["t"].dtype == torch.int64


def test_integers_come_back_in_the_type_of_the_model(cls, tmp_path):
    model = build(cls, "sct", classes=3)
    for i, salient in enumerate(salients(model)):
        salient.indices.copy_(torch.randperm(cls.width)[: len(salient.indices)].sort().values)
        assert i or not torch.equal(salient.indices, torch.arange(len(salient.indices)))
    adapter.write(tmp_path / "a", adapter.compact(model.state()), header_of(model))
    stored, _ = adapter.read(tmp_path / "a")
    assert {t.dtype for name, t in stored.items() if name.endswith("indices")} == {torch.uint8}
    for ours, loaded in zip(salients(model), salients(adapter.load(tmp_path / "a", cls).model), strict=True):
        assert loaded.indices.dtype == torch.int64
        assert torch.equal(loaded.indices, ours.indices)


def salients(model):
    return [salient for parts in model.method.salient for salient in parts.values()]


@pytest.fixture(scope="module")
def vit_b16():
    vit = timm.create_model("vit_base_patch16_224", num_classes=0, dynamic_img_size=True)
    half = (0.5, 0.5, 0.5)
    return Backbone.of(
        Loaded(vit, "vit_base_patch16_224", "random", "vit_base_patch16_224", half, half, "bicubic", (224, 224))
    )


INSTALLED = [name for name in methods.names() if not methods.find(name).missing()]
FORMS = [*((name, {}) for name in INSTALLED), ("hst", {"detached": True}), ("sct", {"mode": "qkv"})]


@pytest.mark.parametrize(("method", "arguments"), FORMS)
def test_size_on_vit_b16(method, arguments, vit_b16, tmp_path):
    """Two bytes for each parameter, and little for all else: the header, the index, batch statistics, channels."""
    model = build(vit_b16, method, classes=10, **arguments)
    model.method.ready = True
    with torch.no_grad():
        for parameter in model.trained().values():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.01, 0.01))
    model.method.consolidate()
    more = {
        "classes": [f"class {i}" for i in range(10)],
        "protocol": asdict(Settings()) | {"epoch_reported": "last"},
        "metrics": {"metric": "top-1 accuracy", "value": 1 / 3, "interval": [1 / 3, 1 / 3], "split": "val"},
        "versions": dict.fromkeys(("vitgraft", "torch", "timm", "python"), "1.23.456+local"),
    }
    size = adapter.write(tmp_path / "a", adapter.compact(model.state()), header_of(model, **more))
    counts = cost.parameters(model)
    parameters = counts["method"] + counts["head"]
    assert size == (tmp_path / "a").stat().st_size
    assert 2 * parameters < size <= 2.02 * parameters + 4096
