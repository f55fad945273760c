"""Faster R-CNN: a first look proposes regions that may hold an object, a second one says which, and corrects the box.

Ren et al. 2015, "Faster R-CNN", https://arxiv.org/abs/1506.01497, on a feature pyramid (Lin et al. 2017, FPN,
https://arxiv.org/abs/1612.03144, section 4). The first look is a small network over every place of the maps, as dense as
RetinaNet, with one class only. What it proposes is cut out of the map that suits its size, brought to 7 × 7 cells
(`layers.roi_align`) and classified.

The second version (Li et al. 2021, https://arxiv.org/abs/2111.11429, appendix A.2) has norms that learn, two convolutions in
the first look, and four before the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.boxes import Objects, clipped, cxcywh_to_xyxy, iou
from vitral.base.suppression import nms_per_class
from vitral.layers.conv import ConvNorm
from vitral.layers.linear import Linear
from vitral.layers.roi_align import roi_align_pyramid
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection.anchors import cell_anchors, corrected, matched, sampled
from vitral.models.detection.pyramidal import (
    PyramidConfig,
    PyramidDetector,
    Tower,
    as_rows,
    small_normal,
)
from vitral.models.network import check_ranges
from vitral.models.output import DenseOutput, RegionOutput

__all__ = ["OVERLAP", "PAPERS", "VARIANTS", "FasterRCNN", "FasterRCNNConfig", "RegionHead"]

OVERLAP = 0.5
"""From this IoU with an object on, a region holds it; below, it holds nothing (Girshick 2015, Fast R-CNN, section 2.3)."""

_RATIOS = (0.5, 1.0, 2.0)
_GRID = (7, 7)
_REGION_MAPS = 4  # regions are cut out of the backbone's four maps, not of the coarsest one, which only proposes
_PROPOSAL_OVERLAP = 0.7  # of two proposals of a map that overlap more, one goes (Ren et al. 2015, section 3.3)
_SMALLEST = 1e-3  # sides of a proposal, in pixels
_WEIGHTS = (10.0, 5.0)  # of corrections: their usual size is then about one (Girshick 2015, section 2.3)
_RANGES: dict[str, tuple[float, float]] = {
    "rpn_depth": (1, 100),
    "head_convolutions": (0, 100),
    "head_width": (1, 1_000_000),
    "proposals": (1, 1_000_000),
    "training_proposals": (1, 1_000_000),
    "training_regions": (1, 1_000_000),
}


@dataclass(frozen=True, kw_only=True)
class FasterRCNNConfig(PyramidConfig):
    """Everything that tells one Faster R-CNN from another.

    Attributes:
        norm: what follows the convolutions of the pyramid and of the second look: nothing, or batch normalisation.
        rpn_depth: convolutions of the first look.
        head_convolutions: of the second look; where there are some, one hidden layer follows them, else two.
        head_width: channels of the hidden layers.
        proposals: how many are taken from each map before those that overlap are suppressed, and in all behind it.
        training_proposals: the same in training.
        training_regions: how many of them a step of training draws for the second look, a quarter of them with an object at
            most.
    """

    norm: Literal["none", "batch"] = "none"
    rpn_depth: int = 1
    head_convolutions: int = 0
    head_width: int = 1024
    proposals: int = 1000
    training_proposals: int = 2000
    training_regions: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, _RANGES)


class RegionHead(nn.Module):
    """The second look: what a region of 7 × 7 cells comes to.

    Args:
        config: which network's.
    """

    def __init__(self, config: FasterRCNNConfig) -> None:
        super().__init__()
        width, count = config.pyramid_width, config.head_convolutions
        self.convolutions = nn.ModuleList(
            ConvNorm(width, width, 3, activation="relu", norm=config.norm) for _ in range(count)
        )
        self.hidden = nn.ModuleList([Linear(width * _GRID[0] * _GRID[1], config.head_width)])
        if not count:
            self.hidden.append(Linear(config.head_width, config.head_width))
        for module in self.convolutions.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "k c i j"]) -> Float[Tensor, "k d"]:
        """Apply the head."""
        for convolution in self.convolutions:
            x = convolution(x)
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return x


class FasterRCNN(PyramidDetector):
    """A Faster R-CNN.

    In training, when it is shown what there is to be found, the objects themselves join the proposals, and a part of them is
    drawn by chance, from PyTorch's own generator as for dropout (Girshick 2015, Fast R-CNN, section 2.3).

    Args:
        config: which one.
    """

    config: FasterRCNNConfig

    def __init__(self, config: FasterRCNNConfig) -> None:
        super().__init__(config, first=0, norm=config.norm, more="every_second")
        width = config.pyramid_width
        self.rpn = Tower(width, config.rpn_depth)
        self.objectness = ConvNorm(width, len(_RATIOS), 1, norm="none")
        self.offsets = ConvNorm(width, len(_RATIOS) * 4, 1, norm="none")
        small_normal(self.rpn, self.objectness, self.offsets)
        self.head = RegionHead(config)
        self.classes: nn.Module
        self.region_offsets: nn.Module
        self._fresh_head()

    def forward(
        self,
        pixels: Float[Tensor, "b c y x"],
        mask: Bool[Tensor, "b y x"] | None = None,
        targets: Sequence[Objects] | None = None,
    ) -> RegionOutput:
        """Look for objects; see `Detector.forward`. Targets are looked at in training only."""
        pixels, sizes = self._seen(pixels, mask)
        maps = self._maps(pixels)
        looked = [self.rpn(one) for one in maps]
        objectness = as_rows([self.objectness(one) for one in looked], 1)
        offsets = as_rows([self.offsets(one) for one in looked], 4)
        anchors, counts = self._anchors(looked, pixels)
        proposing = DenseOutput(objectness, offsets, anchors, counts, sizes, "corrections", "l1")
        regions = self._proposed(proposing)
        if self.training and targets is not None:
            regions = [self._drawn(one, objects, size) for one, objects, size in zip(regions, targets, sizes, strict=True)]
        return self._second_look(maps[:_REGION_MAPS], regions, proposing)

    def _second_look(
        self, maps: Sequence[Float[Tensor, "b d _ _"]], regions: Sequence[Float[Tensor, "_ 4"]], proposing: DenseOutput
    ) -> RegionOutput:
        """What the regions of each picture hold, in rows of one number."""
        many = torch.tensor([len(one) for one in regions], device=maps[0].device)
        valid = torch.arange(int(many.max()), device=many.device) < many[:, None]
        pictures = torch.arange(len(regions), device=many.device).repeat_interleave(many)
        strides = [level.stride for level in self.levels[:_REGION_MAPS]]
        hidden = self.head(roi_align_pyramid(maps, strides, torch.cat(list(regions)), pictures, size=_GRID))
        logits, offsets = self.classes(hidden), self.region_offsets(hidden).unflatten(1, (-1, 4))
        nothing = torch.full_like(logits[:1], -1e4) if len(logits) else logits.new_full((1, logits.shape[1]), -1e4)
        nothing[:, -1] = 0.0
        return RegionOutput(
            _in_rows(logits, valid, nothing),
            _in_rows(offsets, valid, offsets.new_zeros(())),
            _in_rows(torch.cat(list(regions)), valid, maps[0].new_zeros((), dtype=torch.float32)),
            valid,
            proposing.sizes,
            _WEIGHTS,
            proposing,
        )

    @torch.no_grad()
    def _proposed(self, proposing: DenseOutput) -> list[Float[Tensor, "_ 4"]]:
        """For each picture the best proposals, xyxy in pixels, the best ones first (Ren et al. 2015, section 3.3)."""
        most = self.config.training_proposals if self.training else self.config.proposals
        chosen, parts, start = [], [], 0
        logits = proposing.logits[..., 0].float()
        for level, part in enumerate(logits.split(proposing.counts, dim=1)):
            best = part.topk(min(most, part.shape[1]), dim=1).indices + start
            chosen.append(best)
            parts.append(torch.full_like(best[0], level))
            start += part.shape[1]
        rows, levels = torch.cat(chosen, dim=1), torch.cat(parts)
        scores = logits.gather(1, rows).sigmoid()
        offsets = proposing.offsets.float().gather(1, rows[..., None].expand(-1, -1, 4))
        boxes = corrected(offsets, proposing.anchors[rows])
        found = []
        for one, score, (height, width) in zip(boxes, scores, proposing.sizes.tolist(), strict=True):
            inside = clipped(one, (height, width))
            large = ((inside[:, 2:] - inside[:, :2]) >= _SMALLEST).all(1)
            inside = inside[large]
            found.append(inside[nms_per_class(inside, score[large], levels[large], _PROPOSAL_OVERLAP)[:most]])
        return found

    @torch.no_grad()
    def _drawn(self, regions: Float[Tensor, "k 4"], objects: Objects, size: Float[Tensor, " 2"]) -> Float[Tensor, "n 4"]:
        """Some of the proposals and objects of a picture, for a step of training."""
        boxes = cxcywh_to_xyxy(objects.boxes.float()) * size.flip(0).repeat(2)
        regions = torch.cat([regions, boxes])
        held = matched(iou(boxes, regions), above=OVERLAP, below=OVERLAP, best_at_least=False)
        holding, empty = sampled(held, count=self.config.training_regions, share=0.25)
        return regions[torch.cat([holding, empty]).sort().values]

    def _cell_anchors(self) -> list[Float[Tensor, "a 4"]]:
        return [cell_anchors([side], _RATIOS) for side in self.config.anchor_sides]

    def _fresh_head(self) -> None:
        width, rows = self.config.head_width, self.config.num_classes + 1  # the last one for nothing
        self.classes, self.region_offsets = Linear(width, rows), Linear(width, 4 * rows)
        small_normal(self.classes)
        small_normal(self.region_offsets, deviation=0.001)  # Girshick 2015, section 2.3


def _in_rows(
    values: Float[Tensor, "k ..."], valid: Bool[Tensor, "b q"], filling: Float[Tensor, "*#_"]
) -> Float[Tensor, "b q ..."]:
    """Values of all regions, those of each picture in a row of its own, filled up."""
    if len(valid) == 1:
        return values[None]
    rows = filling.expand(valid.numel(), *values.shape[1:])
    return rows.index_copy(0, valid.flatten().nonzero()[:, 0], values).unflatten(0, valid.shape)


_R50 = FasterRCNNConfig()

VARIANTS: dict[str, FasterRCNNConfig] = {
    "fasterrcnn_r50_fpn": _R50,
    "fasterrcnn_r50_fpn_v2": replace(
        _R50, backbone=ResNetConfig(num_classes=0), norm="batch", rpn_depth=2, head_convolutions=4
    ),
}
"""Networks by name: the backbone, its pyramid, and the recipe."""

PAPERS = {"fasterrcnn": "Ren et al. 2015", "fasterrcnn_r50_fpn_v2": "Ren et al. 2015, Li et al. 2021"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
