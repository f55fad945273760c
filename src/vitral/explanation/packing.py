"""Attention maps of every layer and head, packed for a page: eight bits each, gathered to blocks until they fit."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from vitral.errors import UsageError
from vitral.explanation.capture import Captured, Layer, attention_layers, capture
from vitral.explanation.methods import attends
from vitral.explanation.prepares import Prepares
from vitral.explanation.stages import moved
from vitral.layers.position import Grid
from vitral.models.output import EncoderOutput

__all__ = ["Rows", "Store", "block_sizes", "gathered", "membership", "pack_maps"]


class Store:
    """Arrays one behind the other, for a script to find: little-endian, each at a multiple of four bytes."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def add(self, array: Shaped[np.ndarray, "*n"]) -> dict[str, Any]:
        """Keep an array, bytes as they are and all else in single precision; returns where it lies."""
        kind = "u1" if array.dtype == np.uint8 else "f4"
        at = len(self.bytes)
        self.bytes += array.astype(f"<{kind}").tobytes()
        self.bytes += bytes(-len(self.bytes) % 4)
        return {"at": at, "shape": list(array.shape), "type": kind}

    def packed(self) -> str:
        """Everything deflated (RFC 1950, which browsers call "deflate") and in base64."""
        return base64.b64encode(zlib.compress(bytes(self.bytes), 9)).decode("ascii")


