"""The transformer block: attention and a feed-forward network, each with a norm and a residual connection."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.norm import LayerScale

__all__ = ["Block", "DropPath", "NormPlacement"]

NormPlacement = Literal["pre", "post", "res_post", "between"]
"""Where a branch f is normalised: x + f(norm x) in ViT, norm(x + f x) in the first transformer, x + norm(f x) in Swin v2.

In compact transformers the first norm stands as in ViT, and the second between the branches, on the stream itself:
y = norm(x + attention(norm x)), then y + mlp(y).
"""


class DropPath(nn.Module):
    """Drop a whole branch for a random part of the batch (stochastic depth, Huang et al. 2016), in training only.

    Args:
        probability: of dropping; what is kept is scaled up so that the expectation stays.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Zero the branch of some samples."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        mask = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) < keep
        return x * mask.to(x.dtype) / keep


class Block(nn.Module):
    """Attention over tokens, then a feed-forward network over channels.

    Args:
        attention: takes tokens and what else it is given, gives tokens.
        mlp: takes tokens, gives tokens.
        norms: the two normalisations.
        scales: the two LayerScale gains, or None.
        placement: where the norms stand.
        drop_path: probability of dropping either branch in training.
    """

    def __init__(
        self,
        attention: nn.Module,
        mlp: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        *,
        scales: tuple[LayerScale, LayerScale] | None = None,
        placement: NormPlacement = "pre",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.placement = placement
        self.norm1, self.norm2 = norms
        self.attention, self.mlp = attention, mlp
        self.scale1: nn.Module = scales[0] if scales else nn.Identity()
        self.scale2: nn.Module = scales[1] if scales else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b n d"]:
        """Transform the tokens.

        Args:
            x: the stream of tokens.
            *context: whatever the attention wants to know beside them: biases, a rotation, the grid they lie on.
        """
        if self.placement == "pre":
            x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), *context)))
            return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        if self.placement == "post":
            x = self.norm1(x + self.drop_path(self.scale1(self.attention(x, *context))))
            return self.norm2(x + self.drop_path(self.scale2(self.mlp(x))))
        if self.placement == "between":
            x = self.norm2(x + self.drop_path(self.scale1(self.attention(self.norm1(x), *context))))
            return x + self.drop_path(self.scale2(self.mlp(x)))
        x = x + self.drop_path(self.scale1(self.norm1(self.attention(x, *context))))
        return x + self.drop_path(self.scale2(self.norm2(self.mlp(x))))
