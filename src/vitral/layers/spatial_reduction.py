"""Attention whose keys and values are read from a smaller map (PVT).

Wang et al. 2021, "Pyramid Vision Transformer", https://arxiv.org/abs/2102.12122, section 3.3, equations 2 to 4, and, with
the mean in place of the convolution, Wang et al. 2022, "PVT v2", https://arxiv.org/abs/2106.13797, section 3.2.

    tokens (n d) ─┬──────────────────────────────────────► queries (n d) ─────────────┐
                  │                                                                   ├─► softmax(QKᵀ)V ─► projection
                  └─► map (d i j) ─► r × r, stride r ─► norm ─► keys, values (n/r² d) ┘

    linear:           map (d i j) ─► mean to 7 × 7 ─► 1 × 1 ─► norm ─► GELU ─► keys, values (49 d)

With n tokens of d channels the product costs O(n²/r² · d), and O(n · 49 · d) where the map is brought to 7 × 7: linear in n.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.attention import ScaledDotProduct
from vitral.layers.linear import Linear

__all__ = ["SpatialReductionAttention"]

_POOLED = 7


class SpatialReductionAttention(nn.Module):
    """Tokens of a map attending to a smaller one.

    A remainder of less than r rows or columns is left out of the smaller map, as its convolution does; a map smaller than
    one window is filled up with zeros.

    Args:
        width: channels d of a token.
        heads: number of heads h.
        reduction: side r of the windows that make one key each; 1 for the attention of ViT.
        linear: whether keys come from the mean over 7 × 7 regions instead, for which `reduction` does not count.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        eps: epsilon of the norm before keys and values.
        dropout: probability of dropping outputs in training.
        attention_dropout: probability of dropping attention weights in training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        reduction: int = 1,
        *,
        linear: bool = False,
        qkv_bias: bool = True,
        eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.linear, self.reduction = heads, linear, 1 if linear else reduction
        self.query = Linear(width, width, bias=qkv_bias)
        reduces = linear or reduction > 1
        self.reduce = nn.Conv2d(width, width, self.reduction, self.reduction) if reduces else None
        self.norm = nn.LayerNorm(width, eps=eps) if reduces else None
        self.key_value = Linear(width, 2 * width, bias=qkv_bias)
        self.product = ScaledDotProduct((width // heads) ** -0.5, attention_dropout)
        self.projection = Linear(width, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        """Attend.

        Args:
            tokens: the cells of a map in reading order.
            grid: its rows and columns.
        """
        queries = self.query(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        seen = self._reduced(tokens, grid)
        keys, values = self.key_value(seen).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.product(queries, keys, values, None)
        return self.dropout(self.projection(mixed.transpose(1, 2).flatten(2)))

    def _reduced(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b m d"]:
        """The tokens that keys and values are made of."""
        if self.reduce is None or self.norm is None:
            return tokens
        cells = tokens.unflatten(1, grid).permute(0, 3, 1, 2)
        if self.linear:
            cells = F.adaptive_avg_pool2d(cells, _POOLED)
        elif min(grid) < self.reduction:
            cells = F.pad(cells, (0, max(self.reduction - grid[1], 0), 0, max(self.reduction - grid[0], 0)))
        seen: Tensor = self.norm(self.reduce(cells).flatten(2).transpose(1, 2))
        return F.gelu(seen) if self.linear else seen
