"""GoogLeNet, also called Inception v1: nine modules, each looking through windows of several sizes at once.

Szegedy et al. 2015, "Going Deeper with Convolutions", https://arxiv.org/abs/1409.4842, table 1, as torchvision builds it and
published its weights. They differ from the paper in three things: batch normalisation stands behind every convolution and no
local responses are normalised; the branch that the paper gives windows of 5 × 5 has 3 × 3 (`wide_window`); and the network
itself brings pictures from ImageNet's mean and deviation to [−1, 1] (`rescale`), as its weights were trained so elsewhere.

In training two more classifiers read the maps behind the fourth and the seventh module (the paper's figure 3), so that
learning reaches the lower layers: their logits are the output's `auxiliary`. In evaluation they are not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm, as_map
from vitral.layers.linear import Linear
from vitral.models.network import MapConfig, Network, check_ranges, chosen_levels
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "Auxiliary", "GoogLeNet", "GoogLeNetConfig", "Inception"]

_NORM_EPS = 1e-3
_SMALLEST = 15
# Pooling follows these modules. Of the maps in the order they are computed, those of two convolutions first, auxiliary
# classifiers read two, and five are a pyramid's.
_ENDS, _READ, _LEVELS = (1, 6), (4, 7), (0, 1, 3, 8, 10)
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "stem_channels": (1, 100_000),
    "auxiliary_width": (1, 1_000_000),
    "num_classes": (0, 10_000_000),
    "dropout": (0.0, 0.999),
    "auxiliary_dropout": (0.0, 0.999),
}
# Of each module: channels of the 1 × 1 branch, of the 3 × 3 branch before and behind its window, of the 5 × 5 branch
# likewise, and behind the pooling (Szegedy et al. 2015, table 1).
_TABLE = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


@dataclass(frozen=True, kw_only=True)
class GoogLeNetConfig(MapConfig):
    """Everything that tells one GoogLeNet from another.

    Attributes:
        stem_channels: channels behind each of the three convolutions before the first module.
        modules: of each of the nine modules the channels of its branches: 1 × 1; 3 × 3 narrowed and behind; 5 × 5 narrowed
            and behind; behind the pooling.
        wide_window: side of the window in the branch called 5 × 5: 3, as published weights have it, or 5, as in the paper.
        auxiliary: whether two more classifiers help the training.
        auxiliary_width: their hidden channels.
        rescale: whether pictures come with ImageNet's mean and deviation and are brought to [−1, 1] within.
        dropout: probability of dropping a channel before the classifier in training.
        auxiliary_dropout: the same before the auxiliary ones.
    """

    stem_channels: tuple[int, ...] = (64, 64, 192)
    modules: tuple[tuple[int, int, int, int, int, int], ...] = _TABLE
    wide_window: Literal["3", "5"] = "3"
    auxiliary: bool = False
    auxiliary_width: int = 1024
    rescale: bool = False
    dropout: float = 0.2
    auxiliary_dropout: float = 0.7

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if len(self.stem_channels) != 3 or len(self.modules) != len(_TABLE):
            raise UsageError(
                f"GoogLeNet has 3 convolutions and {len(_TABLE)} modules; {len(self.stem_channels)} and "
                f"{len(self.modules)} came."
            )
        if not all(1 <= width <= 100_000 for module in self.modules for width in module):
            raise UsageError(f"Branches have from 1 to 100000 channels; modules {self.modules} came.")
        if self.rescale and self.channels != 3:
            raise UsageError(f"rescale is for pictures of 3 channels; channels is {self.channels}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels behind each module."""
        return tuple(one + three + five + pooled for one, _, three, _, five, pooled in self.modules)

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Number of modules."""
        return len(self.modules)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the last map; the first and the last halving round up, three between them down."""
        rows, columns = (-(-(-(-side // 2) // 8) // 2) for side in size)
        return rows, columns


class Inception(nn.Module):
    """Four branches side by side: 1 × 1, 3 × 3, 5 × 5, and pooling (Szegedy et al. 2015, figure 2b).

    Args:
        inputs: channels c of the map.
        channels: of the branches, as in `GoogLeNetConfig.modules`.
        window: side of the third branch's window.
    """

    def __init__(self, inputs: int, channels: tuple[int, int, int, int, int, int], window: int) -> None:
        super().__init__()
        one, narrow_three, three, narrow_five, five, pooled = channels
        self.one = _conv(inputs, one, 1)
        self.three = nn.Sequential(_conv(inputs, narrow_three, 1), _conv(narrow_three, three, 3))
        self.five = nn.Sequential(_conv(inputs, narrow_five, 1), _conv(narrow_five, five, window))
        self.pooled = _conv(inputs, pooled, 1)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d y x"]:
        """Apply the module."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(F.max_pool2d(x, 3, 1, 1))], 1)


class Auxiliary(nn.Module):
    """A classifier of a map from within (Szegedy et al. 2015, section 5).

    Args:
        inputs: channels c of the map.
        hidden: channels of the fully connected layer.
        num_classes: classes.
        dropout: probability of dropping one of these channels in training.
    """

    def __init__(self, inputs: int, hidden: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = _conv(inputs, 128, 1)
        self.hidden = Linear(128 * 4 * 4, hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = Linear(hidden, num_classes)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k"]:
        """Classify the map, averaged to 4 × 4 cells."""
        cells = self.conv(F.adaptive_avg_pool2d(x, 4))
        return cast(Tensor, self.head(self.dropout(F.relu(self.hidden(cells.flatten(1))))))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> ConvNorm:
    return ConvNorm(inputs, outputs, kernel, stride, activation="relu", eps=_NORM_EPS)


class GoogLeNet(Network):
    """GoogLeNet.

    Args:
        config: which one.
    """

    config: GoogLeNetConfig

    def __init__(self, config: GoogLeNetConfig) -> None:
        super().__init__(config)
        first, second, third = config.stem_channels
        self.stem = nn.ModuleList([_conv(config.channels, first, 7, 2), _conv(first, second, 1), _conv(second, third, 3)])
        inputs = (third, *config.widths)
        self.blocks = nn.ModuleList(
            Inception(before, channels, int(config.wide_window))
            for before, channels in zip(inputs, config.modules, strict=False)
        )
        # The auxiliary classifiers read from within, but learn like the one at the end, and stand with it.
        self.auxiliary = self._auxiliary()
        self.dropout = nn.Dropout(config.dropout)
        self.head = Linear(config.width, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size, of 15 × 15 pixels at least, and classify them.

        Raises:
            UsageError: pictures of other channels, or too small.
        """
        helped = len(self.auxiliary) > 0 and self.training
        read = []
        for place, last in enumerate(self._maps(pixels)):
            if helped and place in _READ:
                read.append(self.auxiliary[_READ.index(place)](last))
        output = self.read_out(last.flatten(2).transpose(1, 2), (last.shape[2], last.shape[3]))
        return output._replace(auxiliary=tuple(read))

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the cells behind the last module come to: their mean, classified."""
        pooled = self.dropout(tokens.mean(1))
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every cell of the last map would give, were it the whole picture's.

        Raises:
            UsageError: the model has no classifier.
        """
        if self.head is None:
            raise UsageError("The model has no classifier to read tokens with.")
        return self.head(tokens)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Before each of the four poolings, and at the end."""
        widths = self.config.widths
        channels = (self.config.stem_channels[0], self.config.stem_channels[2], widths[1], widths[6], widths[8])
        return tuple(Level(width, 2 * 2**place) for place, width in enumerate(channels))

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps before the poolings and the last map; the classifier is not computed.

        Args:
            pixels: prepared pictures of any one size, of 15 × 15 pixels at least.
            levels: which of `self.levels`; None for the last four, of strides 4, 8, 16 and 32.
        """
        chosen = chosen_levels(self.levels, range(1, 5) if levels is None else levels)
        places = [_LEVELS[level] for level in chosen]
        maps = tuple(x for place, x in zip(range(1 + places[-1]), self._maps(pixels), strict=False) if place in places)
        return Pyramid(maps, tuple(self.levels[level].stride for level in chosen))

    def reset_head(self, num_classes: int) -> None:
        """Put fresh, small random last layers for `num_classes` classes in place of all present ones; 0 removes them."""
        like = cast(ConvNorm, self.stem[0]).conv.weight
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes) if num_classes else None
        fresh: list[nn.Module] = [] if self.head is None else [self.head]
        if len(self.auxiliary) and num_classes:
            for classifier in self.auxiliary:
                classifier.head = Linear(self.config.auxiliary_width, num_classes)
                fresh.append(classifier.head)
        else:
            self.auxiliary = self._auxiliary().train(self.training)
            fresh.append(self.auxiliary)
        for module in fresh:
            module.apply(_initialise).to(like.device, like.dtype)

    def _maps(self, pixels: Float[Tensor, "b c y x"]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        """The maps behind the first and the third convolution and behind each module, as they are computed."""
        x = as_map(pixels, self.config.channels, _SMALLEST)
        if self.config.rescale:
            x = _rescaled(x)
        x = self.stem[0](x)
        yield x
        x = self.stem[2](self.stem[1](_halved(x)))
        yield x
        x = _halved(x)
        for place, block in enumerate(self.blocks):
            x = block(x)
            yield x
            if place in _ENDS:
                x = _halved(x, 3 if place == _ENDS[0] else 2)

    def _auxiliary(self) -> nn.ModuleList:
        config = self.config
        classes = config.num_classes if config.auxiliary else 0
        widths = [config.widths[place - 2] for place in _READ] if classes else []
        return nn.ModuleList(Auxiliary(width, config.auxiliary_width, classes, config.auxiliary_dropout) for width in widths)


def _halved(x: Float[Tensor, "b c y x"], window: int = 3) -> Float[Tensor, "b c i j"]:
    """The greatest of every second window, none of which begins beyond the border."""
    return F.max_pool2d(x, window, 2, ceil_mode=True)


def _rescaled(x: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 y x"]:
    """Pictures of ImageNet's mean and deviation as values in [−1, 1]."""
    mean, std, middle, half = (
        x.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD)
    )
    return x * (std / half) + (mean - middle) / half


def _initialise(module: nn.Module) -> None:
    """Weights from a normal distribution of deviation 0.01, cut at 2, as torchvision begins."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01, a=-2, b=2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


VARIANTS: dict[str, GoogLeNetConfig] = {"googlenet": GoogLeNetConfig()}
"""Networks by name."""

PAPERS = {"googlenet": "Szegedy et al. 2015"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
