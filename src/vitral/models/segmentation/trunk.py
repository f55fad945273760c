"""What segmenters stand on: a backbone without its classifier, whose maps are ready to be read.

Backbones give their maps as they pass (`Network.pyramid`). Residual networks and PVTs end every stage with a norm or an
activation; the tokens of a Swin Transformer are a sum that nothing has normed, and every dense task puts a layer norm of its
own behind each of its stages (Liu et al. 2021, Swin Transformer, the authors' code for detection and segmentation). Those
norms are here, and what only a classifier reads is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias, cast

from jaxtyping import Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.norm import norm_layer
from vitral.models.backbones import swin
from vitral.models.backbones.cvt import CvT, CvTConfig
from vitral.models.backbones.pvt import PVTConfig, PVTv2
from vitral.models.backbones.resnet import ResNet, ResNetConfig
from vitral.models.backbones.swin import Swin, SwinConfig
from vitral.models.network import MapConfig, Network, chosen_levels
from vitral.models.output import Level, Pyramid
from vitral.models.segmentation.heads import normed

__all__ = ["BackboneConfig", "Trunk", "TrunkConfig", "TrunkNetwork", "shifted_swin"]

BackboneConfig: TypeAlias = ResNetConfig | SwinConfig | PVTConfig | CvTConfig
"""The hierarchies a segmenter can stand on: each makes its maps coarser from stage to stage."""

_BUILDS: dict[type, type[Network]] = {ResNetConfig: ResNet, SwinConfig: Swin, PVTConfig: PVTv2, CvTConfig: CvT}
# Whose maps are sums of branches that nothing has normed yet.
_BARE = (SwinConfig, CvTConfig)
_NORM_EPS = 1e-5


class Trunk(nn.Module):
    """A backbone without classifier, and a layer norm behind each of its maps that has none.

    Attributes:
        network: the backbone; what only its classifier reads is taken off.
        norms: for each map of a Swin Transformer or CvT a layer norm over the channels of a cell; else empty.

    Args:
        config: which backbone; it has no classes.
        levels: the maps to be read, by their places in the backbone's `levels`; None for all. The last one is among them,
            or parts would be learned that nobody reads.

    Raises:
        UsageError: levels that are not there, or do not end with the last one.
    """

    def __init__(self, config: BackboneConfig, levels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network: Any = _BUILDS[type(config)](cast(Any, replace(cast(Any, config), num_classes=0)))
        every: tuple[Level, ...] = self.network.levels
        self.places = chosen_levels(every, range(len(every)) if levels is None else levels)
        if self.places[-1] != len(every) - 1:
            raise UsageError(f"A trunk's last map is its backbone's, number {len(every) - 1}; {tuple(self.places)} came.")
        self.levels = tuple(every[place] for place in self.places)
        bare = isinstance(config, _BARE)
        if bare:
            self.network.norm = nn.Identity()
        self.norms = nn.ModuleList(norm_layer(level.channels, "layer", _NORM_EPS) for level in self.levels if bare)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks of the backbone."""
        return tuple(self.network.blocks)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of every map, from fine to coarse."""
        return tuple(level.channels for level in self.levels)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> Pyramid:
        """The maps of pictures of any one size, from fine to coarse."""
        found: Pyramid = self.network.pyramid(pixels, self.places)
        if not len(self.norms):
            return found
        return Pyramid(tuple(map(normed, found.maps, self.norms)), found.strides)

    def tables_at(self, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """The backbone's parameters that hang on the grid, carried to another one, by their names in the trunk."""
        return {f"network.{name}": table for name, table in self.network.tables_at(grid).items()}


@dataclass(frozen=True, kw_only=True)
class TrunkConfig(MapConfig):
    """What the configurations share of segmenters that read the maps of a backbone.

    Attributes:
        image_size: height and width in pixels the network is made for; pictures of other sizes are taken too.
        num_classes: classes of pixels.
        backbone: the network whose maps are read. Its channels and its size of pictures are always the segmenter's, and it
            has no classes.
    """

    image_size: tuple[int, int] = (512, 512)
    num_classes: int = 150
    backbone: BackboneConfig = field(default_factory=ResNetConfig)

    def __post_init__(self) -> None:
        backbone: Any = self.backbone
        backbone = replace(backbone, image_size=self.image_size, channels=self.channels, num_classes=0)
        object.__setattr__(self, "backbone", backbone)

    @property
    def width(self) -> int:
        """Channels of the backbone's last map, unless a segmenter's own are told."""
        return self.backbone.width

    @property
    def stride(self) -> int:
        """Pixels from one cell of the backbone's last map to the next."""
        return self.backbone.stride

    @property
    def depth(self) -> int:
        """Blocks of the backbone."""
        return self.backbone.depth

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the backbone's last map of a picture of some (height, width)."""
        return self.backbone.grid_of(size)


class TrunkNetwork(Network):
    """A network that reads the maps of a backbone. What it makes of them, maps or masks, its second base says.

    Attributes:
        trunk: the backbone.

    Args:
        config: which one.
        levels: the backbone's maps that are read; None for all.
    """

    config: TrunkConfig
    backbone_name: ClassVar[str] = "trunk.network"

    def __init__(self, config: TrunkConfig, levels: Sequence[int] | None = None) -> None:
        super().__init__(config)
        self.trunk = Trunk(config.backbone, levels)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the backbone."""
        return self.trunk.blocks

    @property
    def levels(self) -> tuple[Level, ...]:
        """The maps that are read, from fine to coarse."""
        return self.trunk.levels

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps that are read, normed; no classes are told.

        Args:
            pixels: prepared pictures of any one size.
            levels: which, counted from 0; None for all.
        """
        chosen = chosen_levels(self.levels, range(len(self.levels)) if levels is None else levels)
        found: Pyramid = self.trunk(pixels)
        return Pyramid(tuple(found.maps[place] for place in chosen), tuple(found.strides[place] for place in chosen))

    def tables_at(self, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """The backbone's parameters that hang on the grid, carried to another one, by name."""
        return {f"trunk.{name}": table for name, table in self.trunk.tables_at(grid).items()}


def shifted_swin(name: str, drop_path: float | None = None) -> SwinConfig:
    """A Swin Transformer as segmenters were trained with it: its windows shift on maps of all sizes.

    Args:
        name: in the catalogue of backbones.
        drop_path: another probability of dropping a branch than that of its training as a classifier.
    """
    config = swin.VARIANTS[name]
    return replace(config, shift_rule="always", drop_path=config.drop_path if drop_path is None else drop_path)
