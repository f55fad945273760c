"""The seam between a vision transformer and the kinds of attention: a name, and what it stands for.

Whatever the kind, a block hands its attention tokens and gets tokens. What they cost, of n tokens of d channels on a grid of
√n × √n, in multiplications beside those of the projections:

    kind                looks at                                   multiplications    source
    global              every token                                2 n² d             Vaswani et al. 2017
    window              its window of w × w, shifted in turns      2 n w² d           Liu et al. 2021
    axial               its row, then its column                   4 n √n d           Ho et al. 2019
    spatial_reduction   a convolution of r × r tokens              2 n² d / r²        Wang et al. 2021
    performer           a sum over all tokens, in m features       4 n m d            Choromanski et al. 2021
    cross_covariance    channels look at channels, in h heads      2 n d² / h         El-Nouby et al. 2021

`benchmarks/attention_kinds.py` measures them, and docs/guides/attention_kinds.md shows what was measured.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from vitral.errors import UsageError
from vitral.layers.attention import SelfAttention
from vitral.layers.axial import AxialAttention
from vitral.layers.cross_covariance import CrossCovarianceAttention
from vitral.layers.performer import PerformerAttention
from vitral.layers.spatial_reduction import SpatialReductionAttention
from vitral.layers.window import OffsetTable, WindowAttention

__all__ = ["ON_A_GRID", "Kind", "attention_of"]

Kind = Literal["global", "window", "axial", "spatial_reduction", "performer", "cross_covariance"]
"""Names of the kinds that a vision transformer may have."""

ON_A_GRID: frozenset[Kind] = frozenset({"window", "axial", "spatial_reduction"})
"""Kinds that ask where a token lies, so that nothing may stand before the patches."""


def attention_of(
    kind: Kind,
    width: int,
    heads: int,
    *,
    block: int,
    window: int = 7,
    reduction: int = 2,
    features: int = 128,
    qkv_bias: bool = True,
    dropout: float = 0.0,
) -> nn.Module:
    """The attention of one block. Its `forward` takes tokens and, unless it is global, the grid they lie on.

    Args:
        kind: which; see the table above.
        width: channels d of a token.
        heads: number of heads h.
        block: the block's number, from 0: windows stay in even blocks and are shifted by half in odd ones, and the
            random features of a Performer are of a seed of its own in each.
        window: tokens along a side of a window, for "window".
        reduction: tokens along a side of what keys are made of, for "spatial_reduction".
        features: random features per head, for "performer".
        qkv_bias: whether the projections to queries, keys and values have a bias.
        dropout: probability of dropping attention weights and outputs in training; a Performer has no weights to drop.

    Raises:
        UsageError: dropout in windows, which have none.
    """
    if kind == "axial":
        return AxialAttention(width, heads, qkv_bias=qkv_bias, dropout=dropout)
    if kind == "cross_covariance":
        return CrossCovarianceAttention(width, heads, qkv_bias=qkv_bias, dropout=dropout)
    if kind == "performer":
        return PerformerAttention(width, heads, features, seed=block, qkv_bias=qkv_bias, dropout=dropout)
    if kind == "window":
        if dropout:
            raise UsageError(f"Attention in windows has no dropout; {dropout} came. Use drop_path instead.")
        shift = window // 2 * (block % 2)
        table = OffsetTable((window, window), heads)
        return WindowAttention(width, heads, table, (shift, shift), qkv_bias=qkv_bias)
    if kind == "spatial_reduction":
        return SpatialReductionAttention(
            width, heads, reduction, qkv_bias=qkv_bias, dropout=dropout, attention_dropout=dropout
        )
    return SelfAttention(width, heads, qkv_bias=qkv_bias, dropout=dropout)
