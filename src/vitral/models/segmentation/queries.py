"""What the networks share whose queries ask the maps of a backbone and draw masks on them."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.layers.linear import Linear
from vitral.models.output import MaskOutput, PredictedMasks
from vitral.models.segmentation.kinds import MaskNetwork
from vitral.models.segmentation.trunk import TrunkNetwork

__all__ = ["QueryNetwork", "mask_logits"]


class QueryNetwork(TrunkNetwork, MaskNetwork):
    """A mask network on a trunk. What fills pictures up it sees as part of them, as published.

    Attributes:
        decoder: the blocks in which queries ask; a subclass makes them, and everything else.
        head: from a query to its classes and nothing.

    Args:
        config: which one.
    """

    decoder: nn.ModuleList
    head: Linear

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

    def _fresh_head(self) -> None:
        self.head = Linear(self.head.in_features, self.config.num_classes + 1).to(self.head.weight)


def mask_logits(embeddings: Float[Tensor, "b q c"], features: Float[Tensor, "b c y x"]) -> Float[Tensor, "b q y x"]:
    """The logits of masks: how well what a query looks for fits the features of each cell (MaskFormer, section 3.3)."""
    return (embeddings @ features.flatten(2)).unflatten(2, features.shape[2:])
