"""Cross-covariance attention: channels attend to each other, and tokens are what they are compared by.

El-Nouby et al. 2021, "XCiT: Cross-Covariance Image Transformers", https://arxiv.org/abs/2106.09681, section 3.2, equations
3 and 4. What mixes is a map of channels by channels, so cost grows with the number of tokens as a convolution's does:

    tokens (b n d)
        │ one projection
        ├── queries ──┐           rows of n numbers, one for each of the k = d/h channels of a head,
        ├── keys ─────┤           divided by their length, so that a product is a cosine
        └── values    │
              │   ┌───┴────────────────────────┐
              │   │ softmax(τ · Q̂ K̂ᵀ)  (b h k k) │  τ: one learned temperature per head
              │   └───┬────────────────────────┘
              └── × ──┘  (b h k n), laid out as tokens again, and projected

Over n tokens of d channels in h heads the map takes O(n · d² / h) multiplications and d²/h numbers, where attention among
tokens takes O(n² · d) and h · n².
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.attention import ScaledDotProduct
from vitral.layers.linear import Linear, unrecorded
from vitral.layers.position import Grid

__all__ = ["CrossCovarianceAttention"]

_SHORTEST = 1e-12  # a row of zeros stays one


class CrossCovarianceAttention(nn.Module):
    """Attention among the channels of each head (XCA), which takes any number of tokens.

    Its `product` is given channels in the place of tokens: queries, keys and values are (b h k n), and the map is (b h k k).

    Args:
        width: channels d of a token.
        heads: number of heads h; channels attend to those of their own head.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        dropout: probability of dropping attention weights and outputs in training.
        attention_dropout: another probability for the weights; None for the same.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.product = ScaledDotProduct(1.0, dropout if attention_dropout is None else attention_dropout)
        self.projection = Linear(width, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Float[Tensor, "b n d"], grid: Grid | None = None) -> Float[Tensor, "b n d"]:
        """Mix the channels of every token.

        Args:
            tokens: in any order; what a channel attends to does not depend on it.
            grid: rows and columns of the tokens, which are not asked for here.
        """
        batch, count, width = tokens.shape
        # One copy lays out a channel's numbers side by side, as its length and the products read them.
        rows = self.qkv(tokens).transpose(1, 2).contiguous().view(batch, 3, self.heads, width // self.heads, count)
        compared = rows[:, :2]
        shortest = max(_SHORTEST, torch.finfo(rows.dtype).tiny)
        lengths = torch.linalg.vector_norm(compared, dim=-1, keepdim=True).clamp_min(shortest)
        gains = torch.stack([self.temperature / lengths[:, 0], 1 / lengths[:, 1]], dim=1).to(rows.dtype)
        queries, keys = (compared.mul_(gains) if unrecorded(rows) else compared * gains).unbind(1)
        mixed = self.product(queries, keys, rows[:, 2])
        return self.dropout(self.projection(mixed.flatten(1, 2).transpose(1, 2)))
