"""Fully convolutional network over a residual network whose last maps are kept large.

Long et al. 2015, "Fully Convolutional Networks for Semantic Segmentation", https://arxiv.org/abs/1411.4038, say that a
classifier asked at every cell is a segmenter. What they built of a VGG is on the page `models.segmentation.fcn_vgg`; this is
the form it has taken since: no stage behind the second one halves its map, their windows being spread instead (Yu and Koltun
2016, https://arxiv.org/abs/1511.07122), a convolution of 3 × 3 and a classifier read the last map, of stride 8, and in
training a second head reads the one before (Zhao et al. 2017, https://arxiv.org/abs/1612.01105, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from vitral.base.config import check_choices
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.network import check_ranges
from vitral.models.output import MapOutput
from vitral.models.segmentation.heads import FCNHead
from vitral.models.segmentation.kinds import MapNetwork
from vitral.models.segmentation.trunk import BackboneConfig, TrunkConfig, TrunkNetwork

__all__ = ["FCN", "PAPERS", "VARIANTS", "FCNConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class FCNConfig(TrunkConfig):
    """Everything that tells one fully convolutional network from another.

    Attributes:
        image_size, num_classes, backbone: see `models.segmentation.trunk.TrunkConfig`. The published networks have 21
            classes, those of Pascal VOC and what is none of them.
        auxiliary: whether a second head learns from the last map but one.
        dropout: probability of dropping a channel before a classifier in training.
    """

    image_size: tuple[int, int] = (520, 520)
    num_classes: int = 21
    backbone: BackboneConfig = field(default_factory=lambda: ResNetConfig(dilated=2, num_classes=0))
    auxiliary: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        super().__post_init__()

    @property
    def width(self) -> int:
        """Channels of what the classifier reads: a quarter of the last map's."""
        return max(1, self.backbone.width // 4)


class FCN(TrunkNetwork, MapNetwork):
    """A fully convolutional network.

    Args:
        config: which one.
    """

    config: FCNConfig

    def __init__(self, config: FCNConfig) -> None:
        super().__init__(config, (-2, -1) if config.auxiliary else (-1,))
        *before, last = self.trunk.channels
        self.auxiliary: FCNHead | None = None
        if config.auxiliary:
            self.auxiliary = FCNHead(before[0], max(1, before[0] // 4), config.num_classes, dropout=config.dropout)
        self.head = FCNHead(last, config.width, config.num_classes, dropout=config.dropout)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of the cells of the backbone's last map, for pictures of any one size."""
        *before, last = self.trunk(pixels).maps
        logits = self.head(last)
        if self.auxiliary is None or not self.training:
            return MapOutput(logits)
        return MapOutput(logits, (self.auxiliary(before[0]),))

    def _fresh_head(self) -> None:
        self.head.reset(self.config.num_classes)
        if self.auxiliary is not None:
            self.auxiliary.reset(self.config.num_classes)
        self.to(next(self.trunk.parameters()))


_R50 = FCNConfig()

VARIANTS: dict[str, FCNConfig] = {
    "fcn_r50": _R50,
    "fcn_r101": replace(_R50, backbone=ResNetConfig(depths=(3, 4, 23, 3), dilated=2, num_classes=0)),
}
"""Networks by name: the residual network's layers."""

PAPERS = {"fcn": "Long et al. 2015"}
"""Beginning of a name → where the network was published."""
