"""A bridge to the package peft: whatever it can put on the backbone's layers runs here, under our protocol.

peft (Mangrulkar et al. 2022, github.com/huggingface/peft) replaces modules of a model. It gets a copy of the ViT to do
so: each module that it replaced there becomes a `Change` of the backbone's own layer, each tensor of the ViT that it
would train a trained copy. The backbone stays as it is, and none of its tensors gets into the method.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..backbones import Backbone
from ..common.errors import RequestError, near_misses
from ..kernels.linear import Change, exact
from ..method import Method

# peft takes a text as a pattern of the whole path; the name "proj" would be the patch embedding's too.
BLOCKS = r"(layers\.\d+\.)?blocks\.\d+\.(attn\.(qkv|([qkv]_)?proj)|mlp\.fc\w+)"
DEFAULT = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": BLOCKS}
# What peft's file says about the model that it was saved from: here the model is ours, and it trains.
OURS = {"task_type": None, "inference_mode": False, "base_model_name_or_path": None, "revision": None}
# What peft puts into the name of a tensor of the model that it trains itself, or in a copy.
MARKS = re.compile(r"^base_model\.model\.|\.(base_layer|modules_to_save\.default|ln_tuning_layers\.default)(?=\.)")
# Settings (the value that does it, None for any) that change nothing unless a training loop does more than ours.
ASKING = {
    "total_step": (None, "update_and_allocate after every step"),
    "use_asa": (None, "update_and_allocate after every step"),
    "monteclora_config": (None, "a loss of its own"),
    "alora_invocation_tokens": (None, "the tokens of a text"),
    "init_lora_weights": ("eva", "the training pictures before it starts"),
}


class Peft(Method):
    """Any method of the package peft that changes the backbone's layers.

    peft_config: a JSON file as peft writes it (adapter_config.json, or the folder that holds it), or its content as a
    dict; without it LoRA of rank 8 and alpha 8 on every linear layer of the blocks. The content is kept, so an
    adapter does not need the file. Needs the package: pip install 'vitgraft[peft]'.

    Parameters: as many as peft makes of the configuration; of the default, for L blocks of width D, rank 8 times
    16 L D: 1,179,648 on ViT-B/16.
    """

    title = "peft, any method of that package"
    paper = "Mangrulkar et al. 2022, github.com/huggingface/peft"
    variants = (
        {"peft_config": {"peft_type": "IA3", "target_modules": ["qkv", "attn.proj"], "feedforward_modules": ["qkv"]}},
        {"peft_config": {"peft_type": "VERA", "r": 4, "target_modules": ["qkv", "attn.proj"]}},
        {"peft_config": {"peft_type": "LORA", "use_dora": True, "bias": "all", "target_modules": ["patch_embed.proj"]}},
    )
    needs = "peft"
    keeps = 0.85  # 0.6 with LoRA

    def __init__(self, *, peft_config: str | dict[str, Any] | None = None) -> None:
        super().__init__()
        self.peft_config = DEFAULT if peft_config is None else _read(peft_config)

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        model, layers = _inject(self.peft_config, backbone)
        trains = {MARKS.sub("", name): p for name, p in model.named_parameters() if p.requires_grad}
        for name in [name for name in trains if name in backbone.tensors()]:
            self.contacts.train_tensor(backbone, name)
            del trains[name]
        for path, layer in layers.items():
            if path not in backbone.affine:
                raise RequestError(
                    f"The target_modules match {path!r}, which is no layer of {backbone.name} that can be changed: "
                    f"name it in exclude_modules, or give target_modules as a pattern of whole paths, like {BLOCKS!r}."
                )
            plain = backbone.affine[path]
            if any(_differ(p, layer.get_base_layer().get_parameter(name)) for name, p in plain.named_parameters()):
                raise RequestError(
                    f"This configuration alters the weights of the backbone ({path}), and an adapter here leaves them "
                    "as they are: choose another initialisation, for example init_lora_weights true."
                )
            self.contacts.change(backbone, path, Bridge(layer))
        ours = {id(p) for p in self.contacts.changes.parameters()}
        for name, p in trains.items():
            if id(p) not in ours:
                raise RequestError(
                    f"This configuration trains {name!r}, which is part of no layer of {backbone.name}: choose another "
                    "peft_type."
                )

    def _again(self) -> dict[str, str]:
        """Names in the state under which a tensor appears again, as peft shares some among layers -> its first name."""
        tensors = chain(self.named_parameters(remove_duplicate=False), self.named_buffers(remove_duplicate=False))
        first: dict[int, str] = {}
        return {name: first[id(t)] for name, t in tensors if first.setdefault(id(t), name) != name}

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Each tensor once."""
        found = super().state_dict(*args, prefix=prefix, **kwargs)
        for name in self._again():
            found.pop(prefix + name, None)
        return found

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        more = {name: state_dict[first] for name, first in self._again().items() if first in state_dict}
        return super().load_state_dict({**state_dict, **more}, *args, **kwargs)


