"""Residual network (ResNet), with its wide relatives (Wide ResNet) and those of many paths (ResNeXt).

He et al. 2016, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385: every block adds what it
finds to what it was given, so that a hundred layers learn as willingly as ten. Zagoruyko and Komodakis 2016, "Wide Residual
Networks", https://arxiv.org/abs/1605.07146, give the middle of a block more channels; Xie et al. 2017, "Aggregated Residual
Transformations", https://arxiv.org/abs/1611.05431, divide it into groups that do not see each other.

The networks of today are version 1.5: the 3 × 3 convolution of a bottleneck steps over every second cell, where the paper
lets the 1 × 1 before it do so, which throws three of four cells away unseen (`strides_first`, the rows `…_v1`). Detectors
and segmenters take the maps at the ends of the four stages (`pyramid`), often with norms that stay as they are (`norm`) and
with the last map kept larger (`dilated`; Yu and Koltun 2016, https://arxiv.org/abs/1511.07122).

He et al. 2019, "Bag of Tricks", https://arxiv.org/abs/1812.01187, figure 2, change three small things (ResNet-D, the rows
`…d`): three convolutions of 3 × 3 begin in place of one of 7 × 7 (`stem`), and a shortcut that halves its map
averages before it projects, so that nothing is thrown away (`pooled`); the third is version 1.5.
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

__all__ = ["PAPERS", "VARIANTS", "BasicBlock", "Bottleneck", "ResNet", "ResNetConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "stem_width": (1, 100_000),
    "stage_channels": (1, 100_000),
    "groups": (1, 100_000),
    "base_width": (1, 100_000),
    "dilated": (0, 3),
    "num_classes": (0, 10_000_000),
}
_DEEPEST = 1_000


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(MapConfig):
    """Everything that tells one residual network from another.

    Attributes:
        block: two convolutions of 3 × 3 ("basic"), or one between two of 1 × 1 that narrow and widen ("bottleneck").
        stem: what comes first: a convolution of 7 × 7 ("plain"), or three of 3 × 3, the first two of half the channels
            ("deep").
        stem_width: channels behind the stem.
        stage_channels: channels at the end of each stage; every stage but the first halves height and width.
        depths: blocks of each stage.
        groups: groups of a bottleneck's 3 × 3 convolution that do not see each other's channels.
        base_width: channels of one such group, in 64ths of a quarter of the stage's channels: 64 for ResNet, 128 for Wide
            ResNet-2, 4 for ResNeXt 32×4d.
        strides_first: whether the first 1 × 1 convolution of a bottleneck takes every second cell, as published, and not
            the 3 × 3 (version 1.5).
        dilated: how many of the last stages keep the size of their map and spread their windows instead.
        norm: batch normalisation that learns, or one that stays as it is, as detectors have it.
        pooled: whether a shortcut that halves its map takes the means of 2 × 2 cells and not every second cell.
        projected: whether the first block of a stage projects its shortcut even where nothing changes its size or channels.
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    stem: Literal["plain", "deep"] = "plain"
    stem_width: int = 64
    stage_channels: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    groups: int = 1
    base_width: int = 64
    strides_first: bool = False
    dilated: int = 0
    norm: Literal["batch", "frozen"] = "batch"
    pooled: bool = False
    projected: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        stages = len(self.stage_channels)
        if not 1 <= stages <= 8 or len(self.depths) != stages:
            raise UsageError(
                f"stage_channels and depths name as many stages, from 1 to 8; {stages} and {len(self.depths)} came."
            )
        if not all(1 <= depth <= _DEEPEST for depth in self.depths):
            raise UsageError(f"Every stage has from 1 to {_DEEPEST} blocks; depths {self.depths} came.")
        if self.dilated >= stages:
            raise UsageError(f"dilated must be less than the number of stages, {stages}; {self.dilated} came.")
        if self.stem == "deep" and self.stem_width < 2:
            raise UsageError(f"A deep stem begins with half of stem_width, which must be 2 or more; {self.stem_width} came.")
        if self.block == "basic" and (self.groups, self.base_width, self.strides_first) != (1, 64, False):
            raise UsageError("groups, base_width and strides_first are for bottlenecks; blocks are basic.")
        if self.block == "bottleneck" and not all(self.narrow(stage) for stage in range(stages)):
            raise UsageError(
                f"A bottleneck of {self.stage_channels} channels and base_width {self.base_width} has no middle."
            )

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return self.stage_channels[-1]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.depths)

    @property
    def strides(self) -> tuple[int, ...]:
        """For each stage, pixels from one cell of its map to the next."""
        last = len(self.depths) - 1 - self.dilated
        return tuple(4 * 2 ** min(stage, last) for stage in range(len(self.depths)))

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next."""
        return self.strides[-1]

    def narrow(self, stage: int) -> int:
        """Channels in the middle of a stage's bottlenecks (Xie et al. 2017, table 1)."""
        return self.stage_channels[stage] // 4 * self.base_width // 64 * self.groups


