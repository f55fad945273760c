"""Encoder and decoder blocks whose tokens are told at every step where they stand, and what reads an answer from a query.

Carion et al. 2020, DETR, section A.3 and figure 10. A transformer for sequences adds positions to its tokens once; here
they are added anew in every attention, to what tokens ask and are found by, and never to what they tell. In the decoder a
set of queries asks a picture; what tells one query from another is its learned position.

    queries ─► self-attention ─► norm ─► cross-attention ─► norm ─► mlp ─► norm
                 ▲ positions              ▲ positions   ▲ picture
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.layers.cross import CrossAttention
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation, Mlp

__all__ = ["DecoderBlock", "EncoderBlock", "Perceptron", "initialise_xavier"]


class EncoderBlock(nn.Module):
    """Tokens of a picture attend to each other, then a feed-forward network; each followed by a norm.

    Args:
        width: channels d of a token.
        heads: number of heads.
        mlp_width: hidden channels of the feed-forward network.
        activation: its nonlinearity.
        dropout: probability of dropping attention weights, hidden channels and branches in training.
    """

    def __init__(
        self, width: int, heads: int, mlp_width: int, activation: Activation = "relu", *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = CrossAttention(width, heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, activation, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        positions: Float[Tensor, "#b n d"],
        seen: Bool[Tensor, "b 1 1 n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Transform the tokens.

        Args:
            tokens: of a picture.
            positions: where each stands.
            seen: which of them hold something; None for all.
        """
        placed = tokens + positions
        tokens = self.norm1(tokens + self.dropout(self.attention(placed, placed, tokens, seen)))
        normed: Tensor = self.norm2(tokens + self.mlp(tokens))
        return normed


class DecoderBlock(nn.Module):
    """Queries attend to each other, then to a picture, then a feed-forward network; each followed by a norm.

    Args:
        width: channels d of a query and of a token.
        heads: number of heads of either attention.
        mlp_width: hidden channels of the feed-forward network.
        activation: its nonlinearity.
        cross_attention: how queries ask the picture: called with what they ask by and the context of the block; None for
            `CrossAttention`, whose context is tokens with their positions, tokens without, and which of them hold something.
        dropout: probability of dropping attention weights, hidden channels and branches in training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        activation: Activation = "relu",
        *,
        cross_attention: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = CrossAttention(width, heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = cross_attention or CrossAttention(width, heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, activation, dropout=dropout)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self,
        queries: Float[Tensor, "b q d"],
        positions: Float[Tensor, "#b q d"],
        *context: Any,
        sees: Bool[Tensor, "#b 1 q q"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Transform the queries.

        Args:
            queries: what is known so far.
            positions: what tells one query from another.
            *context: of the attention to the picture; every block is given the same.
            sees: which queries may see which; None for all.
        """
        asking = queries + positions
        queries = self.norm1(queries + self.dropout(self.attention(asking, asking, queries, sees)))
        found = self.cross_attention(queries + positions, *context)
        queries = self.norm2(queries + self.dropout(found))
        normed: Tensor = self.norm3(queries + self.mlp(queries))
        return normed


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, as boxes are read from queries (Carion et al. 2020, section 3.2).

    Args:
        widths: channels of the input, of every hidden layer, and of the result.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """Apply the layers."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        last: Tensor = self.layers[-1](x)
        return last


@torch.no_grad()
def initialise_xavier(blocks: nn.Module) -> None:
    """Start the matrices of encoder and decoder blocks uniformly by fan-in and fan-out (Glorot and Bengio 2010).

    The projections to queries, keys and values were one matrix to DETR's authors, whose fan-out is three times the width.
    The biases of all attention start at zero.
    """
    for module in blocks.modules():
        if isinstance(module, CrossAttention):
            for part in (module.query, module.key, module.value):
                bound = (6 / (part.in_features + 3 * part.out_features)) ** 0.5
                nn.init.uniform_(part.weight, -bound, bound)
            nn.init.xavier_uniform_(module.projection.weight)
            for part in (module.query, module.key, module.value, module.projection):
                nn.init.zeros_(part.bias)
        elif isinstance(module, Mlp):
            nn.init.xavier_uniform_(module.up.weight)
            nn.init.xavier_uniform_(module.down.weight)
