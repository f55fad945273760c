"""What the networks share whose queries ask the maps of a backbone and draw masks on them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.linear import Linear
from vitral.models.network import chosen_levels
from vitral.models.output import Level, MaskOutput, PredictedMasks, Pyramid
from vitral.models.segmentation.kinds import MaskNetwork
from vitral.models.segmentation.trunk import Trunk, TrunkConfig

__all__ = ["QueryNetwork", "mask_logits"]


class QueryNetwork(MaskNetwork):
    """A mask network on a trunk. What fills pictures up it sees as part of them, as published.

    Attributes:
        trunk: the backbone.
        decoder: the blocks in which queries ask; a subclass makes them, and everything else.
        head: from a query to its classes and nothing.

    Args:
        config: which one.
    """

    config: TrunkConfig
    backbone_name: ClassVar[str] = "trunk.network"
    decoder: nn.ModuleList
    head: Linear

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__(config)
        self.trunk = Trunk(config.backbone)

    @abstractmethod
    def told(self, pixels: Float[Tensor, "b c y x"], *, every: bool) -> tuple[list[PredictedMasks], Float[Tensor, "b q d"]]:
        """What queries say, and what they are in the end.

        Args:
            pixels: prepared pictures of any one size.
            every: whether all that they say on the way is wanted, or only what they say in the end.
        """

    @property
    def canvas(self) -> tuple[int, int] | None:
        """(height, width) to which masks are brought before anything is decided from them; None: as they are."""
        return None

    def forward(self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b y x"] | None = None) -> MaskOutput:
        """Classes and masks of queries; see `MaskNetwork`. What fills pictures up is seen as part of them."""
        (*auxiliary, last), queries = self.told(pixels, every=self.training)
        return MaskOutput(last.logits, last.masks, queries, tuple(auxiliary), canvas=self.canvas)

    def layer_outputs(self, pixels: Float[Tensor, "b c y x"]) -> tuple[PredictedMasks, ...]:
        """What queries say on the way, and in the end, to look at how masks come about.

        Args:
            pixels: prepared pictures of any one size.
        """
        return tuple(self.told(pixels, every=True)[0])

    @property
    def levels(self) -> tuple[Level, ...]:
        """The maps of the backbone, from fine to coarse."""
        return self.trunk.levels

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps of the backbone, normed; no query asks.

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

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes, and nothing, in place of the present one.

        Raises:
            UsageError: no classes.
        """
        if num_classes < 1:
            raise UsageError(f"A segmenter has one class or more; {num_classes} came.")
        like = self.head.weight
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.head.in_features, num_classes + 1).to(like.device, like.dtype)


def mask_logits(embeddings: Float[Tensor, "b q c"], features: Float[Tensor, "b c y x"]) -> Float[Tensor, "b q y x"]:
    """The logits of masks: how well what a query looks for fits the features of each cell (MaskFormer, section 3.3)."""
    return (embeddings @ features.flatten(2)).unflatten(2, features.shape[2:])
