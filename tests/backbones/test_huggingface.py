"""A folder of transformers gives what transformers gives: tiny random models, saved by it and read by us."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vitgraft.backbones import Backbone, huggingface, weights
from vitgraft.common.errors import RequestError

transformers = pytest.importorskip("transformers")

SIZE = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 136,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
STAGES = {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
# name -> the class of the model, and its configuration
MODELS = {
    "vit": ("ViTModel", SIZE),
    "vit classifier": ("ViTForImageClassification", SIZE),
    "vit_mae": ("ViTMAEForPreTraining", {**SIZE, "mask_ratio": 0.0}),
    "deit": ("DeiTModel", SIZE),
    "dinov2": ("Dinov2Model", {**SIZE, "mlp_ratio": 3}),
    "dinov2 giant": ("Dinov2ForImageClassification", {**SIZE, "mlp_ratio": 4, "use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {**SIZE, "num_register_tokens": 3}),
    "dinov3_vit": ("DINOv3ViTModel", {**SIZE, "num_register_tokens": 4, "layer_norm_eps": 1e-5}),
    "dinov3_vit gated": (
        "DINOv3ViTModel",
        {**SIZE, "use_gated_mlp": True, "hidden_act": "silu", "layer_norm_eps": 1e-5},
    ),
    "clip": ("CLIPVisionModel", {**SIZE, "layer_norm_eps": 1e-5}),
    "clip gelu": ("CLIPVisionModelWithProjection", {**SIZE, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}),
    "siglip": ("SiglipVisionModel", SIZE),
    "siglip mean": ("SiglipVisionModel", {**SIZE, "vision_use_head": False}),
    "swin": ("SwinModel", STAGES),
    "swinv2": ("Swinv2Model", {**STAGES, "pretrained_window_sizes": [2, 2]}),
}


WITH_A_HEAD = ("ViTForImageClassification", "ViTMAEForPreTraining", "Dinov2ForImageClassification")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> a model of transformers in float64, and the folder that it was saved to."""
    root, made = tmp_path_factory.mktemp("transformers"), {}

    def save(name):
        if name not in made:
            kind, config = MODELS[name]
            cls = getattr(transformers, kind)
            torch.manual_seed(0)
            model = cls(cls.config_class(**config)).eval()
            with torch.no_grad():
                for tensor in model.parameters():  # biases, norms and tokens start at 0 and 1
                    tensor.add_(0.05 * torch.randn_like(tensor))
            model.save_pretrained(root / name)
            made[name] = model.double(), root / name
        return made[name]

    return save


def answer(model, images):
    """[B, T, D] of transformers, its last norm included."""
    body = model.base_model if type(model).__name__ in WITH_A_HEAD else model
    given = {"noise": torch.arange(16.0).expand(len(images), -1)} if model.config.model_type == "vit_mae" else {}
    with torch.no_grad():
        return body(images, **given)


@pytest.mark.parametrize("name", MODELS)
def test_the_tokens_are_theirs(name, saved):
    model, folder = saved(name)
    backbone = Backbone.load(str(folder)).double()
    images = torch.randn(2, 3, *backbone.native.size, dtype=torch.float64)
    theirs = answer(model, images)
    with torch.no_grad():
        ours = backbone(images).tokens
    expected = theirs.last_hidden_state
    if name.startswith("clip"):  # theirs norms the pooled token alone
        expected = model.get_submodule("post_layernorm" if name == "clip" else "vision_model.post_layernorm")(expected)
    # In float32: a sum of two tokens of theirs that is one of ours, and their rotary table.
    near = 1e-6 if "registers" in name or "dinov3" in name else 1e-9
    torch.testing.assert_close(ours, expected, rtol=near, atol=near)


@pytest.mark.parametrize("name", ["dinov2", "dinov3_vit", "siglip", "swin", "swinv2"])
def test_it_is_pooled_as_theirs(name, saved):
    model, folder = saved(name)
    backbone = Backbone.load(str(folder)).double()
    images = torch.randn(2, 3, *backbone.native.size, dtype=torch.float64)
    with torch.no_grad():
        pooled = backbone.pool(backbone(images).tokens)
    near = 1e-6 if name == "dinov3_vit" else 1e-9
    torch.testing.assert_close(pooled, answer(model, images).pooler_output, rtol=near, atol=near)


@pytest.mark.parametrize("name", MODELS)
def test_names_as_they_stand_in_memory_too(name, saved, tmp_path):
    """transformers 5 has other names in memory than in its files, which are those of transformers 4."""
    model, folder = saved(name)
    shutil.copy(folder / "config.json", tmp_path)
    save_file({key: t.float().contiguous() for key, t in model.state_dict().items()}, tmp_path / "model.safetensors")
    assert weights.load(str(tmp_path)).vit.state_dict().keys() == weights.load(str(folder)).vit.state_dict().keys()
    assert Backbone.load(str(tmp_path)).fingerprint == Backbone.load(str(folder)).fingerprint


def test_what_stands_beside_the_weights(saved, tmp_path):
    """Preprocessing, licence, several files; a file in the folder is the same."""
    _, folder = saved("dinov2")
    shutil.copy(folder / "config.json", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    shards = {f"{i}.safetensors": sorted(tensors)[i::2] for i in range(2)}
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2})
    )
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: some-license\n---\n# A model\n")
    said = []
    loaded = weights.load(str(tmp_path), say=said.append)
    assert (loaded.mean, loaded.std, loaded.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    assert loaded.size == (32, 32)
    assert loaded.license == "some-license"
    assert said[-1] == "licence of the weights: some-license"
    assert Backbone.of(loaded).fingerprint == Backbone.load(str(folder / "model.safetensors")).fingerprint
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(RequestError, match=r"holds weights in 2 files, but 1\.safetensors is not there"):
        weights.load(str(tmp_path))


def test_a_kind_that_cannot_be_read(tmp_path, saved):
    _, folder = saved("vit")
    shutil.copy(folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit"}))
    with pytest.raises(RequestError, match=r"of the kind 'beit', which cannot be read: there are vit, .*swinv2"):
        weights.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(RequestError, match="describes a vit but lacks 'image_size'"):
        weights.load(str(tmp_path))
    other = {**transformers.DINOv3ViTConfig(**SIZE).to_dict(), "key_bias": True}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(RequestError, match="a DINOv3 with key_bias True, which no released one has"):
        weights.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**SIZE, "model_type": "vit", "hidden_act": "relu"}))
    with pytest.raises(RequestError, match=r"activation is 'relu', which cannot be had: there are gelu, .*; take"):
        weights.load(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(RequestError, match="does not say which timm architecture"):
        weights.load(str(tmp_path))


def test_weights_of_another_kind_than_the_config_says(saved, tmp_path):
    _, folder = saved("swin")
    shutil.copy(folder / "model.safetensors", tmp_path)
    shutil.copy(saved("vit")[1] / "config.json", tmp_path)
    with pytest.raises(RequestError, match="does not fit vit_base_patch16_224: tensor 'cls_token' is missing"):
        weights.load(str(tmp_path))


def test_every_kind_is_tried():
    kinds = {getattr(transformers, cls).config_class.model_type for cls, _ in MODELS.values()}
    assert kinds == set(huggingface.KINDS)
