"""From many tokens to one vector, by asking."""

from __future__ import annotations

import torch
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
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.query_projection = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.product = ScaledDotProduct((width // heads) ** -0.5)
        self.projection = Linear(width, width)
        self.norm = norm_layer(width, norm, eps)
        self.mlp = Mlp(width, hidden, activation)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Pool."""
        asking = self.query_projection(self.query).expand(tokens.shape[0], -1, -1)
        queries = asking.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = self.key_value(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.projection(self.product(queries, keys, values, None).transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
