"""Tokens from windows that overlap, at the beginning of a stage of a hierarchy."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["OverlappingEmbedding"]


class OverlappingEmbedding(nn.Module):
    """A strided convolution over a map, and a norm (Wang et al. 2022, PVT v2, section 3.1; Xie et al. 2021, SegFormer).

    Borders are padded by half a window, so that a stride s makes ⌈n / s⌉ of n rows.

    Args:
        inputs: channels c of the map.
        width: channels d of a token.
        kernel: side of the window, odd.
        stride: cells from one window to the next.
        eps: the norm's epsilon.
    """

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
        """Tokens in reading order and their grid (rows i, columns j)."""
        x = self.projection(x)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])
