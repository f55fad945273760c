"""CBAM: first which channels of a map count, then which places.

Woo et al. 2018, "CBAM: Convolutional Block Attention Module", https://arxiv.org/abs/1807.06521, section 3.

    map (c i j) ─┬──────────────────── × ─┬───────────────────────────── × ──► (c i j)
                 │                     ▲  │                              ▲
                 ├─► mean ─┐           │  ├─► mean over channels ─┐      │
                 │         ├─► mlp ─► + ─► σ                      ├─► 7×7 ─► norm ─► σ
                 └─► max ──┘  (r)         └─► max over channels ──┘ (1 i j)

With n = i · j cells and c channels: about 6nc multiplications, additions and comparisons, 4rc for the channels' weights, and
98n for the convolution over the places: linear in the cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["CBAM", "ChannelAttention", "SpatialAttention"]


class ChannelAttention(nn.Module):
    """Weigh every channel by its mean and its greatest value (equation 2).

    Args:
        channels: channels c of the map.
        reduced: channels r of the bottleneck, c / 16 in the paper.
    """

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1, bias=False)
        self.expand = nn.Conv2d(reduced, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """Weigh the channels."""
        squeezed = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        mean, highest = (self.expand(F.relu(self.reduce(one))) for one in squeezed)
        return x * (mean + highest).sigmoid()


class SpatialAttention(nn.Module):
    """Weigh every place by the mean and the greatest value of its channels and of those around it (equation 3).

    A batch norm follows the convolution, as in the authors' code; the paper does not mention it.

    Args:
        kernel: side of the window of the convolution, odd.
    """

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """Weigh the places."""
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * self.norm(self.convolution(seen)).sigmoid()


class CBAM(nn.Module):
    """Channel attention, then spatial attention, in the order that did best (section 3.2 of the paper).

    Args:
        channels: channels c of the map.
        reduced: channels r of the bottleneck; None for c / 16, at least one.
        kernel: side of the window that looks at places, odd.
    """

    def __init__(self, channels: int, reduced: int | None = None, *, kernel: int = 7) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduced or max(1, channels // 16))
        self.spatial = SpatialAttention(kernel)

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """Weigh channels, then places."""
        return self.spatial(self.channel(x))
