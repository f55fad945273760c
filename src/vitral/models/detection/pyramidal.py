"""What detectors share that look at every place of a pyramid of maps: the maps, the anchors over them, and towers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm, FrozenBatchNorm
from vitral.layers.pyramid import FeaturePyramid, MoreLevels
from vitral.models.backbones.resnet import ResNet, ResNetConfig
from vitral.models.detection.anchors import grid_anchors
from vitral.models.detection.detector import Detector
from vitral.models.network import MapConfig, check_ranges, chosen_levels
from vitral.models.output import Level, Pyramid

__all__ = ["FROZEN_RESNET50", "PRIOR", "PyramidConfig", "PyramidDetector", "Tower", "as_rows", "small_normal"]

PRIOR = -math.log((1 - 0.01) / 0.01)
"""The logit that a class has at the start of training, a probability of 0.01: nearly all places are to say no, and would
drown the others if they had to learn it first (Lin et al. 2017, RetinaNet, section 3.3)."""

FROZEN_RESNET50 = ResNetConfig(num_classes=0, norm="frozen")
"""The usual backbone, with the norms of the classifier that it was."""

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "pyramid_width": (1, 100_000),
    "norm_eps": (0.0, 1.0),
    "num_classes": (1, 10_000_000),
}
# Pictures are filled up so that every map of the backbone is a whole number of cells.
_WHOLE = 32
_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(MapConfig):
    """What the configurations of detectors share that look at a feature pyramid.

    Attributes:
        image_size: height and width in pixels of the usual input; pictures of other sizes are taken too.
        num_classes: classes of objects; what is nothing is not counted.
        backbone: the network whose maps the pyramid is made of. Its channels are those of this configuration, and it has no
            classes of its own.
        pyramid_width: channels of the pyramid's maps.
        anchor_sides: for each map of the pyramid, the side of its anchors in pixels.
        norm_eps: what is added to the variance where a norm of the backbone is frozen. 0 in two published checkpoints.
    """

    image_size: tuple[int, int] = (800, 1333)
    num_classes: int = 90
    backbone: ResNetConfig = FROZEN_RESNET50
    pyramid_width: int = 256
    anchor_sides: tuple[int, ...] = (32, 64, 128, 256, 512)
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if len(self.backbone.depths) != 4 or self.backbone.dilated:
            raise UsageError(
                "A pyramid is made of the maps of a backbone of four stages, each half the size of the one before; "
                f"{len(self.backbone.depths)} stages came, of which {self.backbone.dilated} are dilated."
            )
        if len(self.anchor_sides) != 5 or not all(1 <= side <= 100_000 for side in self.anchor_sides):
            raise UsageError(f"anchor_sides are five, one for each map, in whole pixels; {self.anchor_sides} came.")
        plain = replace(self.backbone, channels=self.channels, num_classes=0)
        object.__setattr__(self, "backbone", plain)

    @property
    def width(self) -> int:
        """Channels of the pyramid's maps."""
        return self.pyramid_width

    @property
    def depth(self) -> int:
        """Blocks of the backbone."""
        return self.backbone.depth


