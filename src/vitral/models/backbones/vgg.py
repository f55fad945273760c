"""VGG: convolutions of 3 × 3 and nothing else, up to sixteen of them, and three fully connected layers.

Simonyan and Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
https://arxiv.org/abs/1409.1556, table 1: its networks A, B, D and E are called by their number of layers with weights. The
rows `…_bn` have a batch normalisation behind each convolution.

The paper knows two ways from a last map that is not of 7 × 7 cells to the fully connected layers: averaging it to 7 × 7, as
torchvision does, and letting the layers read every window of 7 × 7 cells (section 3.2, dense evaluation), as timm does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm, as_map
from vitral.layers.linear import Linear
from vitral.models.network import MapConfig, Network, check_ranges, chosen_levels
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "VGG", "VGGConfig"]

_CELLS = 7
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "stage_channels": (1, 100_000),
    "classifier_width": (1, 1_000_000),
    "num_classes": (0, 10_000_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class VGGConfig(MapConfig):
    """Everything that tells one VGG from another.

    Attributes:
        stage_channels: channels of each stage; a pooling that halves height and width ends it.
        depths: convolutions of each stage.
        norm: what follows each of them: nothing, batch normalisation, or one that stays as it is, as detectors have it.
        classifier_width: channels of the two hidden fully connected layers.
        reading: what these layers read: the last map averaged to 7 × 7 cells, or every window of 7 × 7 in it, the results
            averaged. Both are the same for pictures of 224 × 224 pixels.
        dropout: probability of dropping a channel behind each of them in training.
    """

    stage_channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    norm: Literal["none", "batch", "frozen"] = "none"
    classifier_width: int = 4096
    reading: Literal["averaged", "windows"] = "averaged"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        stages = len(self.stage_channels)
        if not 1 <= stages <= 8 or len(self.depths) != stages or not all(1 <= depth <= 100 for depth in self.depths):
            raise UsageError(
                "stage_channels and depths name as many stages, from 1 to 8, of 1 to 100 convolutions each; "
                f"{self.stage_channels} and {self.depths} came."
            )

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return self.stage_channels[-1]

    @property
    def depth(self) -> int:
        """Number of convolutions."""
        return sum(self.depths)

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next."""
        return cast(int, 2 ** len(self.depths))

    @property
    def pool(self) -> str:
        """What the classifier reads: cells of the last map side by side."""
        return "flat"

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the last map, behind its pooling, which leaves out what remains of a cell."""
        return size[0] // self.stride, size[1] // self.stride


class VGG(Network):
    """A VGG.

    Args:
        config: which one.
    """

    config: VGGConfig

    def __init__(self, config: VGGConfig) -> None:
        super().__init__(config)
        widths = [width for width, depth in zip(config.stage_channels, config.depths, strict=True) for _ in range(depth)]
        self.blocks = nn.ModuleList(
            ConvNorm(before, after, 3, activation="relu", norm=config.norm, bias=True)
            for before, after in zip([config.channels, *widths], widths, strict=False)
        )
        hidden = config.classifier_width
        self.hidden = nn.ModuleList([Linear(config.width * _CELLS * _CELLS, hidden), Linear(hidden, hidden)])
        self.dropout = nn.Dropout(config.dropout)
        self.head = Linear(hidden, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size, of 32 × 32 pixels at least for five stages, and classify them.

        Raises:
            UsageError: pictures of other channels, or too small.
        """
        (last,) = deque(self._maps(pixels), maxlen=1)
        return self.read_out(last.flatten(2).transpose(1, 2), (last.shape[2], last.shape[3]))

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the cells of the last map come to: 7 × 7 of them side by side through three layers."""
        cells, windows = tokens.transpose(1, 2).unflatten(2, grid), self.config.reading == "windows"
        size = (max(_CELLS, grid[0]), max(_CELLS, grid[1])) if windows else (_CELLS, _CELLS)
        if size != grid:
            cells = F.adaptive_avg_pool2d(cells, size)
        hidden = cells.flatten(1) if size == (_CELLS, _CELLS) else F.unfold(cells, _CELLS).transpose(1, 2)
        hidden = self.dropout(F.relu(self.hidden[0](hidden)))
        hidden = F.relu(self.hidden[1](hidden))
        pooled = self.dropout(hidden.mean(1) if hidden.ndim == 3 else hidden)
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    @property
    def levels(self) -> tuple[Level, ...]:
        """At the end of each stage before its pooling, and behind the last pooling."""
        widths = (*self.config.stage_channels, self.config.width)
        return tuple(Level(width, 2**place) for place, width in enumerate(widths))

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps at the ends of stages, before their poolings, and the last map; the layers behind are not computed.

        Args:
            pixels: prepared pictures of any one size.
            levels: which of `self.levels`; None for the last four, of strides 4, 8, 16 and 32 for five stages. Stages
                behind the last of them are not computed.
        """
        count = len(self.levels)
        chosen = chosen_levels(self.levels, range(max(0, count - 4), count) if levels is None else levels)
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
        config, blocks = self.config, iter(self.blocks)
        x = as_map(pixels, config.channels, config.stride)
        for depth in config.depths:
            for _ in range(depth):
                x = next(blocks)(x)
            yield x
            x = F.max_pool2d(x, 2)
        yield x


def _initialise(module: nn.Module) -> None:
    """Convolutions from a normal distribution of variance 2 / fan-out (He et al. 2015), linear layers at 0.01."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


_16 = VGGConfig()
_PLAIN = {
    "vgg11": replace(_16, depths=(1, 1, 2, 2, 2)),
    "vgg13": replace(_16, depths=(2, 2, 2, 2, 2)),
    "vgg16": _16,
    "vgg19": replace(_16, depths=(2, 2, 4, 4, 4)),
}

VARIANTS: dict[str, VGGConfig] = {
    **_PLAIN,
    **{f"{name}_bn": replace(config, norm="batch") for name, config in _PLAIN.items()},
}
"""Networks by name: `vgg16_bn` has 13 convolutions, each with batch normalisation, and 3 fully connected layers."""

PAPERS = {"vgg": "Simonyan and Zisserman 2015"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
