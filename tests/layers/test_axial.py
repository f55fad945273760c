"""Axial attention against one line at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitral.layers.attention import SelfAttention
from vitral.layers.axial import AxialAttention


def stirred(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module.eval()


def in_torch(attention: SelfAttention, line: Tensor) -> Tensor:
    """The same attention as PyTorch's own module computes it."""
    width, heads = attention.projection.in_features, attention.heads
    peer = nn.MultiheadAttention(width, heads, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(attention.qkv.weight)
        peer.in_proj_bias.copy_(attention.qkv.bias)
        peer.out_proj.weight.copy_(attention.projection.weight)
        peer.out_proj.bias.copy_(attention.projection.bias)
    return peer(line, line, line, need_weights=False)[0]


@torch.no_grad()
def test_first_every_row_then_every_column() -> None:
    attention = stirred(AxialAttention(12, 3))
    rows, columns = 4, 5
    tokens = torch.randn(2, rows * columns, 12)
    laid = tokens.view(2, rows, columns, 12).clone()
    for row in range(rows):
        laid[:, row] = in_torch(attention.rows, laid[:, row])
    for column in range(columns):
        laid[:, :, column] = in_torch(attention.columns, laid[:, :, column])
    torch.testing.assert_close(attention(tokens, (rows, columns)), laid.flatten(1, 2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_step_sees_the_cross_and_both_see_everything() -> None:
    attention = stirred(AxialAttention(8, 2, qkv_bias=False))
    tokens = torch.randn(1, 30, 8)
    changed = tokens.clone()
    changed[0, 2 * 6 + 3] += 1  # row 2, column 3 of 5 × 6
    moved = (attention(changed, (5, 6)) - attention(tokens, (5, 6))).abs().amax(-1).view(5, 6)
    assert (moved > 1e-6).all()
    along = (attention.rows(changed.view(5, 6, 8)) - attention.rows(tokens.view(5, 6, 8))).abs().amax(-1) > 1e-6
    assert along[2].all()
    assert along.sum() == 6


@torch.no_grad()
def test_a_grid_of_one_row_is_attention_and_then_attention_to_oneself() -> None:
    attention = stirred(AxialAttention(8, 2))
    tokens = torch.randn(2, 7, 8)
    alone = attention.columns(attention.rows(tokens).reshape(14, 1, 8)).view(2, 7, 8)
    torch.testing.assert_close(attention(tokens, (1, 7)), alone)
