"""Cross-attention against PyTorch's own module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitral.errors import UsageError
from vitral.layers.cross import CrossAttention


def peer_of(ours: CrossAttention, width: int, memory_width: int, *, bias: bool) -> nn.MultiheadAttention:
    peer = nn.MultiheadAttention(
        width, ours.heads, kdim=memory_width, vdim=memory_width, bias=bias, batch_first=True, add_bias_kv=False
    ).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, 0.3)
        if memory_width == width:
            peer.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        else:
            for name, layer in (("q", ours.query), ("k", ours.key), ("v", ours.value)):
                getattr(peer, f"{name}_proj_weight").copy_(layer.weight)
        peer.out_proj.weight.copy_(ours.projection.weight)
        if bias:
            peer.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
            peer.out_proj.bias.copy_(ours.projection.bias)
    return peer


@pytest.mark.parametrize("memory_width", [12, 20])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_it_is_torchs(memory_width: int, bias: bool) -> None:
    ours = CrossAttention(12, 3, memory_width=memory_width, bias=bias).eval()
    peer = peer_of(ours, 12, memory_width, bias=bias)
    asking, memory = torch.randn(2, 4, 12), torch.randn(2, 9, memory_width)
    torch.testing.assert_close(ours(asking, memory), peer(asking, memory, memory)[0], atol=1e-5, rtol=1e-5)
    places = memory + torch.randn(1, 9, memory_width)
    torch.testing.assert_close(ours(asking, places, memory), peer(asking, places, memory)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masks_and_biases_are_torchs() -> None:
    ours = CrossAttention(12, 3).eval()
    peer = peer_of(ours, 12, 12, bias=True)
    asking, memory = torch.randn(2, 4, 12), torch.randn(2, 9, 12)
    present = torch.arange(9) < torch.tensor([[9], [5]])
    expected = peer(asking, memory, memory, key_padding_mask=~present)[0]
    found = ours(asking, memory, bias=present[:, None, None, :])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:], ours(asking[1:], memory[1:, :5]), atol=1e-5, rtol=1e-5)  # as if it were not there
    bias = torch.randn(2, 3, 4, 9)
    expected = peer(asking, memory, memory, attn_mask=bias.flatten(0, 1))[0]
    torch.testing.assert_close(ours(asking, memory, bias=bias), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_may_ask_in_fewer_channels() -> None:
    """Half the width, one head, in the words of Vaswani et al., equation 1."""
    ours = CrossAttention(12, 1, inner=6)
    asking, memory = torch.randn(2, 4, 12), torch.randn(2, 9, 12)
    weights = torch.softmax(ours.query(asking) @ ours.key(memory).transpose(1, 2) / 6**0.5, dim=-1)
    torch.testing.assert_close(ours(asking, memory), ours.projection(weights @ ours.value(memory)), atol=1e-5, rtol=1e-5)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="12 channels of queries cannot be shared among 5 heads"):
        CrossAttention(12, 5)
