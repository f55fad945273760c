"""From many tokens to one vector, by asking: in several heads, or with one weight per token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.attention import ScaledDotProduct
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation, Mlp
from vitral.layers.norm import Norm, norm_layer

__all__ = ["AttentionPool", "SequencePool"]


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


class SequencePool(nn.Module):
    """The mean of the tokens, each weighted by what a linear layer makes of it (Hassani et al. 2021, SeqPool).

    The weights are softmax(tokens · g + c) over the tokens, in other words attention of one learned query, in one head, to
    the tokens as they are. It is therefore mixed where all attention is. Softmax forgets the bias c, which the
    published networks have nonetheless.

    Args:
        width: channels d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = Linear(width, 1)
        self.product = ScaledDotProduct(1.0)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Pool."""
        batch, count, _ = tokens.shape
        query = self.score.weight.expand(batch, 1, 1, -1)
        bias = self.score.bias.expand(1, 1, 1, count)
        pooled: Tensor = self.product(query, tokens.unsqueeze(1), tokens.unsqueeze(1), bias)
        return pooled[:, 0, 0]