class BasicBlock(nn.Module):
    """relu(x + two convolutions of 3 × 3) (He et al. 2016, figure 5, left).

    Args:
        inputs: channels c of the map.
        outputs: channels d of the result.
        config: which network's.
        stride: cells from one window to the next.
        dilations: cells from one weight of a window to the next, in the first and in the second convolution.
        project: whether the shortcut is projected even where the map keeps its size and channels.
    """

    def __init__(
        self, inputs: int, outputs: int, config: ResNetConfig, stride: int, dilations: tuple[int, int], project: bool = False
    ) -> None:
        super().__init__()
        first, second = dilations
        self.first = ConvNorm(inputs, outputs, 3, stride, dilation=first, activation="relu", norm=config.norm)
        self.shortcut = _shortcut(inputs, outputs, config, stride, project)
        self.second = ConvNorm(outputs, outputs, 3, dilation=second, activation="relu", norm=config.norm)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d i j"]:
        """Apply the block."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return cast(Tensor, self.second(self.first(x), shortcut))


class Bottleneck(nn.Module):
    """relu(x + convolutions of 1 × 1, 3 × 3 and 1 × 1) (He et al. 2016, figure 5, right).

    Args:
        inputs: channels c of the map.
        narrow: channels of the 3 × 3 convolution.
        outputs: channels d of the result.
        config: which network's.
        stride: cells from one window to the next.
        dilation: cells from one weight of the 3 × 3 window to the next.
        project: whether the shortcut is projected even where the map keeps its size and channels.
    """

    def __init__(
        self,
        inputs: int,
        narrow: int,
        outputs: int,
        config: ResNetConfig,
        stride: int,
        dilation: int,
        project: bool = False,
    ) -> None:
        super().__init__()
        norm, strides = config.norm, (stride, 1) if config.strides_first else (1, stride)
        self.first = ConvNorm(inputs, narrow, 1, strides[0], activation="relu", norm=norm)
        self.second = ConvNorm(
            narrow, narrow, 3, strides[1], groups=config.groups, dilation=dilation, activation="relu", norm=norm
        )
        self.shortcut = _shortcut(inputs, outputs, config, stride, project)
        self.third = ConvNorm(narrow, outputs, 1, activation="relu", norm=norm)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d i j"]:
        """Apply the block."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return cast(Tensor, self.third(self.second(self.first(x)), shortcut))


class _PooledConvNorm(ConvNorm):
    """A convolution of 1 × 1 over the means of 2 × 2 cells, fewer at the edge of an odd map (He et al. 2019, figure 2c)."""

    def forward(
        self, x: Float[Tensor, "b c y x"], shortcut: Float[Tensor, "b d i j"] | None = None
    ) -> Float[Tensor, "b d i j"]:
        """Apply the layer."""
        return super().forward(F.avg_pool2d(x, 2, 2, ceil_mode=True), shortcut)


def _shortcut(inputs: int, outputs: int, config: ResNetConfig, stride: int, project: bool) -> ConvNorm | None:
    """A projection where the map changes its size or channels (He et al. 2016, section 3.3, option B)."""
    if not project and stride == 1 and inputs == outputs:
        return None
    if config.pooled and stride == 2:
        return _PooledConvNorm(inputs, outputs, 1, norm=config.norm)
    return ConvNorm(inputs, outputs, 1, stride, norm=config.norm)


def _deep_stem(config: ResNetConfig) -> nn.Sequential:
    """Three convolutions that see as far as one of 7 × 7 nearly does (He et al. 2019, figure 2b)."""
    half, whole, norm = config.stem_width // 2, config.stem_width, config.norm
    return nn.Sequential(
        ConvNorm(config.channels, half, 3, 2, activation="relu", norm=norm),
        ConvNorm(half, half, 3, activation="relu", norm=norm),
        ConvNorm(half, whole, 3, activation="relu", norm=norm),
    )


