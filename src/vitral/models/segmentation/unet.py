"""U-Net: down to where the whole is seen, and up again beside what was seen on the way.

Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
https://arxiv.org/abs/1505.04597, section 2 and figure 1. Two convolutions, a pooling that halves the map while channels
double, four times; then a transposed convolution doubles the map, what stood at this size on the way down is put beside it,
and two convolutions read both.

The paper's convolutions see no borders: of 572 × 572 pixels 388 × 388 are told. A picture is surrounded by its own mirror
image, so that all of it is told (`border="mirrored"`; section 2, the overlap-tile strategy). What nearly everybody builds
today surrounds every map by zeros instead, so that nothing shrinks, and normalises behind every convolution
(`border="zeros"`, `norm="batch"`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
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
from vitral.models.segmentation.heads import classifier
from vitral.models.segmentation.kinds import MapNetwork

__all__ = ["PAPERS", "VARIANTS", "UNet", "UNetConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "stage_channels": (1, 100_000),
    "num_classes": (1, 10_000_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class UNetConfig(MapConfig):
    """Everything that tells one U-Net from another.

    Attributes:
        stage_channels: channels of each stage on the way down, the last one being the turning point.
        border: what surrounds a picture, and every map: zeros, or nothing but the picture's own mirror image.
        norm: what follows each convolution of 3 × 3.
        bias: whether these convolutions have a bias before a norm, which needs none; without a norm they always do.
        enlarging: how maps are doubled on the way up: by a transposed convolution of 2 × 2 that halves the channels, or
            by bilinear interpolation, the convolution before having halved them.
        dropout: probability of dropping a channel at the end of the way down, in training.
    """

    image_size: tuple[int, int] = (512, 512)
    num_classes: int = 2
    stage_channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    border: Literal["zeros", "mirrored"] = "zeros"
    norm: Literal["none", "batch"] = "batch"
    bias: bool = False
    enlarging: Literal["learned", "bilinear"] = "learned"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if not 2 <= len(self.stage_channels) <= 10:
            raise UsageError(f"A U-Net has from 2 to 10 stages; {len(self.stage_channels)} came.")
        if any(2 * one != two for one, two in pairwise(self.stage_channels)):
            raise UsageError(f"Channels double from stage to stage; {self.stage_channels} came.")
        if self.border == "mirrored" and self.enlarging == "bilinear":
            raise UsageError(
                "A picture is mirrored for transposed convolutions; enlarging 'bilinear' goes with border 'zeros'."
            )

    @property
    def stride(self) -> int:
        """Pixels from one cell of the coarsest map to the next."""
        return int(2 ** (len(self.stage_channels) - 1))

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the coarsest map of a picture of some (height, width)."""
        if self.border == "zeros":
            return size[0] // self.stride, size[1] // self.stride
        return self.turning(size[0]), self.turning(size[1])

    def turning(self, side: int) -> int:
        """Rows of the coarsest map, behind its convolutions, of which no fewer than `side` rows of pixels are told."""
        return max(1, -(-(side + 4 * (self.stride - 1)) // self.stride))

    @property
    def width(self) -> int:
        """Channels of what the classifier reads."""
        return self.stage_channels[0]

    @property
    def depth(self) -> int:
        """Pairs of convolutions, down and up."""
        return 2 * len(self.stage_channels) - 1


class _Pair(nn.Module):
    """Two convolutions of 3 × 3, each with its norm and ReLU."""

    def __init__(self, inputs: int, between: int, outputs: int, config: UNetConfig) -> None:
        super().__init__()
        padding, bias = 1 if config.border == "zeros" else 0, config.bias or config.norm == "none"
        self.first = ConvNorm(inputs, between, 3, padding=padding, activation="relu", norm=config.norm, bias=bias)
        self.second = ConvNorm(between, outputs, 3, padding=padding, activation="relu", norm=config.norm, bias=bias)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d i j"]:
        """Apply both."""
        return cast(Tensor, self.second(self.first(x)))


class _Up(nn.Module):
    """A map doubled and read beside what was seen at this size on the way down."""

    def __init__(self, width: int, outputs: int, config: UNetConfig) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(2 * width, width, 2, 2) if config.enlarging == "learned" else None
        self.pair = _Pair(2 * width, width, outputs, config)

    def forward(self, x: Float[Tensor, "b _ i j"], beside: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d h w"]:
        """Apply the step."""
        if self.enlarge is None:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        else:
            x = self.enlarge(x)
        return cast(Tensor, self.pair(torch.cat(_of_one_size(beside, x), dim=1)))


class UNet(MapNetwork):
    """A U-Net.

    Args:
        config: which one.
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths, learned = config.stage_channels, config.enlarging == "learned"
        # Where nothing halves channels when maps are doubled, the convolutions before have done so.
        behind = [width if learned or not place else width // 2 for place, width in enumerate(widths)]
        inputs = (config.channels, *widths[:-2], widths[-2])
        self.down = nn.ModuleList(
            _Pair(before, width, width, config) for before, width in zip(inputs, (*widths[:-1], behind[-1]), strict=True)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.up = nn.ModuleList(_Up(width, behind[place], config) for place, width in reversed(list(enumerate(widths[:-1]))))
        self.head = classifier(config.width, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):  # section 3: a deviation of √(2 / N), N numbers coming in
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The pairs of convolutions, down and up."""
        return *self.down, *self.up

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of the pixels of pictures of any one size; with zeros as border, of no less than the network's stride.

        Raises:
            UsageError: pictures of other channels, or too small.
        """
        config = self.config
        if config.border == "zeros":
            return MapOutput(self.read(as_map(pixels, config.channels, config.stride)))
        high, wide = pixels.shape[2:]
        told = self.read(_mirrored(as_map(pixels, config.channels), self._needed(high), self._needed(wide), self._margin))
        return MapOutput(told[:, :, :high, :wide].contiguous())

    def read(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k i j"]:
        """Logits of the pixels of a map that is taken as it is: of all, or where nothing surrounds it, of those inside.

        Args:
            x: a map of whose coarsest form a cell is left at least; without zeros around it, of a size that halves without
                a rest, as 572 × 572.
        """
        passed = []
        for place, pair in enumerate(self.down):
            x = pair(F.max_pool2d(x, 2) if place else x)
            passed.append(x)
        x = self.dropout(passed.pop())
        for step in self.up:
            x = step(x, passed.pop())
        return cast(Tensor, self.head(x))

    @property
    def _margin(self) -> int:
        """Pixels on either side of which nothing is told, for want of what surrounds them."""
        stride = self.config.stride
        return (4 * stride + 8 * (stride - 1)) // 2

    def _needed(self, side: int) -> int:
        """Pixels of which no fewer than `side` are told."""
        stride = self.config.stride
        return stride * (self.config.turning(side) + 4) + 4 * (stride - 1)

    def _fresh_head(self) -> None:
        self.head = classifier(self.config.width, self.config.num_classes).to(self.head.weight)


def _of_one_size(
    beside: Float[Tensor, "b _ y x"], x: Float[Tensor, "b _ i j"]
) -> tuple[Float[Tensor, "b _ h w"], Float[Tensor, "b _ h w"]]:
    """Two maps around one middle: the first cut where it is larger, unless what is missing is a row or column of a rest."""
    (high, wide), (rows, columns) = beside.shape[2:], x.shape[2:]
    if high - rows in (0, 1) and wide - columns in (0, 1):  # the pooling left out the last one
        return beside, F.pad(x, (0, wide - columns, 0, high - rows))
    top, left = (high - rows) // 2, (wide - columns) // 2
    return beside[:, :, top : top + rows, left : left + columns], x


def _mirrored(x: Float[Tensor, "b c y x"], height: int, width: int, margin: int) -> Float[Tensor, "b c h w"]:
    """A picture with its mirror image around it, again and again where it is small.

    Args:
        x: a picture.
        height: of the result.
        width: of the result.
        margin: rows above it, and columns to its left.
    """
    for axis, side in ((2, height), (3, width)):
        length = x.shape[axis]
        period = max(1, 2 * (length - 1))
        places = torch.arange(-margin, side - margin, device=x.device).remainder(period)
        x = x.index_select(axis, torch.minimum(places, period - places).clamp(max=length - 1))
    return x.contiguous(memory_format=torch.channels_last)


_UNET = UNetConfig()

VARIANTS: dict[str, UNetConfig] = {
    "unet": _UNET,
    "unet_2015": replace(_UNET, channels=1, border="mirrored", norm="none", dropout=0.5),
}
"""Networks by name: `unet_2015` is the paper's, for grey pictures; `unet` is surrounded by zeros and has batch norms."""

PAPERS = {"unet": "Ronneberger et al. 2015"}
"""Beginning of a name → where the network was published."""