@torch.no_grad()
def pack_maps(
    predictor: Prepares, batch: Float[Tensor, "1 c y x"], budget: int, store: Store
) -> tuple[EncoderOutput, dict[str, Any]]:
    """One look at the picture: the model's answer, and what the page is told of its attention maps.

    The page has one grid. Where stages differ in theirs it is the finest on which all maps fit the budget, else the
    coarsest; maps of other stages are averaged or spread out to it.
    """
    model, config = predictor.model, cast(Any, predictor.model).config
    grid = config.grid_of(tuple(batch.shape[2:]))
    if not attends(model):
        output = model(batch)
        return output, {
            "grid": list(output.grid),
            "layers": [],
            "blocks": {"asking": 1, "asked": 1},
            "first": None,
            "stages": [],
        }
    layers = [layer for layer in attention_layers(model) if not layer.layout.channels]
    names = [layer.name for layer in layers]
    # First whose maps they are, without a map being made: how large they become depends on all grids and heads together.
    with capture(model, names, parts="queries", reduce=lambda queries: (queries.shape[1], queries.shape[2])) as seen:
        output = model(batch)
    heads = sum(seen[name][0] for name in names)
    grids = list(dict.fromkeys(seen.grid(name) for name in names))
    if len(grids) > 1:
        grid = _page_grid(grids, config.prefix, heads, budget)
    elif grids:
        grid = grids[0]
    asking, asked = block_sizes(grid, config.prefix, heads, budget)
    with ExitStack() as watching:
        found = []
        for layer in layers:
            packed = partial(_packed, seen, layer, grid=grid, prefix=config.prefix, asking=asking, asked=asked)
            found.append(watching.enter_context(capture(model, layer.name, whole=False, reduce=packed)))
        model(batch)
    told = []
    for number, layer in enumerate(layers):
        rows: Rows = found[number][layer.name]
        alone = layer.block is None
        told.append(
            {
                "name": "Attention pooling" if alone else f"Layer {number}",
                "short": "pool" if alone else str(number),
                # One row, whatever the token: that of a pool, or of the class token where it alone asks.
                "pool": alone or rows.peaks.shape[1] == 1,
                "heads": len(rows.levels),
                "levels": store.add(rows.levels),
                "peaks": store.add(rows.peaks),
                "prefix": store.add(rows.prefix),
            }
        )
    blocks = [place for place, layer in enumerate(layers) if layer.block is not None]
    # What a person should see first: how the token looks that the answer is read from. A model that reads a pool or a mean
    # has no such token; then the pool, or the patch in the middle of the grid.
    middle = _block_of(grid, asking)[grid[0] // 2, grid[1] // 2]
    # Two thirds of the way up objects stand out; the last layers often heap attention on a few patches of background.
    chosen = len(layers) - 1 if layers[-1].block is None else blocks[2 * len(blocks) // 3]
    reads = "class" in config.prefix_names and seen.prefix(names[chosen]) > 0
    first = {"layer": chosen, "token": 0 if reads else config.prefix + int(middle)}
    stages = [list(one) for one in grids] if len(grids) > 1 else []
    blocks_told = {"asking": asking, "asked": asked}
    return output, {"grid": list(grid), "layers": told, "blocks": blocks_told, "first": first, "stages": stages}


def _page_grid(grids: Sequence[Grid], prefix: int, maps: int, budget: int) -> Grid:
    """The finest grid on which nothing has to be gathered to blocks, else the coarsest."""
    ordered = sorted(grids, key=math.prod, reverse=True)
    fits = (one for one in ordered if block_sizes(one, prefix, maps, budget) == (1, 1))
    return next(fits, ordered[-1])


def _packed(
    seen: Captured, layer: Layer, weights: Float[Tensor, "w h s t"], *, grid: Grid, prefix: int, asking: int, asked: int
) -> Rows:
    """A layer's maps on the page's grid, one head at a time: on a fine grid a single whole map is large."""
    parts = []
    for head in weights.split(1, dim=1):
        maps = _on_page(seen.whole(layer.name, head), seen, layer.name, grid, prefix)
        parts.append(gathered(maps, grid=grid, prefix=prefix, asking=asking, asked=asked))
    levels, peaks, before = (
        np.concatenate([getattr(part, field) for part in parts]) for field in ("levels", "peaks", "prefix")
    )
    return Rows(levels=levels, peaks=peaks, prefix=before)


def _on_page(
    maps: Float[Tensor, "1 h n m"], seen: Captured, layer: str, grid: Grid, prefix: int
) -> Float[Tensor, "1 h p q"]:
    """Maps of a stage's grid on the page's: shares summed or spread evenly, rows averaged or repeated.

    A token before the patches that the stage does not have asks for nothing and is not seen.
    """
    own, asked, before = seen.grid(layer), seen.asked_grid(layer), seen.prefix(layer)
    if own == grid == asked and (before == prefix or maps.shape[2] == 1):
        return maps
    maps = moved(maps, asked, grid)
    if maps.shape[2] == 1:
        return maps
    cells = grid[0] * grid[1]
    rows = moved(torch.eye(cells, device=maps.device, dtype=maps.dtype), grid, own)  # p cells of the page by own ones
    first = maps.shape[2] - own[0] * own[1]
    maps = torch.cat([maps[:, :, :first], rows @ maps[:, :, first:]], dim=2)
    missing = prefix - first
    return F.pad(maps, (missing, 0, missing, 0)) if missing > 0 else maps


@dataclass(frozen=True)
class Rows:
    """The attention maps of a layer, in eight bits.

    Attributes:
        levels: 255 · √(share / peak) of each asked block of patches, rounded; 255 for the greatest alone.
        peaks: each row's greatest share of a block of patches.
        prefix: shares of the tokens before the patches.
    """

    levels: Shaped[np.ndarray, "h n p"]
    peaks: Float[np.ndarray, "h n"]
    prefix: Float[np.ndarray, "h n q"]


def gathered(maps: Float[Tensor, "1 h n m"], *, grid: tuple[int, int], prefix: int, asking: int, asked: int) -> Rows:
    """Maps with the shares of asked patches summed over blocks, and the rows of asking patches averaged over blocks."""
    shares = maps[0].float()
    if not torch.isfinite(shares).all():
        raise UsageError("The model's attention is not a finite number everywhere (NaN). Try dtype='float32'.")
    before = shares.shape[2] - grid[0] * grid[1]  # a pool may not see the tokens before the patches
    if before not in (0, prefix) or shares.shape[1] not in (1, prefix + grid[0] * grid[1]):
        raise UsageError(
            f"An attention map of {shares.shape[1]} × {shares.shape[2]} tokens does not fit {prefix} tokens and a grid of "
            f"{grid[0]} × {grid[1]} patches; the page is for models whose tokens all see each other."
        )
    if shares.shape[1] > 1:
        rows = membership(grid, asking).to(shares)
        rows = rows / rows.sum(1, keepdim=True)
        shares = torch.cat([shares[:, :prefix], rows @ shares[:, prefix:]], dim=1)
    patches = shares[:, :, before:] @ membership(grid, asked).to(shares).T
    peaks, places = patches.max(dim=-1, keepdim=True)
    # The square root spends the levels where most shares are, near zero. Only the peak is let to the highest level, so that
    # the greatest share of a row is found again, and exactly.
    levels = (255 * (patches / peaks.clamp(min=torch.finfo(peaks.dtype).tiny)).sqrt()).round().clamp(max=254)
    levels = levels.scatter(-1, places, 255.0) * (peaks > 0)
    return Rows(
        levels=levels.to(torch.uint8).cpu().numpy(),
        peaks=peaks[..., 0].cpu().numpy(),
        prefix=shares[:, :, :before].cpu().numpy(),
    )


def block_sizes(grid: tuple[int, int], prefix: int, maps: int, budget: int) -> tuple[int, int]:
    """How many patches, along a side, become one when asking and when asked, so that all maps fit the budget.

    Asking gives way first: a coarser choice of where to point costs less than a coarser map.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UsageError(f"budget must be a whole number of at least 1; {budget!r} came.")
    asking = asked = 1
    while maps * (prefix + _count(grid, asking)) * _count(grid, asked) > budget and asked < max(grid):
        if asking == asked:
            asking += 1
        else:
            asked += 1
    return asking, asked


def _count(grid: tuple[int, int], size: int) -> int:
    return -(-grid[0] // size) * -(-grid[1] // size)


def _block_of(grid: tuple[int, int], size: int) -> Shaped[np.ndarray, "i j"]:
    """The block that each patch belongs to, in reading order; the last ones may be smaller."""
    rows, columns = np.indices(grid)
    return rows // size * -(-grid[1] // size) + columns // size


def membership(grid: tuple[int, int], size: int) -> Float[Tensor, "p q"]:
    """One for each patch (columns) of a block (rows), else zero."""
    return F.one_hot(torch.from_numpy(_block_of(grid, size).ravel()), _count(grid, size)).T.float()