class ResNet(Network):
    """A residual network.

    Args:
        config: which one.
    """

    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.stem: nn.Module = (
            _deep_stem(config)
            if config.stem == "deep"
            else ConvNorm(config.channels, config.stem_width, 7, 2, activation="relu", norm=config.norm)
        )
        self.stages = nn.ModuleList(self._stage(stage) for stage in range(len(config.depths)))
        self.head = Linear(config.width, config.num_classes) if config.num_classes else None
        _initialise(self)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The residual blocks, of all stages."""
        return tuple(block for stage in self.stages for block in cast(nn.Sequential, stage))

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""
        (last,) = deque(self._maps(pixels), maxlen=1)
        return self.read_out(last.flatten(2).transpose(1, 2), (last.shape[2], last.shape[3]))

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the cells behind the last block come to: their mean, classified."""
        pooled = tokens.mean(1)
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every cell of the last map would give, were it the whole picture's.

        Their mean are the picture's (Zhou et al. 2016, class activation maps, equation 2).

        Raises:
            UsageError: the model has no classifier.
        """
        if self.head is None:
            raise UsageError("The model has no classifier to read tokens with.")
        return self.head(tokens)

    @property
    def levels(self) -> tuple[Level, ...]:
        """One at the end of each stage."""
        return tuple(map(Level, self.config.stage_channels, self.config.strides))

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps at the ends of stages; the classifier is not computed.

        Args:
            pixels: prepared pictures of any one size.
            levels: of which stages, counted from 0; None for all. Stages behind the last of them are not computed.
        """
        chosen = chosen_levels(self.levels, range(len(self.levels)) if levels is None else levels)
        maps = tuple(x for place, x in zip(range(1 + chosen[-1]), self._maps(pixels), strict=False) if place in chosen)
        return Pyramid(maps, tuple(self.levels[place].stride for place in chosen))

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes in place of the present one; 0 removes it."""
        like = next(self.parameters())
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes) if num_classes else None
        if self.head is not None:
            self.head.to(like.device, like.dtype)

    def _maps(self, pixels: Float[Tensor, "b c y x"]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        """The maps at the ends of the stages, as they are computed."""
        x = self.stem(as_map(pixels, self.config.channels))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
            yield x

    def _stage(self, stage: int) -> nn.Sequential:
        config, strides = self.config, (4, *self.config.strides)
        channels, outputs = (config.stem_width, *config.stage_channels), config.stage_channels[stage]
        stride = strides[stage + 1] // strides[stage]
        # A stage that does not halve its map spreads its windows; its first block still sees the map of the stage before.
        usual = 4 * 2**stage
        before, after = max(1, usual // 2 // strides[stage]), usual // strides[stage + 1]
        blocks: list[nn.Module] = []
        for place in range(config.depths[stage]):
            inputs, first = (outputs, after) if place else (channels[stage], before)
            step, project = 1 if place else stride, config.projected and place == 0
            blocks.append(
                BasicBlock(inputs, outputs, config, step, (first, after), project)
                if config.block == "basic"
                else Bottleneck(inputs, config.narrow(stage), outputs, config, step, first, project)
            )
        return nn.Sequential(*blocks)


def _initialise(model: ResNet) -> None:
    """Convolutions from a normal distribution of variance 2 / fan-out (He et al. 2015); every block begins as its shortcut.

    For the latter the last norm of a block has a gain of zero (Goyal et al. 2017, section 5.1).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if model.config.norm == "batch":
        for block in model.blocks:
            last = block.second if isinstance(block, BasicBlock) else block.third
            nn.init.zeros_(cast(nn.BatchNorm2d, cast(ConvNorm, last).norm).weight)


def _d(config: ResNetConfig) -> ResNetConfig:
    """The same network with a deep stem and pooled shortcuts."""
    return replace(config, stem="deep", pooled=True)


_BASIC = ResNetConfig(block="basic", stage_channels=(64, 128, 256, 512))
_18 = replace(_BASIC, depths=(2, 2, 2, 2))
_50 = ResNetConfig()
_101 = replace(_50, depths=(3, 4, 23, 3))
_152 = replace(_50, depths=(3, 8, 36, 3))

VARIANTS: dict[str, ResNetConfig] = {
    "resnet18": _18,
    "resnet34": _BASIC,
    "resnet50": _50,
    "resnet101": _101,
    "resnet152": _152,
    "resnet50_v1": replace(_50, strides_first=True),
    "resnet101_v1": replace(_101, strides_first=True),
    "resnet152_v1": replace(_152, strides_first=True),
    "wide_resnet50_2": replace(_50, base_width=128),
    "wide_resnet101_2": replace(_101, base_width=128),
    "resnext50_32x4d": replace(_50, groups=32, base_width=4),
    "resnext101_32x8d": replace(_101, groups=32, base_width=8),
    "resnext101_64x4d": replace(_101, groups=64, base_width=4),
    "resnet18d": _d(_18),
    "resnet34d": _d(_BASIC),
    "resnet50d": _d(_50),
    "resnet101d": _d(_101),
    "resnet152d": _d(_152),
}
"""Networks by name: the number counts layers with weights. `resnext50_32x4d` has 32 groups of 4 channels and more; "d" is
ResNet-D, on which detectors are built."""

PAPERS = {
    "resnet": "He et al. 2016",
    **dict.fromkeys(("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"), "He et al. 2019"),
    "wide_resnet": "Zagoruyko and Komodakis 2016",
    "resnext": "Xie et al. 2017",
}
"""Beginning of a name → where the network was published; the longest that fits counts."""
