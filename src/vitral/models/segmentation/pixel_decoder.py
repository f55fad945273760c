"""From the maps of a backbone to one fine map of features, with which queries draw their masks.

Cheng et al. 2021, MaskFormer, section 3.4 and appendix A.1: a feature pyramid with group norms. Cheng et al. 2022,
Mask2Former, section 3.1 and 4.1: the cells of all maps but the finest first look at each other by deformable attention (Zhu
et al. 2021), and are asked by the queries afterwards.

    maps ── coarse to fine ──► each projected and added to what lies above it, smoothed ──► features of the finest cells

What fills a batch up is not told from pictures here, as published.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm
from vitral.layers.decoding import initialise_xavier
from vitral.layers.deformable import DeformableAttention
from vitral.layers.mlp import Mlp
from vitral.layers.position import Grid
from vitral.layers.sine import sine_positions

__all__ = [
    "ConvGroupNorm",
    "DeformableBlock",
    "DeformablePixelDecoder",
    "PixelDecoder",
    "PixelFeatures",
]

_GROUPS = 32  # of norms


class ConvGroupNorm(nn.Module):
    """Convolution, group normalisation (Wu and He 2018) in 32 groups and, if told so, ReLU.

    Args:
        inputs: channels c of the map.
        outputs: channels d of the result; where 32 does not divide them, as many groups as divide both.
        kernel: side of the window.
        rectified: whether ReLU follows.
        bias: whether the convolution has a bias.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, rectified: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.conv = ConvNorm(inputs, outputs, kernel, norm="none", bias=bias)
        self.norm = nn.GroupNorm(math.gcd(_GROUPS, outputs), outputs)
        self.rectified = rectified

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d y x"]:
        """Apply the layer."""
        x = self.conv(x)
        # Where the channels of a cell lie side by side, torch takes the variance as the difference of two means, which is
        # exact to three digits where a map is far from zero. A group's own mean makes no difference to its norm.
        groups = self.norm.num_groups
        middle = x.mean((2, 3)).unflatten(1, (groups, -1)).mean(2, keepdim=True)
        middle = middle.expand(-1, -1, x.shape[1] // groups).reshape(*x.shape[:2], 1, 1)
        x = self.norm(x - middle)
        return F.relu(x, inplace=True) if self.rectified else x


class DeformableBlock(nn.Module):
    """Every cell looks at a few places of all maps, then a feed-forward network; each followed by a norm.

    Args:
        width: channels d of a cell.
        heads: heads of the attention.
        levels: number of maps l.
        points: places that a head looks at on each map.
        mlp_width: hidden channels of the feed-forward network.
        dropout: probability of dropping hidden channels and branches in training.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int, mlp_width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, heads, levels, points)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, "relu", dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self,
        tokens: Float[Tensor, "b m d"],
        positions: Float[Tensor, "#b m d"],
        centres: Float[Tensor, "#b m 1 2"],
        grids: Sequence[Grid],
    ) -> Float[Tensor, "b m d"]:
        """Transform the cells.

        Args:
            tokens: the cells of all maps, one map behind the other.
            positions: what tells one from another, added to what they ask.
            centres: where they stand, x and y from 0 to 1 over a map.
            grids: rows and columns of each map.
        """
        found = self.attention(tokens + positions, centres, tokens, grids)
        tokens = self.norm1(tokens + self.dropout(found))
        normed: Tensor = self.norm2(tokens + self.mlp(tokens))
        return normed


class PixelDecoder(nn.Module):
    """A feature pyramid with group norms, of which the finest map is wanted (MaskFormer, section 3.4).

    Args:
        inputs: channels of the backbone's maps, from fine to coarse; two at least.
        width: channels of the pyramid.
        mask_width: channels d of the features.

    Raises:
        UsageError: a single map.
    """

    def __init__(self, inputs: Sequence[int], width: int, mask_width: int) -> None:
        super().__init__()
        *finer, coarsest = _several(inputs)
        self.first = ConvGroupNorm(coarsest, width, 3, rectified=True)
        self.lateral = nn.ModuleList(ConvGroupNorm(channels, width, 1) for channels in reversed(finer))
        self.smooth = nn.ModuleList(ConvGroupNorm(width, width, 3, rectified=True) for _ in finer)
        self.mask_projection = ConvNorm(width, mask_width, 3, norm="none")
        _fill_convolutions(self)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b d y x"]:
        """The features of the finest map's cells.

        Args:
            maps: of the backbone, from fine to coarse.
        """
        *finer, coarsest = maps
        found = self.first(coarsest)
        for lateral, smooth, one in zip(self.lateral, self.smooth, reversed(finer), strict=True):
            found = smooth(lateral(one) + F.interpolate(found, size=(one.shape[2], one.shape[3]), mode="nearest"))
        return cast(Tensor, self.mask_projection(found))


class PixelFeatures(NamedTuple):
    """What queries ask, and what they draw with.

    Attributes:
        tokens: the cells of every map but the finest, from the coarsest on (b n d).
        grids: rows and columns of these maps.
        features: of the finest map's cells (b c y x).
    """

    tokens: tuple[Float[Tensor, "b _ d"], ...]
    grids: tuple[Grid, ...]
    features: Float[Tensor, "b c y x"]


class DeformablePixelDecoder(nn.Module):
    """An encoder over all maps but the finest by deformable attention, then one step of a pyramid to the finest.

    Args:
        inputs: channels of the backbone's maps, from fine to coarse; two at least.
        width: channels d of a cell.
        mask_width: channels c of the features.
        depth: blocks of the encoder.
        heads: heads of their attention.
        points: places that a head looks at on each map.
        mlp_width: hidden channels of their feed-forward networks.
        dropout: probability of dropping hidden channels and branches in training.

    Raises:
        UsageError: a single map.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        width: int,
        mask_width: int,
        *,
        depth: int,
        heads: int,
        points: int,
        mlp_width: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        finest, *coarser = _several(inputs)
        levels = len(coarser)
        self.projections = nn.ModuleList(ConvGroupNorm(channels, width, 1, bias=True) for channels in reversed(coarser))
        self.level_positions = nn.Embedding(levels, width)
        self.encoder = nn.ModuleList(
            DeformableBlock(width, heads, levels, points, mlp_width, dropout=dropout) for _ in range(depth)
        )
        self.lateral = ConvGroupNorm(finest, width, 1)
        self.smooth = ConvGroupNorm(width, width, 3, rectified=True)
        self.mask_projection = ConvNorm(width, mask_width, 1, norm="none")
        _fill_convolutions(self)
        for projection in self.projections:
            nn.init.xavier_uniform_(cast(ConvGroupNorm, projection).conv.conv.weight)
        initialise_xavier(self.encoder)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> PixelFeatures:
        """The cells that queries ask, and the features of the finest ones.

        Args:
            maps: of the backbone, from fine to coarse.
        """
        finest, *coarser = maps
        projected = [projection(one) for projection, one in zip(self.projections, reversed(coarser), strict=True)]
        grids = tuple((one.shape[2], one.shape[3]) for one in projected)
        tokens = torch.cat([one.flatten(2).transpose(1, 2) for one in projected], dim=1)
        positions = torch.cat(
            [
                sine_positions(grid, tokens.shape[2], like=tokens) + self.level_positions.weight[place]
                for place, grid in enumerate(grids)
            ],
            dim=1,
        )
        centres = torch.as_tensor(_centres(grids), device=tokens.device)[None, :, None]
        for block in self.encoder:
            tokens = block(tokens, positions, centres, grids)
        parts = tokens.split([rows * columns for rows, columns in grids], dim=1)
        above = parts[-1].transpose(1, 2).unflatten(2, grids[-1])
        lateral = self.lateral(finest)
        above = F.interpolate(above, size=lateral.shape[2:], mode="bilinear", align_corners=False)
        return PixelFeatures(parts, grids, self.mask_projection(self.smooth(lateral + above)))


def _several(inputs: Sequence[int]) -> Sequence[int]:
    if len(inputs) < 2:
        raise UsageError("Masks are drawn on the finest map of a backbone and coarser ones are asked; this one has one map.")
    return inputs


@functools.lru_cache(maxsize=16)
def _centres(grids: tuple[Grid, ...]) -> Float[np.ndarray, "m 2"]:
    """x and y of the middles of all cells, from 0 to 1 over their maps, in reading order."""
    found = []
    for grid in grids:
        rows, columns = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side) for side in grid)
        found.append(np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2))
    return np.concatenate(found)


def _fill_convolutions(module: nn.Module) -> None:
    """Convolutions of a pyramid as in its authors' code: uniform by fan-in (He et al. 2015, with a slope of 1), no bias."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, a=1)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
