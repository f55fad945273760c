"""FCOS: every place of a pyramid says which object it lies in, and how far that object's four edges are.

Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection", https://arxiv.org/abs/1904.01355: no anchors of
many sizes and shapes, but points; maps of strides 8 to 128 take objects of rising size. A point also says how near to the
middle of its object it is, and scores fall towards the edges, where boxes are poor (section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.boxes import Objects
from vitral.layers.conv import ConvNorm
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

__all__ = ["FCOS", "PAPERS", "VARIANTS", "FCOSConfig"]

_TOWER = 4


@dataclass(frozen=True, kw_only=True)
class FCOSConfig(PyramidConfig):
    """Everything that tells one FCOS from another.

    Attributes:
        anchor_sides: for each map of the pyramid, the side in pixels in which distances are told: the map's stride. An
            object belongs to the map of which its farthest edge is 4 to 8 sides away.
    """

    num_classes: int = 91
    anchor_sides: tuple[int, ...] = (8, 16, 32, 64, 128)


class FCOS(PyramidDetector):
    """An FCOS.

    Args:
        config: which one.
    """

    config: FCOSConfig

    def __init__(self, config: FCOSConfig) -> None:
        super().__init__(config, first=1, norm="none", more="from_pyramid")
        width = config.pyramid_width
        self.class_tower = Tower(width, _TOWER, "group")
        self.classes: nn.Module
        self._fresh_head()
        self.box_tower = Tower(width, _TOWER, "group")
        self.edges = ConvNorm(width, 4, 3, norm="none", activation="relu")
        self.centerness = ConvNorm(width, 1, 3, norm="none")
        small_normal(self.class_tower, self.box_tower, self.edges, self.centerness)

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
        towers = [self.box_tower(one) for one in maps]
        offsets = as_rows([self.edges(one) for one in towers], 4)
        centerness = as_rows([self.centerness(one) for one in towers], 1)[..., 0]
        anchors, counts = self._anchors(maps, pixels)
        return DenseOutput(logits, offsets, anchors, counts, sizes, "edges", "giou", centerness)

    def _cell_anchors(self) -> list[Float[Tensor, "a 4"]]:
        return [cell_anchors([side], [1.0]) for side in self.config.anchor_sides]

    def _fresh_head(self) -> None:
        self.classes = ConvNorm(self.config.pyramid_width, self.config.num_classes, 3, norm="none")
        small_normal(self.classes)
        nn.init.constant_(self.classes.conv.bias, PRIOR)  # type: ignore[arg-type]


VARIANTS: dict[str, FCOSConfig] = {"fcos_r50_fpn": FCOSConfig()}
"""Networks by name: the backbone and its pyramid."""

PAPERS = {"fcos": "Tian et al. 2019"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
