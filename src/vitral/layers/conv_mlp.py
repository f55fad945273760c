"""The feed-forward network that looks at a token's neighbours too, and the block it belongs to (PVTv2, SegFormer)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.block import Block
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation, Nonlinearity

__all__ = ["ConvMlp", "GridBlock"]


class ConvMlp(nn.Module):
    """Up, depthwise 3 × 3 convolution, nonlinearity, down (Wang et al. 2022, PVT v2, section 3.1, figure 2 c).

    The zeros around the map tell a token where it stands, so that networks of such layers need no positions
    (Islam et al. 2020); SegFormer (Xie et al. 2021, equation 3) calls it Mix-FFN.

    Args:
        width: channels d of a token.
        hidden: channels of the hidden layer.
        activation: the nonlinearity.
        rectified: whether a ReLU stands before the convolution, as in PVTv2 with linear attention.
        dropout: probability of dropping a channel before and after the way down in training.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Activation = "gelu",
        *,
        rectified: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.rectified = rectified
        self.up = Linear(width, hidden)
        self.neighbours = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.nonlinearity = Nonlinearity(activation)
        self.down = Linear(hidden, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        """Transform every token with its eight neighbours on the grid."""
        hidden = self.up(x)
        if self.rectified:
            hidden = F.relu(hidden)
        # A token's channels lie side by side, before and after: what the convolution gets and gives needs no copy. Of one
        # picture PyTorch sees that only where the grid is laid out first and the channels are turned to the front then.
        hidden = self.neighbours(hidden.unflatten(1, grid).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        if self.neighbours._forward_hooks:  # whoever watches the hidden layer keeps what it saw
            hidden = hidden.clone()
        return self.dropout(self.down(self.dropout(self.nonlinearity(hidden))))


class GridBlock(Block):
    """A block with norms before its branches, both of which are told the grid that the tokens lie on."""

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b n d"]:
        """Transform the tokens.

        Args:
            x: the stream of tokens.
            *context: the grid's rows and columns.
        """
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), *context)))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x), *context)))
