"""Multi-head attention: the one place where softmax(QKᵀ)V is computed.

Vaswani et al. 2017, "Attention Is All You Need", section 3.2, equation 1. Every other kind of attention in the house
(windowed, cross, causal, divided, …) prepares queries, keys, values and a bias, and hands them to `ScaledDotProduct`.
That module is the seam for looking inside: it receives everything the attention map is made of, so whoever wants
the map can watch its inputs without `forward` knowing, and have it computed by `weights`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.layers.linear import Linear
from vitral.layers.norm import Norm, norm_layer
from vitral.layers.position import Rotation, rotate

__all__ = ["Rearranging", "ScaledDotProduct", "SelfAttention"]


@runtime_checkable
class Rearranging(Protocol):
    """An attention that lays its tokens out anew before they are mixed: in windows, along lines, …

    The product it hands them to sees w sequences of s tokens where there were b pictures of n; whoever looks inside asks
    the attention for the map that this amounts to. It is given the grid as an argument of its `forward`.
    """

    def whole_map(self, weights: Float[Tensor, "w h s s"], grid: tuple[int, int]) -> Float[Tensor, "b h n n"]:
        """The map between all tokens of a grid, in reading order; pairs that do not see each other have exactly 0.

        Args:
            weights: what the product mixed with.
            grid: rows and columns of the tokens, n = i · j.
        """


class ScaledDotProduct(nn.Module):
    """softmax(Q Kᵀ · scale + bias) V by PyTorch's fused kernels, whichever fits the device and the dtype.

    Args:
        scale: what the products of queries and keys are multiplied with, 1/√k in the paper.
        dropout: probability with which an attention weight is dropped in training.
    """

    def __init__(self, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout

    def forward(
        self,
        queries: Float[Tensor, "b h n k"],
        keys: Float[Tensor, "b h m k"],
        values: Float[Tensor, "b h m v"],
        bias: Float[Tensor, "#b #h #n m"] | Bool[Tensor, "#b #h #n m"] | None = None,
    ) -> Float[Tensor, "b h n v"]:
        """Mix the values.

        Args:
            queries: what the tokens ask for.
            keys: what the tokens are found by.
            values: what they tell.
            bias: numbers added to the scaled products (−∞ where a token must not be seen), or whether a token may be seen.
        """
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0, scale=self.scale
        )

    def weights(
        self,
        queries: Float[Tensor, "b h n k"],
        keys: Float[Tensor, "b h m k"],
        bias: Float[Tensor, "#b #h #n m"] | Bool[Tensor, "#b #h #n m"] | None = None,
    ) -> Float[Tensor, "b h n m"]:
        """The attention map that `forward` mixes with, before dropout, in single precision at least.

        Rows sum to one; the row of a token that may see nothing is zero, as in the fused kernels.
        """
        precise = torch.promote_types(queries.dtype, torch.float32)
        with torch.autocast(queries.device.type, enabled=False):
            logits = (queries.to(precise) * self.scale) @ keys.to(precise).transpose(-2, -1)
        masks = bias is not None and bias.dtype == torch.bool
        if torch.is_grad_enabled():
            if bias is None:
                return logits.softmax(-1)
            logits = logits.masked_fill(~bias, -torch.inf) if masks else logits + bias
            sees_none = (logits == -torch.inf).all(-1, keepdim=True)  # where softmax, and its gradient, would be NaN
            return logits.masked_fill(sees_none, 0.0).softmax(-1).masked_fill(sees_none, 0.0)
        # In place, as the map is the largest tensor of a network. Softmax does not change when a row is shifted.
        if bias is not None:
            logits = logits.masked_fill_(~bias, -torch.inf) if masks else logits.add_(bias)
        highest = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(precise).min)
        weights = logits.sub_(highest).exp_()
        return weights.div_(weights.sum(-1, keepdim=True).clamp_(min=torch.finfo(precise).tiny))


class SelfAttention(nn.Module):
    """Tokens attending to each other, with one fused projection for queries, keys and values.

    Args:
        width: channels d of a token.
        heads: number of heads h.
        qkv_bias: whether the projections have a bias.
        key_bias: whether the keys' projection has one too. A bias on the keys adds the same number to a whole row of
            the attention map and softmax forgets it; BEiT and DINOv3 therefore have none.
        qk_norm: normalisation of queries and keys over a head's channels (Dehghani et al. 2023, ViT-22B, section 2),
            with the norm's kind and epsilon.
        dropout: probability of dropping attention weights and outputs in training.
        attention_dropout: another probability for the weights; None for the same.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        key_bias: bool = True,
        qk_norm: tuple[Norm, float] | None = None,
        dropout: float = 0.0,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__()
        head_width = width // heads
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=qkv_bias and key_bias)
        if qkv_bias and not key_bias:
            self.query_bias = nn.Parameter(torch.zeros(width))
            self.value_bias = nn.Parameter(torch.zeros(width))
        self.keyless_bias = qkv_bias and not key_bias
        self.query_norm = norm_layer(head_width, *qk_norm) if qk_norm else nn.Identity()
        self.key_norm = norm_layer(head_width, *qk_norm) if qk_norm else nn.Identity()
        self.product = ScaledDotProduct(head_width**-0.5, dropout if attention_dropout is None else attention_dropout)
        self.projection = Linear(width, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        bias: Float[Tensor, "#b #h #n n"] | Bool[Tensor, "#b #h #n n"] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Attend; for `bias` see `ScaledDotProduct`; `rotation` turns the patches' queries and keys."""
        qkv = self.qkv(tokens)
        if self.keyless_bias:
            qkv = qkv + torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        batch, count, _ = tokens.shape
        queries, keys, values = qkv.view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        mixed = self.product(queries, keys, values, bias)
        return self.dropout(self.projection(mixed.transpose(1, 2).reshape(batch, count, -1)))
