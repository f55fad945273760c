"""How the tokens that a product mixes lie among those of the picture: all at once, in windows, along lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.attention import Rearranging
from vitral.layers.axial import AxialAttention
from vitral.layers.cross_covariance import CrossCovarianceAttention
from vitral.layers.position import Grid
from vitral.layers.spatial_reduction import SpatialReductionAttention
from vitral.layers.window import WindowAttention

__all__ = ["Layout", "cut", "layout_of"]

_Whole = Callable[[Tensor, Grid], Tensor]


@dataclass(frozen=True, eq=False)
class Layout:
    """What a product mixes.

    Attributes:
        around: the module whose `forward` is given the tokens as they lie in the picture, and maybe their grid.
        whole: makes the map between all tokens (b h n n) of what the product mixed with (w h s s) and the grid; None where
            the product sees all tokens at once.
        channels: whether it is no tokens that are mixed, but channels.
        asked: the grid of the tokens that are asked, of the grid of those that ask and the number of those that are asked;
            None where they are the same, or where nobody tells.
    """

    around: nn.Module
    whole: _Whole | None = None
    channels: bool = False
    asked: Callable[[Grid, int], Grid] | None = None


def layout_of(product: nn.Module, around: Sequence[nn.Module]) -> Layout:
    """The layout of a product, by the attention it is part of.

    Args:
        product: what mixes.
        around: the modules that it lies in, the nearest first.
    """
    for module in around:
        if isinstance(module, WindowAttention):
            return Layout(module, partial(_whole_of_windows, module))
        if isinstance(module, Rearranging):
            return Layout(module, module.whole_map)
        if isinstance(module, AxialAttention):
            along_rows = module.rows.product is product
            return Layout(module, partial(_whole_of_lines, along_rows=along_rows))
        if isinstance(module, CrossCovarianceAttention):
            return Layout(module, channels=True)
        if isinstance(module, SpatialReductionAttention):
            return Layout(module, asked=partial(_of_reduced, module))
    return Layout(around[0])


def _of_reduced(attention: SpatialReductionAttention, grid: Grid, cells: int) -> Grid:
    """The grid that an attention to a smaller map looks at: a square of regions, or windows without what remains."""
    if attention.linear:
        return math.isqrt(cells), math.isqrt(cells)
    return max(1, grid[0] // attention.reduction), max(1, grid[1] // attention.reduction)


def _whole_of_windows(attention: WindowAttention, weights: Float[Tensor, "w h s s"], grid: Grid) -> Float[Tensor, "b h n n"]:
    """The map between all tokens of attention in windows.

    Tokens that only a shift brought into one window are kept apart by a bias of −100, as published, which leaves some 1e-44
    of attention; here it is 0.
    """
    apart = attention.windows(grid).apart(weights.device)
    if apart is not None:
        weights = weights.unflatten(0, (-1, len(apart))).masked_fill(apart[:, None], 0.0).flatten(0, 1)
    return attention.whole_map(weights, grid)


def _whole_of_lines(weights: Float[Tensor, "w h s s"], grid: Grid, *, along_rows: bool) -> Float[Tensor, "b h n n"]:
    """The map between all tokens of attention along rows (one after the other), or along columns."""
    lines = weights.unflatten(0, (-1, grid[0] if along_rows else grid[1]))
    if along_rows:  # b i h j l ─► b h i j i l
        laid = lines.permute(0, 2, 3, 4, 1).diag_embed(dim1=2, dim2=4)
    else:  # b j h i k ─► b h i j k j
        laid = lines.permute(0, 2, 3, 4, 1).diag_embed(dim1=3, dim2=5)
    return laid.flatten(4, 5).flatten(2, 3)


def cut(
    laid: Float[Tensor, "b h n n"], weights: Float[Tensor, "w h s s"], lay: Callable[[Tensor], Tensor]
) -> Float[Tensor, "w h s s"]:
    """The weights that a whole map was laid out from, taken out of it again, so that gradients pass through it.

    Weights that have no place in it (of tokens that fill up a window) stay what they are.

    Args:
        laid: the whole map.
        weights: what it was laid out from.
        lay: how.
    """
    pairs = weights[:, :1]
    with torch.no_grad():  # a number for each pair, from 1, and where it comes to lie; doubles count far enough
        numbers = torch.arange(1, pairs.numel() + 1, dtype=torch.float64, device=weights.device).view(pairs.shape)
        found = lay(numbers).flatten()
        at = found.nonzero()[:, 0]
        places = torch.full((pairs.numel(),), -1, dtype=torch.long, device=weights.device)
        places[found[at].long() - 1] = at
    taken = laid.transpose(0, 1).flatten(1)[:, places.clamp(min=0)]  # h, then pictures and pairs
    taken = taken.view(weights.shape[1], *pairs.shape[:1], *pairs.shape[2:]).transpose(0, 1)
    return torch.where((places >= 0).view(pairs.shape), taken, weights)
