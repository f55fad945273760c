"""RetinaNet: every place of a pyramid says, of nine anchors, what they hold and how to correct them.

Lin et al. 2017, "Focal Loss for Dense Object Detection", https://arxiv.org/abs/1708.02002. Two towers of convolutions, one
for the classes and one for the boxes, go over the maps of a feature pyramid of strides 8 to 128, and share nothing. What
made this simple network as good as those of two looks is its loss (`tasks.detection.assignment`).

The second version has the changes of Zhang et al. 2020, https://arxiv.org/abs/1912.02424: norms in the towers, coarser maps
made from the backbone's last, and boxes taught by their generalized IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.boxes import Objects
from vitral.layers.conv import ConvNorm
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection.anchors import cell_anchors
from vitral.models.detection.pyramidal import (
    PRIOR,
    PyramidConfig,
    PyramidDetector,
    Tower,
    as_rows,
    small_normal,
)
from vitral.models.output import DenseOutput

__all__ = ["PAPERS", "VARIANTS", "RetinaNet", "RetinaNetConfig"]

_RATIOS = (0.5, 1.0, 2.0)
_STEPS = (0, 1 / 3, 2 / 3)  # of an octave: three sizes before the next map takes over
_ANCHORS = len(_RATIOS) * len(_STEPS)
_TOWER = 4


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(PyramidConfig):
    """Everything that tells one RetinaNet from another.

    Attributes:
        more: what the two coarsest maps are made from: the pyramid's last map, or the backbone's.
        tower_norm: what follows the convolutions of the towers.
        taught: how boxes are taught: by the distance of the corrections, or the generalized IoU of the boxes.
    """

    num_classes: int = 91
    more: Literal["from_pyramid", "from_backbone"] = "from_pyramid"
    tower_norm: Literal["none", "group"] = "none"
    taught: Literal["l1", "giou"] = "l1"


class RetinaNet(PyramidDetector):
    """A RetinaNet.

    Args:
        config: which one.
    """

    config: RetinaNetConfig

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__(config, first=1, norm="none", more=config.more)
        width, plain = config.pyramid_width, config.tower_norm == "none"
        self.class_tower = Tower(width, _TOWER, config.tower_norm, bias=plain)
        self.classes: nn.Module
        self._fresh_head()
        self.box_tower = Tower(width, _TOWER, config.tower_norm, bias=plain)
        self.offsets = ConvNorm(width, _ANCHORS * 4, 3, norm="none")
        small_normal(self.class_tower, self.box_tower, self.offsets)

    def forward(
        self,
        pixels: Float[Tensor, "b c y x"],
        mask: Bool[Tensor, "b y x"] | None = None,
        targets: Sequence[Objects] | None = None,
    ) -> DenseOutput:
        """Look for objects; see `Detector.forward`. Targets are not looked at."""
        pixels, sizes = self._seen(pixels, mask)
        maps = self._maps(pixels)
        logits = as_rows([self.classes(self.class_tower(one)) for one in maps], self.config.num_classes)
        offsets = as_rows([self.offsets(self.box_tower(one)) for one in maps], 4)
        anchors, counts = self._anchors(maps, pixels)
        return DenseOutput(logits, offsets, anchors, counts, sizes, "corrections", self.config.taught)

    def _cell_anchors(self) -> list[Float[Tensor, "a 4"]]:
        sides = self.config.anchor_sides
        return [cell_anchors([int(side * 2**step) for step in _STEPS], _RATIOS) for side in sides]

    def _fresh_head(self) -> None:
        self.classes = ConvNorm(self.config.pyramid_width, _ANCHORS * self.config.num_classes, 3, norm="none")
        small_normal(self.classes)
        nn.init.constant_(self.classes.conv.bias, PRIOR)  # type: ignore[arg-type]


_R50 = RetinaNetConfig()

VARIANTS: dict[str, RetinaNetConfig] = {
    "retinanet_r50_fpn": _R50,
    "retinanet_r50_fpn_v2": replace(
        _R50, backbone=ResNetConfig(num_classes=0), more="from_backbone", tower_norm="group", taught="giou"
    ),
}
"""Networks by name: the backbone, its pyramid, and the recipe."""

PAPERS = {"retinanet": "Lin et al. 2017", "retinanet_r50_fpn_v2": "Lin et al. 2017, Zhang et al. 2020"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
