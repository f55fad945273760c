"""Where a token stands: learned tables, sinusoids, relative biases and rotations, each for any grid.

A grid is (rows, columns) of patches. Everything here that depends only on the grid is computed when a grid is first seen
and kept, so a model takes pictures of any size without being told.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Grid", "RelativeBias", "Rotary2d", "resample_grid", "sinusoids_1d", "sinusoids_2d"]

Grid = tuple[int, int]
"""Rows and columns of patches."""


def resample_grid(table: Float[Tensor, "1 p d"], old: Grid, new: Grid, *, antialias: bool) -> Float[Tensor, "1 r d"]:
    """Carry a table of one vector per patch from one grid to another, bicubically (Dosovitskiy et al. 2021, section 3.2).

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

    Bao et al. 2022, BEiT, section 2.2 (after Raffel et al. 2020). Three more rows serve the class token: class to
    patch, patch to class, class to class. Other grids than the trained one are served by bilinear interpolation
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
        index = _relative_index(grid).to(self.table.device)
        return self._resampled(grid)[index].view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)

    def _resampled(self, grid: Grid) -> Float[Tensor, "o h"]:
        if grid == self.grid:
            return self.table
        old, new = (tuple(2 * side - 1 for side in sides) for sides in (self.grid, grid))
        offsets = self.table[:-3].unflatten(0, old).permute(2, 0, 1).unsqueeze(0)
        offsets = F.interpolate(offsets, size=new, mode="bilinear", align_corners=False)
        return torch.cat([offsets[0].permute(1, 2, 0).flatten(0, 1), self.table[-3:]])


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later calls, which may want gradients
def _relative_index(grid: Grid) -> Int[Tensor, " nn"]:
    """Row of `RelativeBias.table` for every pair of tokens, asking token first."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    down = rows.flatten()[:, None] - rows.flatten()[None, :] + grid[0] - 1
    across = columns.flatten()[:, None] - columns.flatten()[None, :] + grid[1] - 1
    offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    index = torch.empty((grid[0] * grid[1] + 1,) * 2, dtype=torch.long)
    index[1:, 1:] = down * (2 * grid[1] - 1) + across
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index.flatten()


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

    def forward(self, grid: Grid) -> tuple[Float[Tensor, "p k"], Float[Tensor, "p k"]]:
        """Cosine and sine of every patch's angles, in reading order."""
        return _rotary_angles(grid, self.head_width, self.base)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _rotary_angles(grid: Grid, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    frequencies = 1 / base ** torch.arange(0, 1, 4 / head_width)
    rows, columns = (2 * (torch.arange(side) + 0.5) / side - 1 for side in grid)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * places[:, :, None] * frequencies).flatten(1).tile(2)
    return angles.cos(), angles.sin()
