"""How a model is fitted. Free of torch, so that the command line knows its options without waiting for it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import RequestError, near_misses

# Of a fit that names none; the second for segmentation, detection and instances.
METHOD, DENSE_METHOD, BACKBONE = "hst", "lora", "vit_base_patch16_224"
NECK_WIDTH = 256
BACKBONE_DTYPES = ("float32", "bf16", "int8")
PRECISIONS = ("auto", "bf16", "32", "64")

Triple = tuple[float, float, float]
# mean and std of R, G, B on the scale 0..1; None: the backbone's own, as it was pre-trained.
NORMALISATIONS: dict[str, tuple[Triple, Triple] | None] = {
    "own": None,
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
# What is done to a training picture to classify, in words; `data.recipes` does it.
AUGMENTATIONS = {
    "none": "none",
    "flip": "flip",
    "crop": "random resized crop and flip",
    "randaugment": "RandAugment and flip",
    "crop-randaugment": "random resized crop, flip and RandAugment",
}

# No result depends on them but for rounding: they may differ when a run is continued.
FREE = ("workers", "memory", "cache_size", "gradient_checkpointing", "device", "log")
# What a finished run may be asked for anew whenever it answers.
ANSWERED = ("sliding", "mirror", "batch_size", "precision", "device", "workers")
LOGS = ("none", "csv", "tensorboard", "wandb", "mlflow")
HEAD_STARTS = ("random", "lda")
CLASS_WEIGHTS = {"none": 0.0, "root": 0.5, "balanced": 1.0}  # the power of its rarity that a class counts by
WHOLE = ("classify", "multilabel", "regress")
DENSE = ("segment", "detect", "instance", "panoptic")
MASKED = ("instance", "panoptic")  # of which each object has a mask


def _option(default: Any, text: str, tasks: tuple[str, ...] = ()) -> Any:
    """tasks: those that have the setting, if not all do."""
    return field(
        default=default, metadata={"help": text + (f"; {', '.join(tasks)} only" if tasks else ""), "tasks": tasks}
    )


@dataclass(frozen=True)
class Settings:
    """The settings of a fit; every field is an option of `vitgraft fit`."""

    epochs: int = _option(30, "passes over the training pictures")
    lr: float = _option(1e-3, "peak learning rate; a method may have another default")
    weight_decay: float = _option(1e-4, "AdamW's, on tensors of two or more axes")
    batch_size: int = _option(64, "pictures per step, over all devices")
    image_size: tuple[int, int] | None = _option(
        None, "pixels, one number or height and width; default: the weights' own"
    )
    warmup: float = _option(0.1, "share of all steps in which the learning rate grows")
    normalisation: str = _option(
        "own", "mean and std of pictures: own (the weights'), imagenet, inception (0.5, 0.5) or unit (0, 1)"
    )
    augmentation: str = _option(
        "none", f"of training pictures, drawn anew in every epoch: {', '.join(AUGMENTATIONS)}", WHOLE
    )
    views: int = _option(
        0,
        "augmented views of each picture, at which epochs take turns: what a frozen backbone makes of them is kept; "
        "0: a new one in every epoch",
        WHOLE,
    )
    drop_path: float = _option(0.0, "stochastic depth at the last block")
    noise: float = _option(
        0.0, "deviation of the factors, about 1, by which what a method adds to a layer's channels is multiplied"
    )
    consistency: float = _option(
        0.0,
        "weight of the distance between the answers to two noisy passes (PACE), for example 1 with noise 1: a step "
        "costs twice as much",
        ("classify", "multilabel"),
    )
    clip: float = _option(0.0, "norm to which the gradient of a step is cut down where it is larger; 0: never")
    ema: float = _option(
        0.0,
        "decay, such as 0.99, of an average over the steps of what trains, which is then measured and kept; 0: none",
    )
    head_start: str = _option(
        "random",
        "what the head begins as: random, or lda, the linear discriminant of the classes as the frozen backbone shows "
        "them, for one more pass over the pictures",
        ("classify",),
    )
    label_smoothing: float = _option(0.0, "of the cross entropy", ("classify",))
    class_weights: str = _option(
        "none",
        "in the loss: none, balanced (every class counts alike, however rare), root (halfway), or auto, the default of "
        "heads that classify pixels: root where one is rare, else none",
        ("classify", "segment"),
    )
    sampling: str = _option(
        "none",
        "how often a training picture comes: none, once in each epoch; balanced, by the rarest class in it, so that "
        "every class comes alike; or root (halfway)",
        tuple(task for task in (*WHOLE, *DENSE) if task != "regress"),
    )
    jitter: tuple[float, float] | None = _option(
        None, "least and most of a training picture's random scale (default: 0.5 2)", DENSE
    )
    mosaic: float = _option(
        0.0, "share of training pictures that are made of crops of four", ("segment", "detect", "instance")
    )
    paste: float = _option(
        0.0, "share of training pictures into which objects of another one are pasted", ("instance",)
    )
    neck_blocks: int = _option(
        0,
        "blocks that maps are made of, where the head needs more maps than the method makes; 0: 4 where gradients stay "
        "out of the backbone, else 1",
        DENSE,
    )
    neck_width: int = _option(
        NECK_WIDTH, "channels of these maps, the backbone's width at most, which 0 stands for (as published)", DENSE
    )
    sliding: bool = _option(
        False, "measure and predict in overlapping windows of image_size", ("segment", "detect", "instance")
    )
    mirror: bool = _option(False, "measure and predict by the mean over a picture and its mirror image", ("segment",))
    precision: str = _option("auto", "auto (bf16 where the processor has it), bf16, 32 or 64")
    backbone_dtype: str = _option(
        "float32", "what the frozen backbone's matrices are in memory: float32, bf16 (half of it), int8 (a quarter)"
    )
    seed: int = _option(0, "of the initial tensors, the order of the pictures, and a split that is made")
    train_split: str = _option("train", "split to train on, for example train+val")
    eval_split: str | None = _option(None, "split to measure at the end; default: val, if it is not trained on")
    gradient_checkpointing: bool = _option(
        False, "compute every block once more in backward: about a third more time, a fraction of the memory"
    )
    device: str = _option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1 (that one) or mps")
    devices: int = _option(1, "processes, one per device")
    workers: int = _option(2, "processes that decode pictures")
    cache: bool = _option(
        False, "keep a frozen backbone's activations on disk in bf16, for other fits too (not where gradients cross it)"
    )
    cache_size: float = _option(20.0, "GiB that all activations on disk may take")
    memory: float = _option(4.0, "GiB for decoded pictures, and as much again for kept activations")
    log: str = _option("none", f"who is told of loss and rate: {', '.join(LOGS[1:])}, or some joined by +")

    def __post_init__(self) -> None:
        for setting in fields(self):
            kind, value = type(setting.default), as_kept(setting.name, getattr(self, setting.name))
            object.__setattr__(self, setting.name, value)
            fits = {bool: (bool,), int: (int,), float: (int, float)}.get(kind)
            if fits and (not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool)):
                words = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
                raise RequestError(f"{setting.name} is {value!r}, but must be {words}: give another value.")
        least = dict.fromkeys(
            (
                *("workers", "views", "weight_decay", "memory", "cache_size", "neck_blocks", "neck_width", "clip"),
                *("noise", "consistency"),
            ),
            0,
        )
        least |= dict.fromkeys(("epochs", "batch_size", "devices"), 1)
        for name, low in least.items():
            if not low <= getattr(self, name) < math.inf:
                raise RequestError(f"{name} is {getattr(self, name)}, but must be at least {low}: give another value.")
        if not 0 <= self.seed < 2**32:
            raise RequestError(f"seed is {self.seed}, but must be 0 or more, and below 2**32: give another value.")
        if self.batch_size % self.devices:
            raise RequestError(
                f"{self.devices} devices share a batch evenly, but batch_size is {self.batch_size}: give a multiple of "
                f"{self.devices}, such as {max(self.batch_size // self.devices, 1) * self.devices}."
            )
        for name in ("warmup", "drop_path", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}, but is a share: give 0 or more, and less than 1.")
        for name in ("mosaic", "paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise RequestError(f"{name} is {getattr(self, name)}, but is a share of the pictures: give 0 to 1.")
        if not 0 < self.lr <= 1e6:
            raise RequestError(
                f"The learning rate is {self.lr}, but must be above 0 and at most 1e6: give for example 1e-3."
            )
        named = {"precision": PRECISIONS, "normalisation": NORMALISATIONS, "augmentation": AUGMENTATIONS}
        named |= {
            "head_start": HEAD_STARTS,
            "class_weights": ("auto", *CLASS_WEIGHTS),
            "sampling": CLASS_WEIGHTS,
            "backbone_dtype": BACKBONE_DTYPES,
        }
        for name, known in named.items():
            if (value := getattr(self, name)) not in known:
                raise RequestError(
                    f"There is no {name} {value!r}: there are {', '.join(known)}; choose one of these."
                    f"{near_misses(str(value), known)}"
                )
        for one in self.log.split("+") if self.log != LOGS[0] else ():
            if one not in LOGS[1:]:
                raise RequestError(
                    f"There is no log {one!r}: there are {', '.join(LOGS)}; choose one of these, or join some by +."
                    f"{near_misses(one, LOGS)}"
                )
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise RequestError(
                f"There is no device {self.device!r}: there are auto, cpu, cuda, mps, or one GPU such as cuda:1; "
                "choose one of these."
            )
        if ":" in self.device and self.devices > 1:
            raise RequestError(
                f"{self.device} is one device, but {self.devices} were asked for: leave one of the two out."
            )
        if self.consistency and not self.noise:
            raise RequestError(
                f"consistency {self.consistency:g} compares two noisy passes, but noise is 0, and without it both are "
                "the same: give noise as well, for example 1, or leave both out."
            )
        if self.views and self.augmentation == "none":
            raise RequestError(
                f"{self.views} views of each picture were asked for, but without augmentation all are the same: choose "
                f"one of {', '.join(name for name in AUGMENTATIONS if name != 'none')} as well."
            )
        if self.cache and self.augmentation != "none" and not self.views:
            raise RequestError(
                "cache keeps what the backbone makes of a picture, but with the augmentation "
                f"{self.augmentation} a picture is another one in every epoch: give a number of views, or leave one of "
                "the two out."
            )
        if self.image_size is not None:
            size = (self.image_size,) if isinstance(self.image_size, int) else tuple(self.image_size)
            if len(size) not in (1, 2):
                raise RequestError(
                    f"image_size is one number or height and width, but {len(size)} numbers came: give one or two."
                )
            object.__setattr__(self, "image_size", (size[0], size[-1]))
        if self.jitter is not None:
            if len(self.jitter) != 2 or not 0 < self.jitter[0] <= self.jitter[1] < math.inf:
                raise RequestError(
                    f"jitter is {' '.join(map(str, self.jitter))}, but is the least and the most by which a picture is "
                    "scaled: give two numbers above 0, such as 0.5 2."
                )
            object.__setattr__(self, "jitter", tuple(self.jitter))

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]


_TEXTS = frozenset(f.name for f in fields(Settings) if isinstance(f.default, str))


def check_task(task: str, options: Mapping[str, Any]) -> None:
    """RequestError for a setting that a task of this name does not have."""
    for setting in fields(Settings):
        owners = setting.metadata["tasks"]
        if owners and task not in owners and options.get(setting.name, setting.default) != setting.default:
            raise RequestError(
                f"{setting.name} is for the task {' or '.join(owners)}, but this one is {task}: leave it out."
            )


def as_kept(name: str, value: Any) -> Any:
    """A setting in the one form in which it is kept and compared: precision=32 is the word 32."""
    return str(value) if name in _TEXTS and type(value) is int else value
