"""Pyramid pooling: every cell is told what the picture shows as a whole, and in its halves, thirds and sixths.

Zhao et al. 2017, "Pyramid Scene Parsing Network", https://arxiv.org/abs/1612.01105, section 3.2 and figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm

__all__ = ["PyramidPooling"]


class PyramidPooling(nn.Module):
    """A map beside its own means over a few coarse grids, all seen by one convolution.

    The means over a grid of g × g parts pass a convolution of 1 × 1 and are enlarged to the map's size between the cells.

    Args:
        inputs: channels c of the map.
        width: channels of the means behind their convolutions, and d of the result.
        grids: parts of the picture's height and of its width, for each grid.
    """

    def __init__(self, inputs: int, width: int, grids: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.pooled = nn.ModuleList(ConvNorm(inputs, width, 1, activation="relu") for _ in grids)
        self.join = ConvNorm(inputs + len(self.grids) * width, width, 3, activation="relu")

    def forward(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d i j"]:
        """Apply the layer.

        Raises:
            UsageError: in training, a single picture of which one mean is taken; batch normalisation would make it zero.
        """
        if self.training and 1 in self.grids and len(x) == 1:
            raise UsageError(
                "In training, batch normalisation compares the means of pictures with each other; a batch of one came. "
                "Train with two pictures at a time or more."
            )
        size = (x.shape[2], x.shape[3])
        seen = [x]
        for grid, convolution in zip(self.grids, self.pooled, strict=True):
            means = convolution(F.adaptive_avg_pool2d(x, grid))
            seen.append(F.interpolate(means, size=size, mode="bilinear", align_corners=False))
        joined: Tensor = self.join(torch.cat(seen, dim=1))
        return joined