class PyramidDetector(Detector):
    """A detector that looks at every place of a feature pyramid.

    Pictures are filled up with zeros to multiples of 32 pixels. What fills a batch up is looked at as the pictures are,
    through windows that reach across their edges and norms over whole maps, so that answers depend on it a little, as in
    the published networks; boxes are cut at the edges of the picture when they are read.

    Args:
        config: which one.
        first: the first of the backbone's four stages whose map the pyramid takes.
        norm: what follows the pyramid's convolutions.
        more: its coarser maps.
    """

    config: PyramidConfig

    def __init__(self, config: Any, *, first: int, norm: Literal["none", "batch"], more: MoreLevels) -> None:
        super().__init__(config)
        self.first = first
        self.backbone = ResNet(config.backbone)
        for module in self.backbone.modules():
            if isinstance(module, FrozenBatchNorm):
                module.eps = config.norm_eps
        self.neck = FeaturePyramid(config.backbone.stage_channels[first:], config.pyramid_width, norm=norm, more=more)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the backbone."""
        return self.backbone.blocks

    @property
    def levels(self) -> tuple[Level, ...]:
        """The maps of the feature pyramid, from fine to coarse."""
        count, finest = len(self.config.anchor_sides), 4 * 2**self.first
        return tuple(Level(self.config.pyramid_width, finest * 2**place) for place in range(count))

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps of the feature pyramid; nothing is detected.

        Args:
            pixels: prepared pictures of any one size; they are filled up as in `forward`.
            levels: which, counted from 0; None for all.
        """
        chosen = chosen_levels(self.levels, range(len(self.levels)) if levels is None else levels)
        maps = self._maps(_filled_up(pixels))
        return Pyramid(tuple(maps[place] for place in chosen), tuple(self.levels[place].stride for place in chosen))

    def reset_head(self, num_classes: int) -> None:
        """Put fresh, small random layers for `num_classes` classes of objects in place of the present ones.

        Raises:
            UsageError: no classes; a detector has one at least.
        """
        if num_classes < 1:
            raise UsageError(f"A detector has one class of objects or more; {num_classes} came.")
        like = next(self.neck.parameters())
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self._fresh_head()
        self.to(like.device, like.dtype)

    @abstractmethod
    def _fresh_head(self) -> None:
        """Make the layers whose size hangs on the number of classes anew."""

    @abstractmethod
    def _cell_anchors(self) -> list[Float[Tensor, "a 4"]]:
        """For each map, the anchors of a cell."""

    def _anchors(
        self, maps: Sequence[Float[Tensor, "b _ _ _"]], pixels: Float[Tensor, "b c y x"]
    ) -> tuple[Float[Tensor, "q 4"], tuple[int, ...]]:
        """The anchors of every map, xyxy in pixels, and how many each has."""
        size = (pixels.shape[2], pixels.shape[3])
        made = [
            grid_anchors(cell.to(one.device), (one.shape[2], one.shape[3]), size)
            for cell, one in zip(self._cell_anchors(), maps, strict=True)
        ]
        return torch.cat(made), tuple(map(len, made))

    def _seen(
        self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b y x"] | None
    ) -> tuple[Float[Tensor, "b c v u"], Float[Tensor, "b 2"]]:
        """The pictures filled up, and the height and width of each."""
        if mask is None:
            sizes = pixels.new_tensor([pixels.shape[2:]], dtype=torch.float32).expand(len(pixels), 2)
        else:
            seen = ~mask
            sizes = torch.stack([seen.any(2).sum(1), seen.any(1).sum(1)], dim=1).float()
            pixels = pixels.masked_fill(mask[:, None], 0.0)
        return _filled_up(pixels), sizes

    def _maps(self, pixels: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b d _ _"], ...]:
        """The maps of the feature pyramid."""
        return cast(tuple[Tensor, ...], self.neck(self.backbone.pyramid(pixels, range(self.first, 4)).maps))


def _filled_up(pixels: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c v u"]:
    """Pictures filled up on the right and below."""
    down, across = (-side % _WHOLE for side in pixels.shape[2:])
    return F.pad(pixels, (0, across, 0, down)) if down or across else pixels


def as_rows(maps: Sequence[Float[Tensor, "b _ _ _"]], width: int) -> Float[Tensor, "b q w"]:
    """What maps say of their anchors, anchor by anchor, those of a cell after each other.

    Args:
        maps: each with so many channels for every anchor of a cell.
        width: how many.
    """
    return torch.cat([one.permute(0, 2, 3, 1).reshape(len(one), -1, width) for one in maps], dim=1)


class Tower(nn.Module):
    """3 × 3 convolutions in a row, each with ReLU, the same over all maps.

    Args:
        width: channels d.
        depth: how many.
        norm: what follows each convolution: nothing, or group normalisation in 32 groups (Wu and He 2018).
        bias: whether they have a bias.
    """

    def __init__(self, width: int, depth: int, norm: Literal["none", "group"] = "none", *, bias: bool = True) -> None:
        super().__init__()
        if norm == "group" and width % _GROUPS:
            raise UsageError(f"Group normalisation has {_GROUPS} groups, into which {width} channels cannot be divided.")
        last: Any = "none" if norm == "group" else "relu"
        self.convolutions = nn.ModuleList(
            ConvNorm(width, width, 3, activation=last, norm="none", bias=bias) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for _ in range(depth)) if norm == "group" else None

    def forward(self, x: Float[Tensor, "b d y x"]) -> Float[Tensor, "b d y x"]:
        """Apply the tower to one map."""
        for place, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if self.norms is not None:
                x = F.relu(self.norms[place](x))
        return x


def small_normal(*parts: nn.Module, deviation: float = 0.01) -> None:
    """Weights of convolutions and linear layers from a narrow normal distribution, biases of zero.

    Lin et al. 2017, RetinaNet, section 4.1.
    """
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=deviation)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
