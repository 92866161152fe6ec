"""peft's adapter folders, both ways: adapter_config.json and adapter_model.safetensors on a timm model.

Ours go there as LoRA of the whole of each layer: updates of q and v of a fused layer are one of twice the rank, whose B
has zeros where q does not reach. Theirs come in as our method `peft`, whatever their kind.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..adapters import file as adapter
from ..adapters.merge import keywords, random_pictures
from ..adapters.run import Run
from ..backbones import Backbone
from ..common.errors import RequestError, WorkError
from ..common.files import check_new_file, make_folder, write_bytes, write_json
from ..common.settings import Settings
from ..data import Preprocess
from ..methods.lora import LowRank
from ..model import Model, build

TOLERANCE = 1e-4  # of the norm of the logits
PREFIX = "base_model.model."
OURS = "vitgraft.json"  # what peft does not keep: classes and preprocessing


def to_peft(run: Run, out: str | Path) -> dict[str, Any]:
    """A run of the method lora as a folder of peft's, and what peft makes of it compared with the run."""
    peft = _peft()
    out = Path(out)
    check_new_file(out)
    model, preprocess, header = run.adapter
    changes = model.method.contacts.change_at
    if model.head.levels or header["method"] != "lora":
        raise RequestError(
            f"peft's format holds LoRA and a classifier here, but this is {header['method']} for {header['task']}: "
            "export it as onnx or torch-export."
        )
    base, arguments = _timm(model, len(header["classes"]))
    head = _head_name(base)
    ranks, alphas, tensors = {}, {}, {}
    for path, change in changes.items():
        assert isinstance(change, LowRank)
        ranks[path] = len(change.A)
        alphas[path] = change.scale * len(change.A)
        tensors[f"{PREFIX}{path}.lora_A.weight"] = change.A.detach()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = change.up().detach().contiguous()
    for name, tensor in base.get_submodule(head).state_dict().items():
        tensors[f"{PREFIX}{head}.{name}"] = tensor.clone()
    r = next(iter(ranks.values()))
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": f"timm/{header['backbone']['name']}",
        "inference_mode": True,
        "r": r,
        "lora_alpha": alphas[next(iter(ranks))],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(ranks),
        "rank_pattern": {path: of for path, of in ranks.items() if of != r},
        "alpha_pattern": {path: alphas[path] for path, of in ranks.items() if of != r},
        "modules_to_save": [head],
        "peft_version": peft.__version__,
    }
    images = random_pictures(preprocess)
    content = save({name: tensor.float().contiguous() for name, tensor in tensors.items()})
    told = {key: header[key] for key in ("task", "classes", "preprocess", "backbone")}
    make_folder(out)
    try:
        write_bytes(out / "adapter_model.safetensors", content)
        write_json(out / OURS, told)
        write_json(out / "adapter_config.json", config)
        theirs = peft.PeftModel.from_pretrained(base, str(out)).eval()
        difference, relative = _compared(theirs(images), model.eval()(images))
    except BaseException:
        for name in ("adapter_model.safetensors", OURS, "adapter_config.json"):
            (out / name).unlink(missing_ok=True)
        out.rmdir()
        raise
    return {
        "file": str(out),
        "bytes": len(content),
        "method": "lora",
        "pictures": len(images),
        "difference": difference,
        "relative": relative,
        "tolerance": TOLERANCE,
        "python": [
            "import timm, peft",
            f"base = timm.create_model({model.backbone.architecture!r}, {keywords(pretrained=True, **arguments)})",
            f"model = peft.PeftModel.from_pretrained(base, {str(out)!r}).eval()",
        ],
    }


