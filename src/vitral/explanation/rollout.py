"""Attention rollout: attention of attention, from the answer back to the patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from vitral.base.numbers import real_number
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.explanation.maps import HeadFusion, fused
from vitral.explanation.question import Heat, Question, read_back

__all__ = ["roll_out", "rollout"]


@torch.no_grad()
def rollout(question: Question, *, fusion: HeadFusion = "mean", discard: float = 0.0, start: SupportsIndex = 0) -> Heat:
    """Attention rollout (Abnar and Zuidema 2020, section 3); it knows no class.

    Args:
        question: what to look at.
        fusion: how the heads of a layer become one; the mean in the paper.
        discard: share of each row's weakest attention that is left out, from 0, as in the paper, to below 1. (Gildenblat
            2020, jacobgil/vit-explain, leaves out the weakest of a whole map, which may leave rows without any.)
        start: the first layer that counts, 0 for all.
    """
    with capture(question.model, reduce=lambda maps: fused(maps, fusion)) as captured:
        question.model(question.pixels)
    flow = roll_out([captured[name] for name in captured.blocks(start)], discard=discard)
    pool = None if captured.pool is None else captured[captured.pool]
    return Heat(question.patches(read_back(question.model, flow, pool)))


def roll_out(maps: Sequence[Float[Tensor, "b n n"]], *, discard: float = 0.0) -> Float[Tensor, "b n n"]:
    """How much of each token (columns) has flown into each token (rows) after all layers; rows sum to one.

    A layer passes on half of a token by its residual connection and half by attention: (A + I) / 2.

    Args:
        maps: one for each layer, heads already fused; rows are brought to a sum of one.
        discard: share of each row's weakest attention that is left out.

    Raises:
        UsageError: `discard` is not from 0 to below 1, or there are no maps.
    """
    if not 0 <= real_number("discard", discard) < 1:
        raise UsageError(f"discard must be from 0 to below 1; {discard!r} came.")
    if not maps:
        raise UsageError("There are no attention maps to roll out.")
    tokens = maps[0].shape[-1]
    identity = torch.eye(tokens, dtype=maps[0].dtype, device=maps[0].device)
    flow = identity.expand_as(maps[0])
    for attention in maps:
        weakest = int(tokens * discard)
        if weakest:
            attention = attention.scatter(-1, attention.topk(weakest, largest=False).indices, 0.0)
        attention = attention / attention.sum(-1, keepdim=True).clamp(min=torch.finfo(attention.dtype).tiny)
        mixed = attention + identity
        flow = mixed / mixed.sum(-1, keepdim=True) @ flow
    return flow
