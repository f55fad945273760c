"""From the grid of one stage to that of another: how cells of a fine grid lie under those of a coarse one.

A hierarchical network merges tokens between its stages, 2 × 2 in Swin (Liu et al. 2021, section 3.1), and in some of its
attentions the tokens that are asked are fewer than those that ask (Wang et al. 2021, PVT, section 3.3). Nothing but the two
grids is looked at: the step is the least power of two that leads from one to the other, what remains at the bottom and at
the right being a cell of its own (as where grids are padded) or left out (as where a convolution reaches no further).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.position import Grid

__all__ = ["cell_of", "coarser", "moved", "steps"]

_LARGEST = 4096  # cells of the fine grid that one of the coarse grid may span


def steps(fine: Grid, coarse: Grid) -> tuple[int, int]:
    """How many rows and columns of a fine grid one cell of a coarse grid spans.

    Raises:
        UsageError: the second grid is not the coarser one.
    """
    if any(not 1 <= few <= many for many, few in zip(fine, coarse, strict=True)):
        raise UsageError(f"A grid of {coarse[0]} × {coarse[1]} is not coarser than one of {fine[0]} × {fine[1]}.")
    # One step for both sides where there is one: a single side may be explained by several.
    found = _step(list(zip(fine, coarse, strict=True)))
    if found is not None:
        return found, found
    down, across = (_step([pair]) or -(-pair[0] // pair[1]) for pair in zip(fine, coarse, strict=True))
    return down, across


def _step(sides: list[tuple[int, int]]) -> int | None:
    """The least power of two by which every side becomes the other, rounded up or down."""
    step = 1
    while step <= _LARGEST:
        if all(few in (-(-many // step), many // step) for many, few in sides):
            return step
        step *= 2
    return None


def coarser(grid: Grid, cells: int) -> Grid | None:
    """The grid of so many cells that lies over a finer one; None where there is none.

    Steps are powers of two, the same for rows and columns, and remainders are left out or a cell of their own.
    """
    step = 1
    while step <= max(grid):
        for rows, columns in ((-(-grid[0] // step), -(-grid[1] // step)), (grid[0] // step, grid[1] // step)):
            if rows * columns == cells:
                return rows, columns
        step *= 2
    return (1, 1) if cells == 1 else None


def moved(values: Float[Tensor, "*b n"], now: Grid, onto: Grid) -> Float[Tensor, "*b m"]:
    """Values of the cells of one grid as values of the cells of another; their sum stays.

    What a coarse cell has is spread evenly over the fine cells under it, as a merged token is the mean of those it was
    merged from; what fine cells have is summed over the coarse cell above them.

    Args:
        values: one for each cell of `now`, in reading order; there may be others of tokens before them, which stay.
        now: rows and columns of the grid they lie on.
        onto: rows and columns of the other grid.
    """
    before = values.shape[-1] - now[0] * now[1]
    if before < 0:
        raise UsageError(f"{values.shape[-1]} values do not cover a grid of {now[0]} × {now[1]} cells.")
    if now == onto:
        return values
    down, across = _shares(now, onto, values)
    laid = values[..., before:].unflatten(-1, now)
    found = torch.einsum("...ij,ik,jl->...kl", laid, down, across).flatten(-2)
    return torch.cat([values[..., :before], found], dim=-1) if before else found


def _shares(now: Grid, onto: Grid, like: Tensor) -> tuple[Float[Tensor, "i k"], Float[Tensor, "j l"]]:
    """For rows and for columns: which share of a cell of `now` (rows of the matrix) goes to each cell of `onto`."""
    if all(few <= many for few, many in zip(now, onto, strict=True)):
        spans = steps(onto, now)
        under = [_under(many, few, span).to(like) for many, few, span in zip(onto, now, spans, strict=True)]
        down, across = (one / one.sum(1, keepdim=True) for one in under)
        return down, across
    if all(few <= many for few, many in zip(onto, now, strict=True)):
        spans = steps(now, onto)
        down, across = (
            _under(many, few, span, all_of_them=True).T.to(like) for many, few, span in zip(now, onto, spans, strict=True)
        )
        return down, across
    between = min(now[0], onto[0]), min(now[1], onto[1])  # finer along one side, coarser along the other
    first, second = _shares(now, between, like), _shares(between, onto, like)
    return first[0] @ second[0], first[1] @ second[1]


def _under(many: int, few: int, step: int, *, all_of_them: bool = False) -> Float[Tensor, "few many"]:
    """One where a fine line (columns) lies under a coarse one (rows).

    Args:
        many: fine lines.
        few: coarse lines.
        step: fine lines to a coarse one.
        all_of_them: whether lines that no coarse one reaches count with the last one; else they lie under none.
    """
    # Where no step leads from one to the other, lines are shared out in proportion, so that none is left without.
    fits = few in (-(-many // step), many // step)
    places = torch.arange(many) // step if fits else ((torch.arange(many) + 0.5) * few / many).long()
    lines = torch.arange(few)[:, None]
    return (lines == (places.clamp(max=few - 1) if all_of_them else places)).float()


def cell_of(model: nn.Module, grid: Grid, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width, in pixels of the input, of what a cell of some grid of a network stands for.

    Args:
        model: it knows the cells of its last grid.
        grid: rows and columns of cells, of any stage.
        size: height and width of the input in pixels.
    """
    config = cast(Any, model).config
    patch_size: tuple[int, int] = config.patch_size
    return patch_size if tuple(grid) == tuple(config.grid_of(size)) else steps(size, grid)
