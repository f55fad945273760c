"""Semantic FPN: a feature pyramid whose maps are made as fine as the finest, step by step, and added.

Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", https://arxiv.org/abs/1901.02446, section 3.1 and figure 3. The
light head by which backbones with a pyramid are compared (Wang et al. 2021, PVT, section 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm
from vitral.layers.pyramid import FeaturePyramid
from vitral.models.backbones import pvt
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.network import check_ranges
from vitral.models.output import MapOutput
from vitral.models.segmentation.heads import classifier, initialise_head
from vitral.models.segmentation.kinds import MapNetwork
from vitral.models.segmentation.trunk import BackboneConfig, TrunkConfig, TrunkNetwork

__all__ = ["PAPERS", "VARIANTS", "SemanticFPN", "SemanticFPNConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "pyramid_width": (1, 100_000),
    "width": (1, 100_000),
    "groups": (1, 100_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class SemanticFPNConfig(TrunkConfig):
    """Everything that tells one semantic FPN from another.

    Attributes:
        image_size, num_classes, backbone: see `models.segmentation.trunk.TrunkConfig`.
        pyramid_width: channels of the feature pyramid's maps.
        width: channels of what is made of them.
        norm: what follows the head's convolutions: group normalisation (Wu and He 2018), as in the paper, or batch
            normalisation, as in later work with many pictures at once.
        groups: of channels that are normed together.
        dropout: probability of dropping a channel before the classifier in training.
    """

    backbone: BackboneConfig = field(default_factory=lambda: ResNetConfig(num_classes=0))
    pyramid_width: int = 256
    width: int = 128
    norm: Literal["group", "batch"] = "group"
    groups: int = 32
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if self.norm == "group" and self.width % self.groups:
            raise UsageError(f"width must be a multiple of groups; width {self.width} and groups {self.groups} came.")
        super().__post_init__()


class _Step(nn.Module):
    """A convolution of 3 × 3, a norm and ReLU."""

    def __init__(self, inputs: int, config: SemanticFPNConfig) -> None:
        super().__init__()
        batch = config.norm == "batch"
        self.layer = ConvNorm(
            inputs, config.width, 3, activation="relu" if batch else "none", norm="batch" if batch else "none", bias=False
        )
        self.norm = None if batch else nn.GroupNorm(config.groups, config.width)

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d i j"]:
        """Apply the step."""
        x = self.layer(x)
        return x if self.norm is None else F.relu(self.norm(x))


class SemanticFPN(TrunkNetwork, MapNetwork):
    """A semantic FPN.

    Args:
        config: which one.
    """

    config: SemanticFPNConfig

    def __init__(self, config: SemanticFPNConfig) -> None:
        super().__init__(config)
        self.neck = FeaturePyramid(self.trunk.channels, config.pyramid_width)
        # The finest map passes one step; every other one step for each level that it climbs.
        self.climbs = nn.ModuleList(
            nn.ModuleList(_Step(config.width if step else config.pyramid_width, config) for step in range(max(1, level)))
            for level in range(len(self.trunk.levels))
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.head = classifier(config.width, config.num_classes)
        initialise_head(self.climbs)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of the cells of the backbone's finest map, 4 × 4 pixels each, for pictures of any one size."""
        return MapOutput(self.head(self.dropout(self.read(self.trunk(pixels).maps))))

    def read(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b d i j"]:
        """The maps of a backbone, from fine to coarse, made one of the finest's size (figure 3)."""
        sizes = [(one.shape[2], one.shape[3]) for one in maps]
        summed: Tensor | None = None
        for level, (x, climb) in enumerate(zip(self.neck(maps), self.climbs, strict=True)):
            for place, step in enumerate(cast(nn.ModuleList, climb), 1):
                x = step(x)
                if level:  # to twice as many cells, or one less where the finer map is odd
                    x = F.interpolate(x, size=sizes[level - place], mode="bilinear", align_corners=False)
            summed = x if summed is None else summed + x
        return cast(Tensor, summed)

    def _fresh_head(self) -> None:
        self.head = classifier(self.config.width, self.config.num_classes)
        self.to(next(self.trunk.parameters()))


_R50 = SemanticFPNConfig()

VARIANTS: dict[str, SemanticFPNConfig] = {
    "semantic_fpn_r50": _R50,
    "semantic_fpn_r101": replace(_R50, backbone=ResNetConfig(depths=(3, 4, 23, 3), num_classes=0)),
    **{
        f"semantic_fpn_{name}": replace(_R50, backbone=replace(config, num_classes=0), norm="batch")
        for name, config in pvt.VARIANTS.items()
    },
}
"""Networks by name: the backbone's, for the 150 classes of ADE20K."""

PAPERS = {"semantic_fpn": "Kirillov et al. 2019", "semantic_fpn_pvt": "Wang et al. 2022"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
