"""Sinusoids that tell where a cell of a map lies within its picture, whatever fills the map up.

Carion et al. 2020, DETR, section A.4 (after Parmar et al. 2018, Image Transformer): the cells of a picture are counted from
1, in units of its extent, a whole one being 2π. A picture alone and the same filled up to the size of a batch get the same.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitral.layers.position import Grid

__all__ = ["sine_positions"]

_LONGEST = 10_000.0  # wavelengths go from 2π to 2π times this
_EPS = 1e-6


def sine_positions(
    grid: Grid, width: int, seen: Bool[Tensor, "b i j"] | None = None, *, like: Tensor
) -> Float[Tensor, "#b n d"]:
    """A fixed vector for each cell of a map, in reading order: half the channels tell the row, half the column.

    Within a half, sines and cosines take turns.

    Args:
        grid: rows and columns of the map, n = i · j.
        width: channels d, a multiple of four.
        seen: which cells are the picture's, in one rectangle at the top left; None for all. What the others get means
            nothing.
        like: a tensor on the device and in the precision wanted.
    """
    if seen is None:
        return torch.as_tensor(_whole(grid, width), device=like.device).to(like.dtype)
    return _waves(seen, width).to(like.dtype)


@functools.lru_cache(maxsize=16)
def _whole(grid: Grid, width: int) -> Float[np.ndarray, "1 n d"]:
    """The positions of a map that is the picture's throughout, as plain numbers."""
    with torch.inference_mode(False), torch.no_grad():
        return _waves(torch.ones(1, *grid, dtype=torch.bool, device="cpu"), width).numpy()


def _waves(seen: Bool[Tensor, "b i j"], width: int) -> Float[Tensor, "b n d"]:
    counted = [seen.cumsum(axis, dtype=torch.float32) for axis in (1, 2)]
    places = [
        count / (count.narrow(axis, -1, 1) + _EPS) * (2 * math.pi) for axis, count in zip((1, 2), counted, strict=True)
    ]
    half = width // 2
    periods = _LONGEST ** (torch.arange(0, half, 2, dtype=torch.float32, device=seen.device) / half)
    angles = torch.stack(places, dim=-1).unsqueeze(-1) / periods
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(3).flatten(1, 2)
