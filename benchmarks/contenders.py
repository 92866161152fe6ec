"""Who takes part in a benchmark: methods of vitgraft on a random backbone, and what a user would take instead.

`full` is plain timm trained whole, `peft-lora` peft's LoRA (rank 8, every linear layer of the blocks) on plain timm;
neither runs code of vitgraft. Every tensor and every picture is random: no time and no size depends on their values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vitgraft import Backbone, Model, build, methods
from vitgraft.backbones.architectures import any_size
from vitgraft.backbones.weights import Loaded
from vitgraft.common.settings import Settings
from vitgraft.engine.devices import fabric
from vitgraft.engine.step import Step
from vitgraft.features import Activations
from vitgraft.pages.catalogue import shape_of
from vitgraft.training.loop import optimiser

CLASSES = 10
# What stands for itself, apart from the names of methods.
FORMS: dict[str, dict[str, Any]] = {
    "hst-detached": {"method": "hst", "detached": True},
    "lora-all": {"method": "lora", "targets": ("qkv", "proj", "fc1", "fc2")},
}
RIVALS = ("full", "peft-lora")
CACHED = {"hst-cached": "hst-detached"}  # a training step on activations that an earlier pass left
# By torch.compile: what a careful user takes, and ours under it.
COMPILED = {f"{name}-compiled": name for name in ("full", "hst", "lora", "lora-all")} | {"hst-stages-compiled": "hst"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def names() -> list[str]:
    """The methods, and the forms of them, for which all packages are installed."""
    return [name for name in (*methods.names(), *FORMS) if not methods.find(form(name)["method"]).missing()]


def form(name: str) -> dict[str, Any]:
    """The method that a name stands for, under "method", and its arguments."""
    return dict(FORMS.get(name, {"method": name}))


def check(model: str, *sizes: int) -> None:
    """RequestError where the patch does not divide one of these picture sides."""
    backbone = shape_of(model)
    for size in sizes:
        backbone.preprocess(size)


def random_backbone(model: str, size: int | None = None, **changes: Any) -> Backbone:
    """A backbone of timm's architecture, always with the same random tensors; `size` pixels unless its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit: Any = timm.create_model(model, num_classes=0, **any_size(model), **_sized(model, size), **changes).eval()
    half, own = (0.5, 0.5, 0.5), vit.patch_embed.img_size
    return Backbone.of(Loaded(vit, model, "random", model, half, half, "bicubic", own))


def ours(name: str, backbone: Backbone, seed: int = 0) -> Model:
    """A classifier by one of `names`, on a backbone that others may share."""
    given = form(name)
    model = build(backbone, given.pop("method"), classes=CLASSES, seed=seed, **given)
    model.method.ready = True  # which channels SCT has chosen makes no difference to the time
    return model


def plain(model: str, size: int | None = None, **changes: Any) -> nn.Module:
    """timm's own classifier."""
    sized = _sized(model, size) or any_size(model)
    return timm.create_model(model, num_classes=CLASSES, **sized, **changes)


def _sized(model: str, size: int | None) -> dict[str, Any]:
    """What makes timm's model for this picture size; Swin's windows stay those of its own."""
    return {"img_size": size} if size is not None and "dynamic_img_size" in any_size(model) else {}


def peft_lora(vit: nn.Module) -> Any:
    """peft's LoRA on timm's classifier, whose head trains too."""
    import peft

    linears = r".*blocks\.\d+\.(attn\.(qkv|[qkv]_proj|proj)|mlp\.fc[12](_[gx])?)"
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=linears, modules_to_save=["head"])
    return peft.get_peft_model(vit, config)


def rival(name: str, model: str, size: int, **changes: Any) -> Any:
    """One of RIVALS."""
    vit = plain(model, size, **changes)
    return vit if name == "full" else peft_lora(vit)


def random_images(batch_size: int, size: int) -> Tensor:
    """[B, 3, H, W], on the device already."""
    return torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def training_step(
    name: str, model: str, size: int, batch_size: int, precision: str, **changes: Any
) -> Callable[[], Any]:
    """One training step, of one of `names`, CACHED, COMPILED or RIVALS: forward, backward, AdamW. Ours is a fit's; a
    rival's is the one that everybody writes."""
    torch.manual_seed(0)
    images, labels = random_images(batch_size, size), torch.randint(0, CLASSES, (batch_size,)).to(DEVICE)
    trained = contender(name, model, size, **changes).to(DEVICE)
    left = activations(name, trained, images, precision)
    if isinstance(trained, Model):
        settings = Settings(precision=precision)
        of_a_fit = Step(trained, optimiser(trained.trained(), settings), fabric(settings))
        return lambda: of_a_fit(images, labels, left)
    optimizer = torch.optim.AdamW((p for p in trained.parameters() if p.requires_grad), lr=1e-4, fused=True)
    loss = training_loss(trained, images, labels, precision)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def contender(name: str, model: str, size: int, **changes: Any) -> nn.Module:
    """One of `names`, CACHED, COMPILED or RIVALS, to be trained."""
    if name in COMPILED:
        made: Any = contender(COMPILED[name], model, size, **changes)
        for part in made.method.stages if name == "hst-stages-compiled" else [made]:
            part.compile()
        return made
    if name in RIVALS:
        return rival(name, model, size, **changes).train()
    return ours(CACHED.get(name, name), random_backbone(model, size, **changes)).train()


def activations(name: str, trained: nn.Module, images: Tensor, precision: str) -> Activations | None:
    """What an earlier pass of the images left for one of CACHED, in the precision of the fit; of others None."""
    if name not in CACHED or not isinstance(trained, Model):
        return None
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        found = trained.read(images)
    dtype = torch.bfloat16 if precision == "bf16" else images.dtype
    return found.map(lambda t: t.to(dtype))


def training_loss(
    trained: nn.Module, images: Tensor, labels: Tensor, precision: str, left: Activations | None = None
) -> Callable[[], Tensor]:
    """The forward pass of a training step of a `contender`; left: what its `activations` gave."""

    def loss() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            if isinstance(trained, Model):
                return sum(trained(images, labels, left).values())
            return F.cross_entropy(trained(images), labels)

    return loss


def several(models: Sequence[nn.Module]) -> Callable[[Tensor], list[Any]]:
    """The answers of several tasks to the same images: of one method on one backbone, after a single pass through it
    where gradients do not cross it; or of a rival, after a pass for each."""
    first = models[0]

    def answer(images: Tensor) -> list[Any]:
        if not isinstance(first, Model) or first.method.crosses_backbone:
            return [model(images) for model in models]
        activations = first.read(images)
        return [model(images, activations=activations) for model in models]

    return answer


def inference(work: Callable[[Tensor], Any], images: Tensor, precision: str) -> Callable[[], Any]:
    """`work` on these images [B, 3, H, W], without autograd."""

    @torch.no_grad()
    def take() -> Any:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            return work(images)

    return take


def make_pictures(root: Path, number: int, height: int = 375, width: int = 500) -> Path:
    """A folder root/train/CLASS/N.jpg of so many pictures in all, in CLASSES classes; about as dear to decode as
    photographs, whose size is that of the default."""
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
        noise = rng.normal(0, 8, (height, width, 1))
        pixels = (np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + noise).clip(0, 255)
        path = root / "train" / str(i % CLASSES) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
    return root