class Bridge(Change):
    """A layer of peft around one of the backbone's, whose weight and bias come in with each call."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        base = layer.get_base_layer()
        for name in dict(base.named_parameters()):
            setattr(base, name, None)
        for module in layer.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                if not p.requires_grad:  # part of the state, but not of what trains
                    delattr(module, name)
                    module.register_buffer(name, p.detach())

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [B, P+N, in] -> [B, P+N, out]; of the patch embedding [B, 3, H, W] -> [B, out, h, w]."""
        tensors = {"base_layer.weight": exact(weight), **({} if bias is None else {"base_layer.bias": bias})}
        return functional_call(self.layer, tensors, (x,))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer as a weight and a bias: its answers to zero and to every unit vector, which say all where it is
        affine. Gradients cross, as they do not in peft's own merge. RequestError for a linear layer that is not affine,
        or fails in the precision of `weight`."""
        try:
            with torch.autocast(weight.device.type, enabled=False):
                units = torch.eye(weight[0].numel(), dtype=weight.dtype, device=weight.device)
                units = units.view(-1, *weight.shape[1:])
                offset = self(torch.zeros_like(units[:1]), weight, bias)
                W = (self(units, weight, bias) - offset).flatten(1).mT.reshape(weight.shape)
                b = None if bias is None else offset.flatten()
                if weight.ndim == 2:
                    x = torch.linspace(-1, 1, len(units), dtype=weight.dtype, device=weight.device)[None]
                    y = self(x, weight, bias)
                    if (y - F.linear(x, W, b)).norm() > 1e-5 * y.norm():
                        raise TypeError("it is not linear in what it receives")
        except (RuntimeError, TypeError) as error:
            if weight.ndim > 2:  # here it is a part of the forward pass
                raise
            kind = f"{type(self.layer).__module__}.{type(self.layer).__name__}"
            raise RequestError(f"No weight can stand for a {kind} ({error}): use it unmerged.") from error
        return W, b


def _read(given: Any) -> dict[str, Any]:
    """A configuration from peft's file or folder, a dict, or a configuration object; RequestError if it is none."""
    try:
        if isinstance(given, (str, Path)):
            path = Path(given, "adapter_config.json") if Path(given).is_dir() else Path(given)
            found = json.loads(path.read_text("utf-8"))
        else:
            plain = given.to_dict() if hasattr(given, "to_dict") else given
            found = json.loads(json.dumps(plain, default=sorted))  # peft holds names in sets
    except (OSError, TypeError, ValueError) as error:
        raise RequestError(
            f"The peft_config {given!r} cannot be read ({error}): give a JSON file as peft writes it, with peft_type "
            "and target_modules."
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("peft_type"), str):
        raise RequestError(f'The peft_config {given!r} states no peft_type: add one, for example "LORA".')
    return found


def _inject(given: dict[str, Any], backbone: Backbone) -> tuple[nn.Module, dict[str, Any]]:
    """A model of peft around a copy of the ViT, and the layers that it replaced there, by path.

    RequestError where peft is missing, or cannot make it, or where what it made would not do what its name says.
    """
    try:
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise RequestError(
            f"The method peft needs the package peft, which cannot be imported ({error}): "
            "pip install 'vitgraft[peft]', or upgrade peft if it is there."
        ) from error
    kinds = {str(getattr(kind, "value", kind)): cls for kind, cls in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = given["peft_type"]
    if kind not in kinds:
        raise RequestError(
            f"There is no peft_type {kind!r} in peft {peft.__version__}: there are {', '.join(sorted(kinds))}; choose "
            f"one of these.{near_misses(kind.upper(), kinds)}"
        )
    fields = [field.name for field in dataclasses.fields(kinds[kind])]
    for name in given:
        if name not in fields:
            raise RequestError(
                f"{kind} has no setting {name!r} in peft {peft.__version__}: take it out of the configuration, or "
                f"install the version that wrote it.{near_misses(name, fields)}"
            )
    for name, (value, wish) in ASKING.items():
        if given.get(name) and value in (None, given[name]):
            raise RequestError(f"{kind} with {name} needs {wish}, which a fit here does not give: leave it out.")
    try:
        config = kinds[kind](**{**given, **OURS})
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise TypeError("it is made for language models of the package transformers; here vpt adds tokens")
        copies = {
            id(p): nn.Parameter(exact(p.detach()).clone(), requires_grad=False) for p in backbone.vit.parameters()
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type")  # of every LayerNorm that is timm's own class
            model = peft.get_peft_model(copy.deepcopy(backbone.vit, copies), config)
        layers: dict[str, Any] = {
            MARKS.sub("", path): layer
            for path, layer in model.named_modules()
            if isinstance(layer, BaseTunerLayer) and not hasattr(layer, "ln_tuning_layers")
        }
        for layer in layers.values():  # some fail only when they are called
            with torch.no_grad():
                layer(torch.zeros(1, *layer.weight.shape[1:], device=layer.weight.device, dtype=layer.weight.dtype))
    except Exception as error:  # whatever a part of peft raises, it is about the configuration
        raise RequestError(
            f"peft cannot put {kind} on {backbone.name} as this configuration asks ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): correct it, or choose another peft_type."
        ) from error
    return model, layers


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors that hold numbers, not shapes alone, hold different ones."""
    return type(a.detach()) is Tensor and not a.is_meta and not torch.equal(a, b)
