"""AlexNet: five convolutions and three fully connected layers, which made networks the way to recognise pictures.

Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS, in the form that is in
use, that of Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks",
https://arxiv.org/abs/1404.5997, section 5: one column of (64, 192, 384, 256, 256) channels where the first had two, and no
normalisation of local responses. Pictures of other sizes are taken as torchvision takes them: the last map is averaged to
6 × 6 cells before the fully connected layers read it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm, as_map
from vitral.layers.linear import Linear
from vitral.models.network import MapConfig, Network, check_ranges, chosen_levels
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "AlexNet", "AlexNetConfig"]

# Of each convolution: the window's side, its stride, the padding; pooling of 3 × 3 at stride 2 follows three of them.
_CONVOLUTIONS = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
_POOLED = (0, 1, 4)
_CELLS = 6
_SMALLEST = 63
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "stage_channels": (1, 100_000),
    "classifier_width": (1, 1_000_000),
    "num_classes": (0, 10_000_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class AlexNetConfig(MapConfig):
    """Everything that tells one AlexNet from another.

    Attributes:
        stage_channels: channels behind each of the five convolutions.
        classifier_width: channels of the two hidden fully connected layers.
        dropout: probability of dropping a channel before each of them in training.
    """

    stage_channels: tuple[int, ...] = (64, 192, 384, 256, 256)
    classifier_width: int = 4096
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if len(self.stage_channels) != len(_CONVOLUTIONS):
            raise UsageError(f"AlexNet has {len(_CONVOLUTIONS)} convolutions; stage_channels {self.stage_channels} came.")

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return self.stage_channels[-1]

    @property
    def depth(self) -> int:
        """Number of convolutions."""
        return len(_CONVOLUTIONS)

    @property
    def pool(self) -> str:
        """What the classifier reads: all cells of the last map, averaged to 6 × 6 and side by side."""
        return "flat"

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the last map, behind its pooling; nothing is padded, so cells are lost at the borders."""
        rows, columns = size
        for place, (kernel, stride, padding) in enumerate(_CONVOLUTIONS):
            rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (rows, columns))
            if place in _POOLED:
                rows, columns = ((side - 3) // 2 + 1 for side in (rows, columns))
        return max(0, rows), max(0, columns)


class AlexNet(Network):
    """AlexNet.

    Args:
        config: which one.
    """

    config: AlexNetConfig

    def __init__(self, config: AlexNetConfig) -> None:
        super().__init__(config)
        widths = (config.channels, *config.stage_channels)
        self.blocks = nn.ModuleList(
            ConvNorm(widths[place], widths[place + 1], kernel, stride, padding, activation="relu", norm="none")
            for place, (kernel, stride, padding) in enumerate(_CONVOLUTIONS)
        )
        hidden = config.classifier_width
        self.hidden = nn.ModuleList([Linear(config.width * _CELLS * _CELLS, hidden), Linear(hidden, hidden)])
        self.dropout = nn.Dropout(config.dropout)
        self.head = Linear(hidden, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size, of 63 × 63 pixels at least, and classify them.

        Raises:
            UsageError: pictures of other channels, or too small.
        """
        (last,) = deque(self._maps(pixels), maxlen=1)
        return self.read_out(last.flatten(2).transpose(1, 2), (last.shape[2], last.shape[3]))

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the cells of the last map come to: averaged to 6 × 6, side by side through three layers."""
        cells = F.adaptive_avg_pool2d(tokens.transpose(1, 2).unflatten(2, grid), _CELLS)
        pooled = cells.flatten(1)
        for layer in self.hidden:
            pooled = F.relu(layer(self.dropout(pooled)))
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    @property
    def levels(self) -> tuple[Level, ...]:
        """Before each of the three poolings, and behind the last."""
        widths = self.config.stage_channels
        return (*(Level(widths[place], 4 * 2**i) for i, place in enumerate(_POOLED)), Level(widths[-1], 32))

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps before the poolings and the last map; the fully connected layers are not computed.

        Args:
            pixels: prepared pictures of any one size, of 63 × 63 pixels at least.
            levels: which of `self.levels`; None for all.
        """
        chosen = chosen_levels(self.levels, range(len(self.levels)) if levels is None else levels)
        maps = tuple(x for place, x in zip(range(1 + chosen[-1]), self._maps(pixels), strict=False) if place in chosen)
        return Pyramid(maps, tuple(self.levels[place].stride for place in chosen))

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random last layer for `num_classes` classes in place of the present one; 0 removes it."""
        like = cast(Linear, self.hidden[-1]).weight
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.classifier_width, num_classes) if num_classes else None
        if self.head is not None:
            self.head.apply(_initialise).to(like.device, like.dtype)

    def _maps(self, pixels: Float[Tensor, "b c y x"]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        """The maps before the poolings, and the one behind the last, as they are computed."""
        x = as_map(pixels, self.config.channels, _SMALLEST)
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place in _POOLED:
                yield x
                x = F.max_pool2d(x, 3, 2)
        yield x


def _initialise(module: nn.Module) -> None:
    """Convolutions as He et al. 2015 (variance 2 / fan-out), fully connected layers at 0.01 (Krizhevsky et al. 2012)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


VARIANTS: dict[str, AlexNetConfig] = {"alexnet": AlexNetConfig()}
"""Networks by name."""

PAPERS = {"alexnet": "Krizhevsky et al. 2012"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
