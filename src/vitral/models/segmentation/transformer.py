"""What segmenters share that stand on a plain vision transformer: how it is fitted to them, and where it lies within."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.network import MapConfig
from vitral.models.segmentation.kinds import MapNetwork

__all__ = ["TransformerConfig", "TransformerNetwork"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(MapConfig):
    """What the configurations share of segmenters that read the tokens of a vision transformer.

    Attributes:
        backbone: the vision transformer. Its channels and size of pictures are always the segmenter's, and it has no
            classes.
    """

    backbone: ViTConfig

    def _fit_backbone(self, **others: Any) -> None:
        """Make the backbone what the segmenter needs.

        Args:
            others: further fields that a segmenter settles.

        Raises:
            UsageError: patches that are no squares.
        """
        high, wide = self.backbone.patch_size
        if high != wide:
            name = type(self).__name__.removesuffix("Config")
            raise UsageError(f"A {name}'s patches are square; patches of {high} × {wide} pixels came.")
        backbone = replace(
            self.backbone,
            image_size=(self.grid[0] * high, self.grid[1] * high),  # what pictures are filled up to
            channels=self.channels,
            num_classes=0,
            distillation_head=False,
            pool_norm=False,
            representation=None,
            pool="class" if self.backbone.class_token else "mean",
            **others,
        )
        object.__setattr__(self, "backbone", backbone)

    @property
    def stride(self) -> int:
        """Pixels from one token to the next."""
        return self.backbone.patch_size[0]

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.backbone.width

    @property
    def depth(self) -> int:
        """Number of blocks of the vision transformer."""
        return self.backbone.depth

    @property
    def prefix(self) -> int:
        """Tokens before the patches in the vision transformer."""
        return self.backbone.prefix

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """What they are called."""
        return self.backbone.prefix_names


class TransformerNetwork(MapNetwork):
    """A segmenter that reads the tokens of a vision transformer.

    Attributes:
        backbone: the vision transformer; a subclass makes it.
    """

    backbone: ViT

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the vision transformer."""
        return tuple(self.backbone.blocks)

    def tables_at(self, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """The tables of positions, carried to another grid, by name."""
        return {f"backbone.{name}": table for name, table in self.backbone.tables_at(grid).items()}
