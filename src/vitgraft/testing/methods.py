"""Every method in every form, attached, shaken and trained a little."""

import json
import os
import re
from functools import cache
from typing import Any

import pytest
import torch

from vitgraft import methods
from vitgraft.adapters import file as adapter
from vitgraft.common.errors import RequestError
from vitgraft.model import build
from vitgraft.testing.backbones import REFUSED, random_backbone, random_images

CLASSES = 5


Variant = tuple[str, dict[str, Any]]

# Methods that are tried alone: those of one file, for whoever has written it.
VARIABLE = "VITGRAFT_TESTED"
TESTED = os.environ.get(VARIABLE, "").split()
TOGETHER: list[Variant] = [
    ("hst+lora", {}),
    ("consolidator+lst", {}),
    ("convpass+vpt", {}),
    ("bitfit+repadapter", {}),
]
VARIANTS: list[Variant] = [
    *((name, form) for name in TESTED or methods.names() for form in ({}, *methods.find(name).variants)),
    *([] if TESTED else TOGETHER),
]


def variant_id(variant):
    name, arguments = variant
    return " ".join([name, *(f"{key}={value}" for key, value in arguments.items())])


def refusal(variant, family):
    """What is said where this family of backbones refuses the method, "" where it does not. Of those of the package it
    is known; one's own may refuse what it likes, in a sentence."""
    if TESTED:
        return _refused(variant[0], json.dumps(variant[1]), family)
    said = REFUSED.get(family, {})
    return said.get(variant_id(variant)) or next((said[one] for one in variant[0].split("+") if one in said), "")


@cache
def _refused(name, arguments, family):
    try:
        model_of((name, json.loads(arguments)), random_backbone(family))
    except RequestError as error:
        return re.escape(str(error))
    return ""


every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)


def model_of(variant, backbone, seed=0):
    name, arguments = variant
    model = build(backbone, name, classes=CLASSES, seed=seed, **arguments).eval()
    if not model.method.ready:
        images = random_images(backbone, batch=CLASSES, seed=seed)
        model.method.calibrate(backbone, [(images, torch.arange(CLASSES))])
    return model


def shaken(model, by=0.02):
    """Every tensor that trains moved a little, as after some training: what starts at zero is zero no more."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.trained().values():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.method.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(by * torch.randn(buffer.shape, generator=generator))
    return model


def steps(model, images, n=2, lr=1e-2):
    """n optimiser steps in training mode; the losses."""
    labels = torch.arange(len(images)) % CLASSES
    optimiser = torch.optim.AdamW(model.trained().values(), lr=lr)
    losses = []
    for _ in range(n):
        loss = sum(model.train()(images, labels).values())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def header_of(model):
    return adapter.told(model, model.backbone.preprocess(), [f"class {i}" for i in range(CLASSES)])