def from_peft(
    folder: str | Path, backbone: str | Backbone, out: str | Path, *, classes: list[str] | None = None
) -> dict[str, Any]:
    """A folder of peft's on a timm model as an adapter file of the method `peft`, and what both answer compared.

    The classifier is the module that peft saved beside (modules_to_save). classes: their names, which peft does not
    keep; those that `to_peft` left, or numbers, unless given.
    """
    peft = _peft()
    folder, out = Path(folder), Path(out)
    check_new_file(out)
    if not (folder / "adapter_config.json").is_file():
        raise RequestError(f"{folder} is no adapter of peft: give the folder that holds its adapter_config.json.")
    if not isinstance(backbone, Backbone):
        backbone = Backbone.load(str(backbone))
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    told = json.loads((folder / OURS).read_text("utf-8")) if (folder / OURS).is_file() else {}
    state = peft.utils.load_peft_weights(str(folder), device="cpu")
    heads = [name for name in config.get("modules_to_save") or () if f"{PREFIX}{name}.weight" in state]
    if len(heads) != 1:
        raise RequestError(
            f"{folder} saves {len(heads)} classifiers beside its layers, and one is needed: name it in modules_to_save "
            "when it is fitted."
        )
    weight = state[f"{PREFIX}{heads[0]}.weight"]
    names = classes or told.get("classes") or [str(k) for k in range(len(weight))]
    if len(names) != len(weight):
        raise RequestError(f"{len(names)} class names came, but the classifier of {folder} has {len(weight)} classes.")
    own = {**config, "modules_to_save": None}
    model = build(backbone, "peft", classes=len(names), peft_config=own).eval()
    base, _ = _timm(model, len(names))
    theirs: Any = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    layers = dict(theirs.base_model.model.named_modules())
    for path, change in model.method.contacts.change_at.items():
        given = {k: t for k, t in layers[path].state_dict().items() if not k.startswith("base_layer.")}
        change.layer.load_state_dict(given, strict=False)  # type: ignore[union-attr]
    for name, parameter in model.method.contacts.own("").items():
        parameter.data.copy_(theirs.base_model.model.get_parameter(name).data)
    linear: Any = model.head.fc
    linear.load_state_dict(
        {"weight": weight, "bias": state.get(f"{PREFIX}{heads[0]}.bias", weight.new_zeros(len(weight)))}
    )
    preprocess = Preprocess.from_dict(told["preprocess"]) if told.get("preprocess") else backbone.preprocess()
    images = random_pictures(preprocess)
    with torch.no_grad():
        difference, relative = _compared(model(images), theirs(images))
    versions = {"peft": peft.__version__, "timm": timm.__version__}
    header = adapter.told(model, preprocess, names, protocol=asdict(Settings()), versions=versions)
    size = adapter.write(out, adapter.compact(model.state()), header)
    return {
        "file": str(out),
        "bytes": size,
        "method": f"peft, {config['peft_type']}",
        "classes": names,
        "pictures": len(images),
        "difference": difference,
        "relative": relative,
        "tolerance": TOLERANCE,
    }


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise RequestError("peft's format needs the package peft: pip install 'vitgraft[peft]'.") from error
    return peft


def _timm(model: Model, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """A timm model with the backbone's weights and the head as its classifier."""
    backbone = model.backbone
    vit = copy.deepcopy(backbone.vit)
    backbone.put_head(vit, copy.deepcopy(model.head.fc))
    return vit.eval(), {**backbone.timm_arguments, "num_classes": classes}


def _head_name(vit: nn.Module) -> str:
    classifier: Any = vit.default_cfg["classifier"]  # type: ignore[index]
    return classifier if isinstance(classifier, str) else classifier[0]


@torch.no_grad()
def _compared(found: Tensor, expected: Tensor) -> tuple[float, float]:
    difference = (found - expected).double()
    relative = float(difference.norm() / expected.double().norm())
    if not relative <= TOLERANCE:
        raise WorkError(
            f"The two answer differently, by {relative:.1e} of the norm of the logits, and {TOLERANCE:.0e} is allowed: "
            "the backbone is another one, or the configuration holds what this cannot carry over."
        )
    return float(difference.abs().max()), relative
