"""The first fully convolutional networks: VGG-16 asked at every place, and its answers enlarged by what it learns.

Long et al. 2015, "Fully Convolutional Networks for Semantic Segmentation", https://arxiv.org/abs/1411.4038; details as in
Shelhamer et al. 2017, https://arxiv.org/abs/1605.06211, and in the authors' networks.

The fully connected layers become convolutions, so that a picture of any size gives a map of scores at stride 32. Transposed
convolutions that begin as bilinear interpolation bring it to the picture's size (section 3.3). FCN-16s and FCN-8s first
enlarge it twofold and add scores read from the finer maps behind the fourth and the third pooling (section 4.2, figure 3):

    pool 3 ─────────── scores ──────────────────────► + ─► × 8 ─► classes (8s)
    pool 4 ── scores ─────────────► + ─► × 2 ─────────┘
    pool 5 ─► 7 × 7 ─► 1 × 1 ─► scores ─► × 2 ─┘

The picture is surrounded by 99 pixels of zeros, so that the map covers all of it however small it is; what a map covers too
much is cut off, by margins that follow from the windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm, as_map
from vitral.models.network import MapConfig, check_ranges
from vitral.models.output import MapOutput
from vitral.models.segmentation.kinds import MapNetwork

__all__ = ["FCNVGG", "PAPERS", "VARIANTS", "FCNVGGConfig"]

_STAGES = 5
_BORDER = 100  # of the first convolution, which takes one of them
_FINEST = {"32": 5, "16": 4, "8": 3}  # behind which pooling the finest scores are read
# Cells that the map behind a pooling covers before the scores that were enlarged to its stride begin.
_MARGIN = {4: 5, 3: 9}
# Pixels that the enlarged scores cover before the picture begins.
_BEFORE = {"32": 19, "16": 27, "8": 31}
# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "stage_channels": (1, 100_000),
    "hidden_width": (1, 1_000_000),
    "num_classes": (1, 10_000_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class FCNVGGConfig(MapConfig):
    """Everything that tells one of these networks from another.

    Attributes:
        num_classes: classes of pixels. The published networks have 21, those of Pascal VOC and what is none of them.
        stage_channels: channels of each of the five stages, which a pooling ends.
        depths: convolutions of each stage.
        hidden_width: channels of the two layers that were fully connected.
        finest: stride of the finest scores: "32", "16" or "8" pixels.
        dropout: probability of dropping a channel behind each of these layers in training.
    """

    image_size: tuple[int, int] = (500, 500)
    num_classes: int = 21
    stage_channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    hidden_width: int = 4096
    finest: Literal["32", "16", "8"] = "8"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        many = len(self.stage_channels), len(self.depths)
        if many != (_STAGES, _STAGES) or not all(1 <= depth <= 100 for depth in self.depths):
            raise UsageError(
                "stage_channels and depths name five stages of 1 to 100 convolutions each; "
                f"{self.stage_channels} and {self.depths} came."
            )

    @property
    def width(self) -> int:
        """Channels of what the classifier reads."""
        return self.hidden_width

    @property
    def depth(self) -> int:
        """Number of convolutions before the layers that were fully connected."""
        return sum(self.depths)


class FCNVGG(MapNetwork):
    """A VGG that tells what every pixel shows.

    Args:
        config: which one.
    """

    config: FCNVGGConfig

    def __init__(self, config: FCNVGGConfig) -> None:
        super().__init__(config)
        widths = [width for width, depth in zip(config.stage_channels, config.depths, strict=True) for _ in range(depth)]
        self.blocks = nn.ModuleList(
            ConvNorm(before, after, 3, padding=1 if place else _BORDER, activation="relu", norm="none")
            for place, (before, after) in enumerate(zip([config.channels, *widths], widths, strict=False))
        )
        hidden = config.hidden_width
        self.hidden = nn.ModuleList(
            [
                ConvNorm(config.stage_channels[-1], hidden, 7, padding=0, activation="relu", norm="none"),
                ConvNorm(hidden, hidden, 1, activation="relu", norm="none"),
            ]
        )
        self.dropout = nn.Dropout2d(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))
        self._build_heads(config)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of the pixels of pictures of any one size."""
        pooled, x = [], as_map(pixels, self.config.channels)
        blocks = iter(self.blocks)
        for depth in self.config.depths:
            for _ in range(depth):
                x = next(blocks)(x)
            x = F.max_pool2d(x, 2, ceil_mode=True)
            pooled.append(x)
        for layer in self.hidden:
            x = self.dropout(layer(x))
        for place, (score, enlarge) in enumerate(zip(self.scores, self.enlarging, strict=True)):
            if not place:
                x = enlarge(score(x))
                continue
            number = _STAGES - place
            margin, (high, wide) = _MARGIN[number], x.shape[2:]
            x = enlarge(x + score(pooled[number - 1])[:, :, margin : margin + high, margin : margin + wide])
        before = _BEFORE[self.config.finest]
        return MapOutput(x[:, :, before : before + pixels.shape[2], before : before + pixels.shape[3]].contiguous())

    def _fresh_head(self) -> None:
        self._build_heads(self.config)
        self.to(next(self.hidden.parameters()))

    def _build_heads(self, config: FCNVGGConfig) -> None:
        """Scores, which begin as zero (section 4.3), and what enlarges them, which begins as interpolation."""
        classes, steps = config.num_classes, _STAGES - _FINEST[config.finest]
        inputs = [config.hidden_width, *(config.stage_channels[_STAGES - 1 - place] for place in range(1, steps + 1))]
        self.scores = nn.ModuleList(nn.Conv2d(channels, classes, 1) for channels in inputs)
        times = [2] * steps + [int(config.finest)]
        self.enlarging = nn.ModuleList(nn.ConvTranspose2d(classes, classes, 2 * one, one, bias=False) for one in times)
        for score, enlarge in zip(self.scores, self.enlarging, strict=True):
            nn.init.zeros_(cast(Tensor, score.weight))
            nn.init.zeros_(cast(Tensor, score.bias))
            _interpolating(cast(nn.ConvTranspose2d, enlarge))


@torch.no_grad()
def _interpolating(layer: nn.ConvTranspose2d) -> None:
    """Weights by which a transposed convolution interpolates each channel bilinearly."""
    side = layer.kernel_size[0]
    line = 1 - (torch.arange(side) - (side - 1) / 2).abs() / (side / 2)
    layer.weight.zero_()
    each = torch.arange(layer.in_channels)
    layer.weight[each, each] = (line[:, None] * line).to(layer.weight)


_8 = FCNVGGConfig()

VARIANTS: dict[str, FCNVGGConfig] = {
    "fcn32s_vgg16": replace(_8, finest="32"),
    "fcn16s_vgg16": replace(_8, finest="16"),
    "fcn8s_vgg16": _8,
}
"""Networks by name: the stride of the finest scores."""

PAPERS = {"fcn": "Long et al. 2015"}
"""Beginning of a name → where the network was published."""
