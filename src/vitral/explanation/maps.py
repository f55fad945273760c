"""Raw attention as an explanation: where one layer looks."""

from __future__ import annotations

from typing import Literal, SupportsIndex, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import LayerName, attention_layers, capture, find_layer
from vitral.explanation.question import Heat, Question, reading_weights
from vitral.explanation.stages import moved

__all__ = ["HeadFusion", "attention", "fused"]

HeadFusion = Literal["mean", "max", "min"]
"""How the maps of a layer's heads become one."""


def fused(maps: Float[Tensor, "b h n m"], how: HeadFusion) -> Float[Tensor, "b n m"]:
    """The maps of several heads as one.

    Raises:
        UnknownNameError: no such fusion.
    """
    if how == "mean":
        return maps.mean(1)
    if how not in ("max", "min"):
        raise UnknownNameError("fusion of heads", how, ("mean", "max", "min"))
    return maps.amax(1) if how == "max" else maps.amin(1)


@torch.no_grad()
def attention(
    question: Question,
    *,
    layer: LayerName | None = None,
    head: SupportsIndex | HeadFusion = "mean",
    query: SupportsIndex | str | tuple[SupportsIndex, SupportsIndex] | None = None,
) -> Heat:
    """Where one layer attends (Vaswani et al. 2017, equation 1).

    Args:
        question: what to look at.
        layer: which; by default the attention pool of a model that has one, else the last block.
        head: one of its heads, or how all become one.
        query: the asking token: its number, its name ("class", "register 1"), or row and column of a patch; by default the
            tokens the answer is read from (the class token, or the mean over patches of a model that pools so). Rows and
            columns are those of the layer's own grid, which is finer in the early stages of a hierarchy.

    Raises:
        UsageError: the layer has no map over the picture.
    """
    layers = attention_layers(question.model)
    pool = next((one.name for one in layers if one.block is None), None)
    chosen = find_layer(layers, layer if layer is not None else pool or -1)
    one = as_integer(head)
    if chosen.layout.channels:
        raise UsageError(f"In {chosen.name} channels attend to each other, so it has no map over the picture.")
    fuse = cast(HeadFusion, head) if one is None else "mean"
    # Maps of windows are laid out when their heads are one, as they are the largest there are.
    with capture(question.model, chosen.name, heads=one, whole=False, reduce=lambda maps: fused(maps, fuse)) as maps:
        question.model(question.pixels)
    rows = maps.whole(chosen.name, maps[chosen.name][:, None])[:, 0]
    if query is not None:
        asking = question.token(query, maps.grid(chosen.name), maps.prefix(chosen.name))
        count = rows.shape[1]
        if not -count <= asking < count:
            raise UsageError(
                f"There is no asking token {asking}: {chosen.name} has {count}, numbered 0 to {count - 1} (or -1 for the "
                "last)."
            )
        rows = rows[:, [asking]]
    if rows.shape[1] == 1:
        found = rows[:, 0]
    else:
        weights = reading_weights(question.model, rows.shape[1], maps.prefix(chosen.name))
        # A model with attention pooling reads all its patches.
        found = rows.mean(1) if weights is None else weights.to(rows) @ rows
    grid, asked = maps.grid(chosen.name), maps.asked_grid(chosen.name)
    return Heat(question.patches(moved(found, asked, grid), grid))
