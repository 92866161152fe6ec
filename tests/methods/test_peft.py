"""The bridge to the package peft: what it computes is what peft computes, for every peft_type that is named here."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from helpers_cli import call, environment, fit, result_of

from vitgraft import methods
from vitgraft.adapters import file as adapter
from vitgraft.adapters.merge import merge
from vitgraft.common.errors import RequestError
from vitgraft.model import build
from vitgraft.pages import catalogue
from vitgraft.testing.backbones import random_backbone, random_images
from vitgraft.testing.methods import header_of, shaken, steps

peft = pytest.importorskip("peft", reason="the optional package peft is not installed")

LAYERS = ["qkv", "attn.proj", "fc1", "fc2"]
LORA = {"peft_type": "LORA", "r": 4, "target_modules": LAYERS}
# Those that docs/methods/peft.md says work. Sizes that fit a tiny ViT; otherwise the type's own defaults.
WORK = {
    "ADAMSS": {"r": 8, "num_subspaces": 2, "subspace_rank": 1},
    "BEFT": {},
    "BOFT": {"boft_block_size": 12},
    "C3A": {"block_size": 12},
    "DEFT": {},
    "DELORA": {},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {"progressbar": False},
    "GLORA": {},
    "GRALORA": {"r": 8},
    "HIRA": {},
    "HRA": {},
    "IA3": {"feedforward_modules": ["fc1", "fc2"]},
    "LILY": {"r": 4, "stride_A": 1, "num_B": 2},
    "LN_TUNING": {"target_modules": r"(blocks\.\d+\.)?norm\d?"},
    "LOHA": {},
    "LOHA patches": {"target_modules": ["proj"]},
    "LOKR": {},
    "LOKR patches": {"target_modules": ["proj"]},
    "LORA": {},
    "LORA bias": {"bias": "all"},
    "LORA bias of B": {"lora_bias": True},
    "LORA dora": {"use_dora": True},
    "LORA dora patches": {"use_dora": True, "target_modules": ["qkv", "proj"]},
    "LORA everywhere": {"target_modules": "all-linear"},
    "LORA modules_to_save": {"modules_to_save": ["norm"]},
    "LORA orthogonal": {"init_lora_weights": "orthogonal"},
    "LORA parameters": {"target_parameters": ["qkv.weight"], "target_modules": []},
    "LORA patches": {"target_modules": ["proj"]},
    "LORA rslora": {"use_rslora": True},
    "MISS": {"r": 8},
    "OFT": {"oft_block_size": 12, "r": 0},
    "OFT patches": {"oft_block_size": 12, "r": 0, "target_modules": ["proj"]},
    "OSF": {"effective_rank": 8},
    "PEANUT": {},
    "PSOFT": {"r": 4},
    "PVERA": {},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 12},
    "SHIRA": {"r": 4},
    "SUPERTUNING": {},
    "TINYLORA": {},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"vector_length": 12, "num_vectors": 16},
    "VERA": {},
    "WAVEFT": {"n_frequency": 48},
}
UNMERGED = {"ADAMSS": "Float and Double", "LILY": "not linear"}


def config_of(name):
    return {"peft_type": name.split()[0], "target_modules": LAYERS, **WORK[name]}


def model_of(config, backbone, seed=0):
    return build(backbone, "peft", classes=5, seed=seed, peft_config=config).eval()


@pytest.fixture(scope="module")
def small():
    return random_backbone("cls", depth=2)


@pytest.mark.parametrize("name", WORK)
def test_it_computes_trains_loads_and_merges_as_in_peft(name, small, tmp_path):
    if name.split()[0] not in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
        pytest.skip(f"peft {peft.__version__} has no {name}")
    config, images = config_of(name), random_images(small)
    before = {name: tensor.clone() for name, tensor in small.tensors().items()}
    model = model_of(config, small)
    losses = steps(model, images, 3)
    assert all(loss == loss and loss < 1e4 for loss in losses)
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.tensors().items())

    sum(model(images, torch.arange(3)).values()).backward()
    gradients = {name: p.grad for name, p in model.trained().items() if name.startswith("method.")}
    assert all(grad.isfinite().all() for grad in gradients.values())
    assert sum(bool(grad.any()) for grad in gradients.values()) > 0.9 * len(gradients)

    # peft's own model of timm's own ViT, with our tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = peft.get_peft_model(copy.deepcopy(small.vit), peft.get_peft_config(copy.deepcopy(config)))
    own = dict(model.method.state_dict(keep_vars=True))
    own |= {again: own[first] for again, first in model.method._again().items() if first in own}
    names = {}
    for key in theirs.state_dict():
        plain = key.removeprefix("base_model.model.")
        for mark in (".base_layer", ".modules_to_save.default", ".ln_tuning_layers.default"):
            plain = plain.replace(mark, "")
        path, leaf = max(
            ((p, plain[len(p) + 1 :]) for p in small.affine if plain.startswith(f"{p}.")), default=("", "")
        )
        for ours in (f"contacts.trained.{plain}", f"contacts.changes.{path}.layer.{leaf}"):
            if ours in own and "original_module" not in key:
                names[key] = ours
    assert set(names.values()) >= set(dict(model.method.named_parameters()))
    theirs.load_state_dict({key: own[ours].detach() for key, ours in names.items()}, strict=False)
    if (
        name == "OFT patches"
    ):  # there peft's forward pass sums over windows that overlap, and differs from its own merge
        theirs = theirs.merge_and_unload()
    with torch.no_grad():
        pooled = model.method.features(small, images, model.method.read(small, images)).pooled
        torch.testing.assert_close(pooled, theirs.eval()(images), rtol=1e-4, atol=1e-5)

    # The file, and another model of its header
    adapter.write(tmp_path / "adapter", model.state(), header_of(model))
    tensors, header = adapter.read(tmp_path / "adapter")
    again = model_of(header["arguments"]["peft_config"], small, seed=7)
    again.load_state(tensors)
    assert torch.equal(again(images), model(images))

    if name in UNMERGED:
        with pytest.raises(RequestError, match=UNMERGED[name]):
            merge(model)
    else:
        assert merge(model).relative < 1e-5


def test_our_lora_is_theirs():
    """The same output and the same gradients, to 1e-10, when A and B are the same."""
    backbone, images = random_backbone("dinov2").double(), random_images(random_backbone("dinov2"), (3, 5)).double()
    targets = ("qkv", "proj", "fc1", "fc2")
    ours = build(backbone, "lora", classes=5, targets=targets, rank=8, alpha=8.0).double()
    theirs = build(backbone, "peft", classes=5).double()
    shaken(ours)
    theirs.head.load_state_dict(ours.head.state_dict())
    pairs = []
    for path, change in ours.method.contacts.change_at.items():
        layer = theirs.method.contacts.change_at[path].layer
        pairs += [(change.A, layer.lora_A.default.weight), (change.B[0], layer.lora_B.default.weight)]
    assert len(pairs) == 2 * 4 * backbone.depth
    assert ours.method.size == theirs.method.size
    for one, other in pairs:
        other.data.copy_(one)
    losses = [sum(model(images, torch.arange(3)).values()) for model in (ours, theirs)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-10, atol=1e-10)
    for loss in losses:
        loss.backward()
    for one, other in pairs:
        assert one.grad.any()
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)


def test_tensors_of_the_vit_that_peft_trains_are_trained_copies(small):
    names = model_of(config_of("LN_TUNING"), small).method.contacts.trained.state_dict().keys()
    assert names == build(small, "layernorm", classes=5).method.contacts.trained.state_dict().keys()
    both = model_of({**LORA, "bias": "lora_only", "modules_to_save": ["norm"]}, small)
    assert both.method.contacts.kinds == ("train", "weight")
    kept = set(both.method.contacts.trained.state_dict())
    assert kept == {n for n in small.tensors() if n.endswith(".bias") and n[:-5] in small.linears} | {
        "norm.weight",
        "norm.bias",
    }


def test_what_layers_share_is_stored_once(small):
    state = model_of(config_of("VERA"), small).state()
    assert [name.rpartition("layer.")[2] for name in state if "vera_A" in name] == ["vera_A.default"]
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


# What comes in


def test_a_configuration_comes_as_file_folder_dict_or_object(tmp_path, small):
    given = peft.LoraConfig(r=2, target_modules=["qkv"], task_type="SEQ_CLS", inference_mode=True)
    given.base_model_name_or_path = "somewhere/else"
    given.save_pretrained(tmp_path)
    folder, file = methods.create("peft", peft_config=str(tmp_path)), tmp_path / "adapter_config.json"
    assert folder.arguments() == methods.create("peft", peft_config=str(file)).arguments()
    sizes = {model_of(config, small).method.size for config in (str(file), json.loads(file.read_text()), given)}
    assert sizes == {2 * 2 * (48 + 144)}


BAD = {
    "no file": ("nowhere.json", "'nowhere.json' cannot be read .*No such file.*: give a JSON file"),
    "no JSON": ("{folder}/text.json", "text.json' cannot be read .*: give a JSON file as peft writes it"),
    "no object": ("{folder}/list.json", 'states no peft_type: add one, for example "LORA"'),
    "no type": ({"r": 4}, "states no peft_type"),
    "unknown type": ({**LORA, "peft_type": "LORRA"}, r"no peft_type 'LORRA' in peft .*Did you mean 'LORA'"),
    "unknown setting": ({**LORA, "use_dorra": True}, "LORA has no setting 'use_dorra' .*Did you mean 'use_dora'"),
    "no target": ({"peft_type": "LORA"}, "Please specify `target_modules`"),
    "nothing there": ({**LORA, "target_modules": ["query"]}, "cannot put LORA on tiny siglip .*'query'.* not found"),
    "no such layer": ({**LORA, "target_modules": ["kv"]}, "match 'attn_pool.kv', which .*: name it in exclude_modules"),
    "pissa": ({**LORA, "init_lora_weights": "pissa"}, "alters the weights of the backbone .*: choose another init"),
    "olora": ({**LORA, "target_modules": ["qkv"], "init_lora_weights": "olora"}, "alters the weights of the backbone"),
    "eva": ({**LORA, "init_lora_weights": "eva"}, "needs the training pictures .*: leave it out"),
    "adalora": ({**LORA, "peft_type": "ADALORA", "total_step": 9}, "total_step needs update_and_allocate after every"),
    "prompts": ({"peft_type": "PROMPT_TUNING"}, "made for language models .*; here vpt adds tokens"),
    "adaption": ({"peft_type": "ADAPTION_PROMPT"}, "made for language models .*; here vpt adds tokens"),
    "poly": ({"peft_type": "POLY", "target_modules": ["qkv"]}, "cannot put POLY on .*task_ids"),
    "xlora": ({"peft_type": "XLORA", "hidden_size": 8, "adapters": {}}, "cannot put XLORA on"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration_is_one_sentence(case, tmp_path):
    (tmp_path / "text.json").write_text("r = 4")
    (tmp_path / "list.json").write_text("[1]")
    given, says = BAD[case]
    given = given.format(folder=tmp_path) if isinstance(given, str) else given
    backbone = random_backbone("siglip", depth=1)
    with pytest.raises(RequestError, match=f"(?s){says}") as error:
        model_of(given, backbone)
    assert "\n" not in str(error.value)


# The command line


def test_fit_with_a_file_that_is_not_needed_later(ground, tmp_path, capsys):
    file = tmp_path / "ia3.json"
    file.write_text(json.dumps(config_of("IA3")))
    run = fit(ground, tmp_path / "run", "--method", "peft", "--peft-config", file)
    file.unlink()
    assert result_of(run)["arguments"] == {"peft_config": config_of("IA3")}
    assert call("evaluate", run, ground.easy, "--json") == 0
    assert call("merge", run, "--out", tmp_path / "merged.safetensors") == 0
    capsys.readouterr()
    assert call("fit", ground.easy, "--method", "peft", "--peft-config", file, "--out", tmp_path / "other") == 2
    assert capsys.readouterr().err.startswith("vitgraft: The peft_config ")


def test_without_the_package_all_but_this_method_works(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RequestError, match=r"needs the package peft.*pip install 'vitgraft\[peft\]'"):
        model_of(None, small)
    monkeypatch.setattr(methods.find("peft"), "missing", lambda: True)
    (row,) = [row for row in catalogue.table() if row["name"] == "peft"]
    assert row["parameters_vit_b16"] is None
    (line,) = [line for line in catalogue.text().splitlines() if line.startswith("peft ")]
    assert line.split() == ["peft", "needs", "vitgraft[peft]"]


def test_the_package_is_imported_when_it_is_needed_and_not_before():
    words = "import sys; from vitgraft import methods; made = methods.create('peft'); print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
