"""A run as one graph: pixels in, answers out, with nothing of ours behind it.

What a deployment hands in are uint8 pixels [B, 3, H, W], RGB, of the size that the run has; they are normalised inside.
The batch is free, of detectors one picture. H and W are fixed: the position embedding is resampled once, for that size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchvision.models.detection import rpn
from torchvision.ops import boxes as box_ops
from torchvision.ops import poolers, roi_align

from ..adapters.merge import merge, unmerge
from ..adapters.run import Run
from ..common.errors import RequestError
from ..contacts import Contacts
from ..features import Activations
from ..heads import detect
from ..model import Model

MOST = 512  # pictures of a batch


class Whole(nn.Module):
    """pixels uint8 [B, 3, H, W] -> what `names` says."""

    def __init__(self, run: Run, *, decode: bool = False) -> None:
        super().__init__()
        model, preprocess, _ = run.adapter
        self.model = model.float().eval()
        self.task, self.decode = run.task, decode
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocess, name)).view(3, 1, 1))
        self.size = preprocess.size
        self.one = model.head.levels > 0 and self.task.name() != "segment"  # a detector takes one picture
        if self.task.name() == "panoptic":
            raise RequestError(
                "Panoptic segments are put together by a loop over what was found, which no graph holds: export a run "
                "of instances or of segments."
            )

    mean: Tensor
    std: Tensor

    @property
    def names(self) -> list[str]:
        """Of what comes out."""
        if self.one:
            return ["boxes", "labels", "scores", *(["masks"] if self.task.name() == "instance" else [])]
        return [self.task.decoded_as if self.decode else "logits"]

    def normalised(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Any:
        return self.answer(self.model._forward(self.normalised(pixels), None, None, None))

    def answer(self, answer: Any) -> Any:
        """The head's answer in the form that was asked for."""
        if self.one:
            return tuple(answer[0][name] for name in self.names)
        return self.task.decoded(answer) if self.decode else answer

    def pixels(self, batch: int, seed: int = 0) -> Tensor:
        """Random pictures, always the same, of blotches rather than noise."""
        H, W = self.size
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, 3, 8, 8, generator=generator) * 255
        return nn.functional.interpolate(coarse, (H, W), mode="bilinear").round().to(torch.uint8)


class Shared(nn.Module):
    """The backbone's half of detached methods, which several tasks may read: normalised pictures [B, 3, H, W] ->
    tokens, taps as they are, and normalised patches, in the order of `names`."""

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        first = models[0]
        for model in models:
            if model.method.crosses_backbone:
                raise RequestError(
                    f"The method {model.method.name()} works inside the backbone, so its half cannot be split off: "
                    "export it whole, or fit a detached one (linear, lst, hst --detached)."
                )
        self.model = first
        self.contacts = Contacts()
        for model in models:
            self.contacts.taps |= dict.fromkeys(model.method.contacts.taps, False)
        self.patches = tuple(sorted({i for model in models for i in model.patches}))

    @property
    def names(self) -> list[str]:
        return ["tokens", *(f"tap {i}" for i in sorted(self.contacts.taps)), *(f"patches {i}" for i in self.patches)]

    def forward(self, images: Tensor) -> Any:
        found = self.model.backbone(self.model.seen(images), self.contacts, patches=self.patches)
        return (found.tokens, *(found.taps[i] for i in sorted(found.taps)), *found.patches)


class Beside(nn.Module):
    """The task's half: pixels, and of what `Shared` gives that which it `reads` -> answers."""

    def __init__(self, whole: Whole, grids: list[tuple[int, int]]) -> None:
        super().__init__()
        self.whole, self.grids = whole, grids
        own = whole.model.method.contacts.taps
        self.reads = ["tokens", *(f"tap {i}" for i in own), *(f"patches {i}" for i in whole.model.patches)]

    def forward(self, pixels: Tensor, *given: Tensor) -> Any:
        model = self.whole.model
        named = dict(zip(self.reads, given, strict=True))
        taps = {i: model.backbone.tapped(named[f"tap {i}"], form) for i, form in model.method.contacts.taps.items()}
        patches = [named[f"patches {i}"] for i in model.patches]
        found = Activations(named["tokens"], self.grids, taps, {}, patches)
        return self.whole.answer(model._forward(self.whole.normalised(pixels), None, found, None))


@contextmanager
def as_graph() -> Iterator[None]:
    """Detectors without a branch or a loop that depends on what is found.

    torchvision suppresses boxes by two ways, which one depends on their number; pools boxes level by level; takes views
    that depend on how a map lies in memory; and lays masks over the picture one after the other: a graph has the masks
    of the boxes, [n, 1, 28, 28].
    """
    with (
        patch.object(box_ops, "batched_nms", _suppressed),
        patch.object(poolers, "_multiscale_roi_align", _pooled),
        patch.object(detect, "paste_masks_in_image", lambda masks, boxes, size: masks),
        patch.object(rpn, "permute_and_flatten", _flattened),
    ):
        yield


def _suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, overlap: float) -> Tensor:
    """Those of one label lie where no other's do. There may be none: a picture shows nothing that is sure enough."""
    apart = labels.to(boxes) * (torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1)
    return box_ops.nms(boxes + apart[:, None], scores, overlap)


def _pooled(
    maps: list[Tensor], boxes: list[Tensor], size: Any, sampling_ratio: int, scales: list[float], mapper: Any
) -> Tensor:
    """Every box from every level, of which all but its own count for nothing."""
    rois, levels = poolers._convert_to_roi_format(boxes), mapper(boxes)
    parts = [roi_align(x, rois, size, scale, sampling_ratio) for x, scale in zip(maps, scales, strict=True)]
    return sum(part * (levels == k).to(part)[:, None, None, None] for k, part in enumerate(parts))


def _flattened(scores: Tensor, N: int, A: int, C: int, H: int, W: int) -> Tensor:
    """[N, A C, H, W] -> [N, H W A, C], however the map lies in memory, of which ONNX knows nothing."""
    return scores.contiguous().view(N, -1, C, H, W).permute(0, 3, 4, 1, 2).contiguous().view(N, -1, C)


@contextmanager
def merged(model: Model) -> Iterator[bool]:
    """The method written into the backbone's tensors meanwhile, where it can be; whether it is."""
    if model.head.levels or model.method.obstacle or not model.method.contacts.kinds:
        yield False
        return
    try:
        merge(model, in_place=True)
    except RequestError:  # a bias that timm has no place for
        yield False
        return
    try:
        yield True
    finally:
        unmerge(model)


def traced(module: nn.Module, given: tuple[Tensor, ...], *, free: bool) -> torch.export.ExportedProgram:
    """The graph of a module, its batch free or as it is given."""
    axes = tuple({0: torch.export.Dim("batch", min=1, max=MOST)} if free else None for _ in given)
    with torch.no_grad():
        module(*given)  # what is kept for a size (positions, windows) is a constant of the graph then
        shapes: Any = axes if not isinstance(module, Beside) else {"pixels": axes[0], "given": axes[1:]}
        return torch.export.export(module, given, dynamic_shapes=shapes, strict=False)
