"""From many tokens to one vector, by asking."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.attention import ScaledDotProduct
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation, Mlp
from vitral.layers.norm import Norm, norm_layer

__all__ = ["AttentionPool"]


class AttentionPool(nn.Module):
    """A learned query attends over the tokens (Zhai et al. 2022, "Scaling Vision Transformers", section 3.2, MAP head).

    Args:
        width: channels d.
        heads: number of heads.
        hidden: channels of the feed-forward network that follows.
        activation: its nonlinearity.
        norm: kind of the normalisation before the feed-forward network.
        eps: the normalisation's epsilon.
        qkv_bias: whether query, key and value projections have a bias.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        activation: Activation = "gelu",
        *,
        norm: Norm = "layer",
        eps: float = 1e-6,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.product = ScaledDotProduct((width // heads) ** -0.5)
        self.projection = Linear(width, width)
        self.norm = norm_layer(width, norm, eps)
        self.mlp = Mlp(width, hidden, activation)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Pool."""
        width = self.query.shape[-1]
        bias = self.qkv.bias
        query = F.linear(self.query, self.qkv.weight[:width], None if bias is None else bias[:width])
        keys_values = F.linear(tokens, self.qkv.weight[width:], None if bias is None else bias[width:])
        query = query.expand(tokens.shape[0], -1, -1).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = keys_values.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.projection(self.product(query, keys, values).transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
