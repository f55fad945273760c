"""Where on a map a query looks, by all heads together.

Carion et al. 2020, DETR, section 4.2: "multi-head attention" of each object's embedding over the encoder's output makes maps
that the mask head begins with. They are no weights to mix values with, and there are no values: the softmax goes over all
heads and all places at once, so that a head which has found nothing is dark, where in softmax(QKᵀ)V every head's map sums to
one. For this reason it is a layer of its own, and not one of those that go through `ScaledDotProduct`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.linear import Linear

__all__ = ["JointAttentionMaps"]


class JointAttentionMaps(nn.Module):
    """One map for each query and head; those of a query sum to one together.

    Args:
        width: channels d of a query and of a cell.
        heads: number of heads h.

    Raises:
        UsageError: the channels cannot be shared among the heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"{width} channels of queries cannot be shared among {heads} heads; take a multiple.")
        self.heads = heads
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        for part in (self.query, self.key):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(
        self,
        queries: Float[Tensor, "b q d"],
        cells: Float[Tensor, "b n d"],
        seen: Bool[Tensor, "b 1 1 n"] | None = None,
    ) -> Float[Tensor, "b q h n"]:
        """The maps.

        Args:
            queries: what is looked for.
            cells: the cells of a map in reading order.
            seen: which of them may be looked at; None for all.
        """
        asking = self.query(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        asked = self.key(cells).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)
        likeness = (asking * asking.shape[-1] ** -0.5) @ asked
        if seen is not None:
            likeness = likeness.masked_fill(~seen, -torch.inf)
        likeness = likeness.transpose(1, 2)
        return likeness.flatten(2).softmax(-1).view(likeness.shape)
