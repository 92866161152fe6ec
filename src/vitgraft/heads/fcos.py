"""FCOS: a detector without anchor boxes and without proposals, composed of torchvision's parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torchvision.models.detection import fcos as parts
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator

from ..common.errors import RequestError
from ..features import Features
from .detect import STRIDES, Record
from .fpn import FPN, widen
from .segment import GROUPS

CELLS = (*STRIDES, 2 * STRIDES[-1])  # pixels, of the maps in which boxes are found


class FCOS(nn.Module):
    """FCOS (Tian et al. 2019) on an FPN: every cell of a map that lies in the middle of an object of the map's scale
    says its class, the distances to the four sides of its box, and how central it is.

    width: channels of the FPN and of the two branches behind it, which all maps share; convolutions: of each branch,
    with GroupNorm. score_threshold, overlap (of two boxes of one class, IoU), detections (per picture): what is
    predicted. Defaults as in torchvision, but for the lowest score, which is that of the other detectors here, and the
    width, which is ours, for small files (`published`: torchvision's). A map of stride s finds what reaches 4 s to 8 s
    from the cell.

    Parameters for maps of widths C, n = width, c = convolutions: FPN n sum(C + 1) + 4 n (9 n + 1); branches
    2 c (9 n^2 + 3 n); outputs (9 n + 1) (K + 5).
    """

    levels: ClassVar[int] = 4
    published: ClassVar[dict[str, int]] = {"width": 256}

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        width: int = 96,
        convolutions: int = 4,
        score_threshold: float = 0.05,
        overlap: float = 0.6,
        detections: int = 100,
    ) -> None:
        super().__init__()
        if width % GROUPS:
            raise RequestError(
                f"The width of fcos is {width}, but is normalised in {GROUPS} groups: give a multiple of {GROUPS}."
            )
        self.fpn = FPN(channels, width, coarser=True)
        stub: Any = nn.Identity()
        stub.out_channels = width
        # Its matching, losses and choice of boxes; backbone and transform are never called.
        self.fcos = parts.FCOS(
            stub,
            classes,
            anchor_generator=AnchorGenerator(tuple((side,) for side in CELLS), ((1.0,),) * len(CELLS)),
            head=parts.FCOSHead(width, 1, classes, convolutions),
            score_thresh=score_threshold,
            nms_thresh=overlap,
            detections_per_img=detections,
        )

    def forward(self, features: Features, targets: list[Record] | None = None) -> list[Record] | Record:
        """Predictions, or with targets a dict of losses; both as `RCNN` has them, without masks."""
        maps = list(self.fpn(features).values())
        outputs = {name: widen(x) for name, x in self.fcos.head(maps).items()}
        images = ImageList(torch.empty(len(features.sizes), 3, *features.size, device="meta"), features.sizes)
        cells = self.fcos.anchor_generator(images, [widen(x) for x in maps])
        numbers = [x.shape[-2] * x.shape[-1] for x in maps]
        if targets is not None:
            return self.fcos.compute_loss(targets, outputs, cells, numbers)
        of_maps: Any = {name: list(x.split(numbers, dim=1)) for name, x in outputs.items()}
        of_pictures: Any = [list(of.split(numbers)) for of in cells]
        found = self.fcos.postprocess_detections(of_maps, of_pictures, features.sizes)
        return [_inside(record) for record in found]


def _inside(record: Record) -> Record:
    """Without the boxes that clipping has left no area: those of cells in the padding."""
    there = (record["boxes"][:, 2:] > record["boxes"][:, :2]).all(1)
    return {name: tensor[there] for name, tensor in record.items()}
