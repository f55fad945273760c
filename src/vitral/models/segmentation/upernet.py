"""UPerNet: a feature pyramid whose coarsest map knows the whole picture, read at one go.

Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding", https://arxiv.org/abs/1807.10221, section 3.1 and
figure 4, of which this is the part that names the pixels of objects: the head by which backbones have been compared since
(Liu et al. 2021, Swin Transformer, section 4.3).

    picture ─► backbone ─► strides 4, 8, 16, 32
                                │   │   │   └─► pyramid pooling ─┐
                                │   │   └─► 1 × 1 ─► + ◄─────────┤
                                │   └─► 1 × 1 ─► + ◄─┘           │
                                └─► 1 × 1 ─► + ◄─┘               │
                                            all enlarged to stride 4, side by side ─► 3 × 3 ─► classes

In training a second head reads the map of stride 16, so that learning reaches the middle of the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm
from vitral.layers.pyramid_pooling import PyramidPooling
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.network import check_ranges
from vitral.models.output import MapOutput
from vitral.models.segmentation.heads import FCNHead, classifier, initialise_head
from vitral.models.segmentation.kinds import MapNetwork
from vitral.models.segmentation.trunk import BackboneConfig, TrunkConfig, TrunkNetwork, shifted_swin

__all__ = ["PAPERS", "VARIANTS", "UPerNet", "UPerNetConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "width": (1, 100_000),
    "auxiliary_level": (0, 100),
    "auxiliary_width": (1, 100_000),
    "auxiliary_depth": (0, 100),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class UPerNetConfig(TrunkConfig):
    """Everything that tells one UPerNet from another.

    Attributes:
        image_size, num_classes, backbone: see `models.segmentation.trunk.TrunkConfig`.
        width: channels of the pyramid's maps and of what reads them.
        pool_grids: parts of the picture's height and width, whose means are taken, one number for each grid.
        auxiliary: whether there is a second head that learns.
        auxiliary_level: which map it reads, counted from 0, the finest.
        auxiliary_width: channels of its convolutions.
        auxiliary_depth: how many they are.
        auxiliary_joined: whether a further one sees the map beside what they made of it.
        dropout: probability of dropping a channel before a classifier in training.
    """

    backbone: BackboneConfig = field(default_factory=lambda: shifted_swin("swin_ti"))
    width: int = 512
    pool_grids: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary: bool = True
    auxiliary_level: int = 2
    auxiliary_width: int = 256
    auxiliary_depth: int = 1
    auxiliary_joined: bool = False
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if not 1 <= len(self.pool_grids) <= 100 or not all(1 <= grid <= 1_000 for grid in self.pool_grids):
            raise UsageError(f"pool_grids are one number or more from 1 to 1000; {self.pool_grids} came.")
        super().__post_init__()


class UPerNet(TrunkNetwork, MapNetwork):
    """A UPerNet.

    Args:
        config: which one.

    Raises:
        UsageError: a backbone that has no map for the second head.
    """

    config: UPerNetConfig

    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__(config)
        channels, width = self.trunk.channels, config.width
        self.pooling = PyramidPooling(channels[-1], width, config.pool_grids)
        self.lateral = nn.ModuleList(ConvNorm(inputs, width, 1, activation="relu") for inputs in channels[:-1])
        self.smooth = nn.ModuleList(ConvNorm(width, width, 3, activation="relu") for _ in channels[:-1])
        self.join = ConvNorm(len(channels) * width, width, 3, activation="relu")
        self.dropout = nn.Dropout2d(config.dropout)
        self.head = classifier(width, config.num_classes)
        self.auxiliary: FCNHead | None = None
        if config.auxiliary:
            if config.auxiliary_level >= len(channels):
                raise UsageError(
                    f"The backbone has {len(channels)} maps; auxiliary_level {config.auxiliary_level}, counted from 0, came."
                )
            self.auxiliary = FCNHead(
                channels[config.auxiliary_level],
                config.auxiliary_width,
                config.num_classes,
                depth=config.auxiliary_depth,
                joined=config.auxiliary_joined,
                dropout=config.dropout,
            )
        for part in (self.pooling, self.lateral, self.smooth, self.join):
            initialise_head(part)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of the cells of the backbone's finest map, 4 × 4 pixels each, for pictures of any one size."""
        maps = self.trunk(pixels).maps
        logits = self.head(self.dropout(self.read(maps)))
        if self.auxiliary is None or not self.training:
            return MapOutput(logits)
        return MapOutput(logits, (self.auxiliary(maps[self.config.auxiliary_level]),))

    def read(self, maps: tuple[Float[Tensor, "b _ _ _"], ...]) -> Float[Tensor, "b d i j"]:
        """The maps of a backbone, from fine to coarse, made one of the finest's size (figure 4, "fused feature map")."""
        above = self.pooling(maps[-1])
        found = [above]
        for lateral, smooth, below in reversed(list(zip(self.lateral, self.smooth, maps, strict=False))):
            above = lateral(below) + _enlarged(above, below)
            found.insert(0, smooth(above))
        return cast(Tensor, self.join(torch.cat([_enlarged(one, maps[0]) for one in found], dim=1)))

    def _fresh_head(self) -> None:
        self.head = classifier(self.config.width, self.config.num_classes)
        if self.auxiliary is not None:
            self.auxiliary.reset(self.config.num_classes)
        self.to(next(self.trunk.parameters()))


def _enlarged(x: Float[Tensor, "b d _ _"], like: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d i j"]:
    """A map brought to another one's size, between the cells."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=(like.shape[2], like.shape[3]), mode="bilinear", align_corners=False)


_TI = UPerNetConfig()

VARIANTS: dict[str, UPerNetConfig] = {
    "upernet_swin_t": _TI,
    "upernet_swin_s": replace(_TI, backbone=shifted_swin("swin_s")),
    "upernet_swin_b": replace(_TI, backbone=shifted_swin("swin_b")),
    "upernet_swin_l": replace(_TI, backbone=shifted_swin("swin_l")),
    "upernet_r50": replace(_TI, backbone=ResNetConfig(num_classes=0)),
    "upernet_r101": replace(_TI, backbone=ResNetConfig(depths=(3, 4, 23, 3), num_classes=0)),
}
"""Networks by name: the backbone's, for the 150 classes of ADE20K. Windows are of 7 × 7 cells, as in those published."""

PAPERS = {"upernet": "Xiao et al. 2018", "upernet_swin": "Liu et al. 2021"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
