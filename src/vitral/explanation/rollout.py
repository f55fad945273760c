"""Attention rollout: attention of attention, from the answer back to the patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from vitral.base.numbers import real_number
from vitral.errors import UsageError
from vitral.explanation.capture import Captured, capture
from vitral.explanation.maps import HeadFusion, fused
from vitral.explanation.question import Heat, Question
from vitral.explanation.stages import moved
from vitral.layers.position import Grid

__all__ = ["Backwards", "roll_out", "rollout"]


@torch.no_grad()
def rollout(question: Question, *, fusion: HeadFusion = "mean", discard: float = 0.0, start: SupportsIndex = 0) -> Heat:
    """Attention rollout (Abnar and Zuidema 2020, section 3); it knows no class.

    Where tokens are merged between stages, the merged one has taken evenly from those it was merged from; where a layer asks
    averages of tokens, what it takes from one it takes evenly from those under it. So the flow ends on the grid of the first
    layer that counts, the finest of a hierarchy.

    Args:
        question: what to look at.
        fusion: how the heads of a layer become one; the mean in the paper.
        discard: share of each row's weakest attention that is left out, from 0, as in the paper, to below 1; of the tokens
            of its window, where a layer has windows. (Gildenblat 2020, jacobgil/vit-explain, leaves out the weakest of a
            whole map, which may leave rows without any.)
        start: the first layer that counts, 0 for all.
    """
    _check(discard)
    with capture(question.model, whole=False, reduce=lambda maps: fused(maps, fusion)) as captured:
        question.model(question.pixels)
    pool = None if captured.pool is None else captured[captured.pool]
    way = Backwards(captured, question.reading(pool), question.grid, question.prefix)
    for name in way.layers(start):
        attention = captured.whole(name, _kept(captured[name], discard)[:, None])[:, 0]
        way.to(name)
        way.mix(attention)
    return way.heat()


class Backwards:
    """What the answer took from each token, followed back from the last layer to the first, through stages and their grids.

    It is one row of the product of all layers' maps, from its left end: on fine grids the product itself would be far larger
    than any map.

    Args:
        captured: layers that a forward has passed.
        row: what the answer takes from each token behind the last layer.
        grid: rows and columns of these tokens.
        prefix: how many of them stand before those of the grid.
    """

    def __init__(self, captured: Captured, row: Float[Tensor, "b n"], grid: Grid, prefix: int) -> None:
        self._captured = captured
        self._grid, self._prefix, self._row = grid, prefix, row

    def layers(self, start: SupportsIndex = 0) -> list[str]:
        """The layers from one of them on, the last first; those that mix channels let every token pass.

        Raises:
            UsageError: there are not so many.
        """
        return [name for name in reversed(self._captured.blocks(start)) if not self._captured.channels(name)]

    def to(self, layer: str) -> None:
        """Go back to a layer's own grid."""
        grid, prefix = self._captured.grid(layer), self._captured.prefix(layer)
        before, cells = self._row[:, : self._prefix], self._row[:, self._prefix :]
        # A token before the patches that joins later came from none of them.
        before = torch.nn.functional.pad(before[:, :prefix], (0, max(0, prefix - self._prefix)))
        self._row = torch.cat([before, moved(cells, self._grid, grid)], dim=1)
        self._grid, self._prefix = grid, prefix
        self._layer = layer

    def leave_behind(self) -> None:
        """Forget the tokens before those of the grid: further back they are not there, and came from none."""
        self._row, self._prefix = self._row[:, self._prefix :], 0

    def join(self, cells: Float[Tensor, "b m"]) -> None:
        """Add what the answer takes from the tokens of the grid right here, past all later layers."""
        before = self._row.shape[1] - cells.shape[1]
        self._row = self._row + torch.nn.functional.pad(cells.to(self._row), (before, 0))

    def of_asking(self, attention: Float[Tensor, "b n m"]) -> Float[Tensor, "b n"]:
        """What the answer took from the tokens that ask at this layer: all, or the first ones."""
        return self._row[:, : attention.shape[1]].to(attention)

    def add(self, change: Float[Tensor, "b n"], attention: Float[Tensor, "b n m"], carried: Float[Tensor, "b n"]) -> None:
        """Change what was taken from the tokens that ask, and add what they carry from those they attend to.

        Args:
            change: what is added for the tokens that ask.
            attention: the map, columns on the layer's grid of asked tokens.
            carried: what of each row is passed on.
        """
        reached = torch.einsum("bn,bnm->bm", carried, attention)
        reached = moved(reached, self._captured.asked_grid(self._layer), self._grid)
        row = self._row.to(reached).clone()
        row[:, : change.shape[1]] += change
        # A map may leave out the tokens before the patches.
        row[:, row.shape[1] - reached.shape[1] :] += reached
        self._row = row

    def mix(self, attention: Float[Tensor, "b n m"]) -> None:
        """Go back through a layer that passes on half of a token by its residual connection and half by attention.

        Args:
            attention: the map, heads already one; its rows are brought to a sum of one once more, as what was paid to tokens
                that only fill up a window is not in a whole map.
        """
        attention = _kept(attention, 0.0)
        # Row by row (A + I) / 2; a token that sees none keeps all it has.
        share = attention.sum(-1)
        asking = self.of_asking(attention) / (1 + share)
        self.add(asking - self.of_asking(attention), attention, asking)

    def heat(self) -> Heat:
        """What was taken from the tokens of the grid that was reached."""
        return Heat(self._row[:, self._prefix :].float().unflatten(1, self._grid))


def roll_out(maps: Sequence[Float[Tensor, "b n n"]], *, discard: float = 0.0) -> Float[Tensor, "b n n"]:
    """How much of each token (columns) has flown into each token (rows) after all layers; rows sum to one.

    A layer passes on half of a token by its residual connection and half by attention: (A + I) / 2.

    Args:
        maps: one for each layer, heads already fused; rows are brought to a sum of one.
        discard: share of each row's weakest attention that is left out.

    Raises:
        UsageError: `discard` is not from 0 to below 1, or there are no maps.
    """
    _check(discard)
    if not maps:
        raise UsageError("There are no attention maps to roll out.")
    identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    flow = identity.expand_as(maps[0])
    for attention in maps:
        mixed = _kept(attention, discard) + identity
        flow = mixed / mixed.sum(-1, keepdim=True) @ flow
    return flow


def _check(discard: float) -> None:
    if not 0 <= real_number("discard", discard) < 1:
        raise UsageError(f"discard must be from 0 to below 1; {discard!r} came.")


def _kept(attention: Float[Tensor, "b n m"], discard: float) -> Float[Tensor, "b n m"]:
    """Rows without their weakest attention, brought to a sum of one."""
    weakest = int(attention.shape[-1] * discard)
    if weakest:
        attention = attention.scatter(-1, attention.topk(weakest, largest=False).indices, 0.0)
    return attention / attention.sum(-1, keepdim=True).clamp(min=torch.finfo(attention.dtype).tiny)
