"""Raw attention as an explanation: where one layer looks."""

from __future__ import annotations

from typing import Literal, SupportsIndex, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError
from vitral.explanation.capture import LayerName, attention_layers, capture, find_layer
from vitral.explanation.question import Heat, Question, reading_weights

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
            tokens the answer is read from (the class token, or the mean over patches of a model that pools so).
    """
    layers = attention_layers(question.model)
    pool = next((one.name for one in layers if one.block is None), None)
    chosen = find_layer(layers, layer if layer is not None else pool or -1)
    one = as_integer(head)
    asking = None if query is None else question.token(query)
    with capture(question.model, chosen.name, heads=one, queries=asking) as maps:
        question.model(question.pixels)
    rows = fused(maps[chosen.name], cast(HeadFusion, head) if one is None else "mean")
    if rows.shape[1] == 1:
        found = rows[:, 0]
    else:
        weights = reading_weights(question.model, rows.shape[1])
        # A model with attention pooling reads all its patches.
        found = rows.mean(1) if weights is None else weights.to(rows) @ rows
    return Heat(question.patches(found))
