"""The adapter file: small, whole, of this backbone, and never unpickled."""

import json
import pickle
import struct

import pytest
import torch
from conftest import random_backbone, random_images
from safetensors.torch import save_file

from vitgraft import adapter, catalogue
from vitgraft.errors import RequestError
from vitgraft.model import build


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
        "head": {"name": "linear", "options": {}},
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


def test_a_tensor_that_is_renamed(path, cls):
    header_edited(path, lambda head: head.update(other=head.pop("head.fc.bias")))
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
        "counts": torch.arange(5),
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


def test_size_of_hst_on_vit_b16(tmp_path, cls):
    """Two bytes per number, 100 bytes per tensor for its name and place, and the header."""
    method = catalogue.attached("hst", catalogue.shape_of(catalogue.VIT_B16))
    tensors = {f"method.{name}": torch.randn(t.shape) for name, t in method.state_dict().items()}
    tensors |= {"head.fc.weight": torch.randn(10, 72), "head.fc.bias": torch.randn(10)}
    size = adapter.write(tmp_path / "a", adapter.compact(tensors), header_of(build(cls, "hst", classes=3)))
    assert size == (tmp_path / "a").stat().st_size
    numbers = sum(t.numel() for t in tensors.values())
    parameters = sum(p.numel() for p in method.parameters()) + 730
    assert 2 * numbers < size <= 2 * numbers + 100 * len(tensors) + 2048
    assert size <= 2.05 * parameters
