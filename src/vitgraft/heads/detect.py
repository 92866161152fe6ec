"""Faster and Mask R-CNN, composed of torchvision's parts; what the cascade shares with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from ..features import Features
from .fpn import FPN, widen

Record = dict[str, Tensor]  # of one picture: boxes, labels, masks, scores

ANCHORS = (32, 64, 128, 256, 512)  # sides in pixels at strides 4 to 64 (Lin et al. 2017, section 4.1)
RATIOS = (0.5, 1.0, 2.0)  # height to width
STRIDES = (4, 8, 16, 32)  # pixels, of the maps that boxes are pooled from
WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of a box's offsets: centre x, y, width, height (Girshick 2015)


class RCNN(nn.Module):
    """Faster R-CNN (Ren et al. 2015) on an FPN (Lin et al. 2017); with masks Mask R-CNN (He et al. 2017).

    width: channels of the FPN and of the mask head; hidden: width of the box head; anchors: their sides in pixels, for
    each of the strides 4, 8, 16, 32, 64; proposals: how many are kept per picture to predict from, twice as many in
    training; samples: how many of them train the box head, a quarter of them on objects; score_threshold, overlap (of
    two boxes of one class, IoU), detections (per picture): what is predicted. Defaults as in torchvision, but for width
    and hidden, which are ours, for small files (`published`: torchvision's).

    Parameters for maps of widths C, n = width, h = hidden: FPN n sum(C + 1) + 4 n (9 n + 1); RPN n (9 n + 1) +
    15 (n + 1); boxes 49 n h + h + h (h + 1) + 5 (K + 1) (h + 1); masks 4 n (9 n + 1) + n (4 n + 1) + (K + 1) (n + 1).
    """

    levels: ClassVar[int] = 4
    published: ClassVar[dict[str, int]] = {"width": 256, "hidden": 1024}

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        masks: bool = False,
        width: int = 96,
        hidden: int = 256,
        anchors: Sequence[int] = ANCHORS,
        proposals: int = 1000,
        samples: int = 512,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__()
        self.proposals = Proposals(channels, width, anchors, proposals)
        self.roi = roi_heads(
            TwoMLPHead(49 * width, hidden),
            (hidden, classes),
            mask_width=width if masks else 0,
            samples=samples,
            keep=(score_threshold, overlap, detections),
        )

    def forward(self, features: Features, targets: list[Record] | None = None) -> list[Record] | Record:
        """Predictions, or with targets a dict of losses.

        targets, one per picture: boxes float32 [n, 4] (x1, y1, x2, y2 in pixels of the batch), labels int64 [n] from 0,
        and with masks uint8 [n, H, W]; n may be 0. Predictions, one per picture: boxes [n, 4] inside the picture's own
        size, labels [n] from 0, scores [n], highest first, and with masks probabilities [n, 1, h, w] over that size.
        """
        targets = with_background(targets)
        maps, boxes, losses = self.proposals(features, targets)
        self.roi.training = targets is not None
        found, more = self.roi(maps, boxes, features.inside, targets)
        return predictions(found, features.inside) if targets is None else {**losses, **more}


class Proposals(nn.Module):
    """Where objects may be: an FPN and a region proposal network (Ren et al. 2015; Lin et al. 2017, section 4.1).

    The arguments are those of `RCNN`.
    """

    def __init__(self, channels: Sequence[int], width: int, anchors: Sequence[int], proposals: int) -> None:
        super().__init__()
        self.fpn = FPN(channels, width, coarser=True)
        generator = AnchorGenerator(tuple((side,) for side in anchors), (RATIOS,) * len(anchors))
        head = RPNHead(width, len(RATIOS))
        head.register_forward_hook(_widened)
        most = {"training": 2 * proposals, "testing": proposals}
        self.rpn = RegionProposalNetwork(generator, head, 0.7, 0.3, 256, 0.5, most, most, 0.7)

    def forward(
        self, features: Features, targets: list[Record] | None
    ) -> tuple[dict[str, Tensor], list[Tensor], Record]:
        """The FPN's maps, per picture boxes [n, 4] inside its own size, best first, and with targets the RPN's losses.

        torchvision's modules ask their mode whether to train; here, as in every head, it is the targets that decide.
        """
        # Anchors and pooled boxes take the type of the maps.
        maps = {name: widen(x) for name, x in self.fpn(features).items()}
        # Anchors take the batch's size, boxes each picture's own.
        images = ImageList(torch.empty(len(features.inside), 3, *features.size, device="meta"), features.inside)
        self.rpn.training = targets is not None
        boxes, losses = self.rpn(images, maps, targets)
        return maps, boxes, losses


def roi_heads(
    head: nn.Module,
    sizes: tuple[int, int],
    *,
    mask_width: int,
    samples: int,
    keep: tuple[float, float, int],
    iou: float = 0.5,
    weights: tuple[float, float, float, float] = WEIGHTS,
) -> RoIHeads:
    """torchvision's RoI heads with a box head [n, width, 7, 7] -> [n, hidden]; masks where `mask_width` is not 0.

    sizes: (hidden, K); samples, keep: as `RCNN` says; a box that overlaps an object by `iou` or more is trained to find
    it; weights: of the box coder.
    """
    hidden, classes = sizes
    predictor = FastRCNNPredictor(hidden, classes + 1)
    predictor.register_forward_hook(_widened)
    masks: list[nn.Module] = []
    if n := mask_width:
        masks = [roi_pool(14), MaskRCNNHeads(n, (n,) * 4, 1), MaskRCNNPredictor(n, n, classes + 1)]
        masks[-1].register_forward_hook(_widened)
    return RoIHeads(roi_pool(7), head, predictor, iou, iou, samples, 0.25, weights, *keep, *masks)


def roi_pool(side: int) -> MultiScaleRoIAlign:
    """RoI align to side x side cells, from the map of the stride that suits the box's size (Lin et al. 2017, eq. 1)."""
    pool = MultiScaleRoIAlign([str(i) for i in range(len(STRIDES))], side, sampling_ratio=2)
    # It would take the strides from the pictures' own sizes in its first batch, which padding makes too small.
    pool.scales = [1 / stride for stride in STRIDES]
    pool.map_levels = LevelMapper(2, 5)
    return pool


def with_background(targets: list[Record] | None) -> list[Record] | None:
    """Targets with labels counted from 1, as torchvision's modules have them."""
    return targets and [{**target, "labels": target["labels"] + 1} for target in targets]


def predictions(found: list[Record], sizes: list[tuple[int, int]]) -> list[Record]:
    """torchvision's detections with labels from 0, and masks [n, 1, 28, 28] of their boxes laid over the pictures."""
    result = []
    for record, size in zip(found, sizes, strict=True):
        record = {**record, "labels": record["labels"] - 1}
        if "masks" in record:
            record["masks"] = paste_masks_in_image(record["masks"], record["boxes"], size)
        result.append(record)
    return result


def _widened(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Forward hook: under autocast, boxes and losses are computed in float32 from what this module gives."""
    return widen(outputs)
