"""Attention maps of every layer and head, packed for a page: eight bits each, gathered to blocks until they fit."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from vitral.errors import UsageError
from vitral.explanation.capture import attention_layers, capture
from vitral.explanation.explain import Prepares
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
    """One look at the picture: the model's answer, and what the page is told of its attention maps."""
    model, config = predictor.model, cast(Any, predictor.model).config
    grid = config.grid_of(tuple(batch.shape[2:]))
    layers = attention_layers(model)
    asking, asked = block_sizes(grid, config.prefix, sum(config.heads for _ in layers), budget)
    reduce = partial(gathered, grid=grid, prefix=config.prefix, asking=asking, asked=asked)
    with capture(model, reduce=reduce) as captured:
        output: EncoderOutput = model(batch)
    told = []
    for number, layer in enumerate(layers):
        rows: Rows = captured[layer.name]
        pool = layer.block is None
        told.append(
            {
                "name": "Attention pooling" if pool else f"Layer {number}",
                "short": "pool" if pool else str(number),
                "pool": pool,
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
    first = {
        "layer": len(layers) - 1 if layers[-1].block is None else blocks[2 * len(blocks) // 3],
        "token": 0 if "class" in config.prefix_names else config.prefix + int(middle),
    }
    return output, {"layers": told, "blocks": {"asking": asking, "asked": asked}, "first": first}


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
