"""Axial attention: along the rows, then along the columns.

Ho et al. 2019, "Axial Attention in Multidimensional Transformers", https://arxiv.org/abs/1912.12180, section 3. A token
first looks along its row; then along its column, where every token has looked along a row of its own. So two steps reach
the whole grid, and no step looks at more than one line.

    ┌──────────┐      ┌──────────┐      ┌──────────┐
    │ · · · · ·│      │ · · · · ·│      │ · · ▒ · ·│
    │ · · x · ·│ ───► │ ▒ ▒ x ▒ ▒│ ───► │ · · x · ·│ ───►
    │ · · · · ·│ rows │ · · · · ·│ cols │ · · ▒ · ·│
    └──────────┘      └──────────┘      └──────────┘

With n = i · j tokens of d channels: 2nd(i + j) multiplications for the products, which is 4 n√n d on a square, and 8nd² for
the projections, twice those of global attention (2n²d + 4nd²).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.attention import SelfAttention
from vitral.layers.position import Grid

__all__ = ["AxialAttention"]


class AxialAttention(nn.Module):
    """Tokens on a grid attending along their row, and then along their column.

    Args:
        width: channels d of a token.
        heads: number of heads h.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        dropout: probability of dropping attention weights and outputs in training.
    """

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.rows = SelfAttention(width, heads, qkv_bias=qkv_bias, dropout=dropout)
        self.columns = SelfAttention(width, heads, qkv_bias=qkv_bias, dropout=dropout)

    def forward(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b n d"]:
        """Attend.

        Args:
            tokens: in reading order, n = i · j.
            grid: their rows i and columns j.
        """
        laid = tokens.unflatten(1, grid)  # b i j d
        along = self.rows(laid.flatten(0, 1)).unflatten(0, laid.shape[:2]).transpose(1, 2)  # b j i d
        down = self.columns(along.flatten(0, 1)).unflatten(0, along.shape[:2])
        return down.transpose(1, 2).flatten(1, 2)
