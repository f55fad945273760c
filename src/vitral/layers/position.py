"""Where a token stands: learned tables, sinusoids, relative biases and rotations, each for any grid.

A grid is (rows, columns) of patches. Indices and angles depend on nothing else, so they are computed when a grid is first
seen and kept as plain numbers; a model takes pictures of any size without being told.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Grid", "RelativeBias", "Rotary2d", "Rotation", "resample_grid", "rotate", "sinusoids_1d", "sinusoids_2d"]

Grid = tuple[int, int]
"""Rows and columns of patches."""

Rotation = tuple[Float[Tensor, "p k"], Float[Tensor, "p k"]]
"""Cosines and sines of one angle per patch and head channel."""


def resample_grid(table: Float[Tensor, "1 p d"], old: Grid, new: Grid, *, antialias: bool) -> Float[Tensor, "1 r d"]:
    """Carry a table of one vector per patch from one grid to another, bicubically (ViT paper, section 3.2; DeiT, section 6).

    Args:
        table: the vectors, in reading order.
        old: the grid they belong to.
        new: the grid wanted.
        antialias: whether shrinking low-passes first; published models were evaluated either way.
    """
    maps = table.float().unflatten(1, old).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    return maps.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)


def _sinusoids(positions: Int[Tensor, " n"], width: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines (n, width/2) of the positions at wavelengths from 2π to 10000 · 2π."""
    frequencies = 10000 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = positions.double()[:, None] * frequencies
    return angles.sin(), angles.cos()


def sinusoids_1d(length: int, width: int) -> Float[Tensor, "n d"]:
    """Fixed positions along a sequence, sines and cosines in turn (Vaswani et al. 2017, section 3.5)."""
    return torch.stack(_sinusoids(torch.arange(length), width), dim=-1).flatten(1).float()


def sinusoids_2d(grid: Grid, width: int) -> Float[Tensor, "p d"]:
    """Fixed positions on a grid: half the channels tell the column, half the row (He et al. 2022, MAE, appendix A.1).

    Each half holds all its sines, then all its cosines, in the order of MAE's published tables.
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    halves = [*_sinusoids(columns.flatten(), width // 2), *_sinusoids(rows.flatten(), width // 2)]
    return torch.cat(halves, dim=1).float()


class RelativeBias(nn.Module):
    """A learned number per head and offset between two patches, added to the attention logits.

    Bao et al. 2022, BEiT, as in its published code (after Raffel et al. 2020). Three more rows serve the class token: class
    to patch, patch to class, class to class. Other grids than the trained one are served by bilinear interpolation
    over offsets (Birkl et al. 2023, MiDaS v3.1).

    Args:
        grid: the grid the table is made for.
        heads: number of heads h.
    """

    def __init__(self, grid: Grid, heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, heads))

    def forward(self, grid: Grid) -> Float[Tensor, "1 h n n"]:
        """The bias between all tokens of a picture, class token first."""
        tokens = grid[0] * grid[1] + 1
        index = torch.as_tensor(_relative_index(grid), device=self.table.device)
        return self.resampled(grid)[index].view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)

    def resampled(self, grid: Grid) -> Float[Tensor, "o h"]:
        """The table for another grid."""
        if grid == self.grid:
            return self.table
        old, new = (tuple(2 * side - 1 for side in sides) for sides in (self.grid, grid))
        offsets = self.table[:-3].unflatten(0, old).permute(2, 0, 1).unsqueeze(0)
        offsets = F.interpolate(offsets, size=new, mode="bilinear", align_corners=False)
        return torch.cat([offsets[0].permute(1, 2, 0).flatten(0, 1), self.table[-3:]])


@functools.lru_cache(maxsize=16)
def _relative_index(grid: Grid) -> Int[np.ndarray, " nn"]:
    """Row of `RelativeBias.table` for every pair of tokens, asking token first."""
    rows, columns = (places.ravel() for places in np.indices(grid))
    down = rows[:, None] - rows[None, :] + grid[0] - 1
    across = columns[:, None] - columns[None, :] + grid[1] - 1
    offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    index = np.empty((grid[0] * grid[1] + 1,) * 2, dtype=np.int64)
    index[1:, 1:] = down * (2 * grid[1] - 1) + across
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index.ravel()


class Rotary2d(nn.Module):
    """Rotary positions on a grid: a patch's place turns its queries and keys (Siméoni et al. 2025, DINOv3, section 3.2).

    Places are patch centres with either axis mapped to [−1, 1], so a picture of any size spans the same angles. A
    quarter of a head's channel pairs turns with the row, a quarter with the column, at periods from 1 to `base`.

    Args:
        head_width: channels k of a head, a multiple of four.
        base: the longest period, in units of half the picture.
    """

    def __init__(self, head_width: int, base: float = 100.0) -> None:
        super().__init__()
        self.head_width, self.base = head_width, base

    def forward(self, grid: Grid, like: Tensor) -> Rotation:
        """Cosine and sine of every patch's angles, in reading order, on the device and in the precision of `like`."""
        angles = torch.as_tensor(_rotary_angles(grid, self.head_width, self.base), device=like.device)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


@functools.lru_cache(maxsize=16)
def _rotary_angles(grid: Grid, head_width: int, base: float) -> Float[np.ndarray, "p k"]:
    frequencies = 1 / base ** np.arange(0, 1, 4 / head_width, dtype=np.float32)
    rows, columns = (2 * (np.arange(side, dtype=np.float32) + np.float32(0.5)) / side - 1 for side in grid)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    angles = (2 * np.float32(math.pi) * places[:, :, None] * frequencies).reshape(len(places), -1)
    return np.tile(angles.astype(np.float32), 2)


def rotate(x: Float[Tensor, "b h n k"], rotation: Rotation) -> Float[Tensor, "b h n k"]:
    """Turn the last p of n tokens by the angles of their patches; tokens before them (class, registers) stay.

    Channel c is paired with channel c + k/2 (Su et al. 2021, RoFormer, equation 34, in the half-split order that
    DINOv3 uses).
    """
    cos, sin = rotation
    prefix, patches = x.split([x.shape[-2] - cos.shape[0], cos.shape[0]], dim=-2)
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([prefix, turned], dim=-2)
