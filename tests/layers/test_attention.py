"""Attention against softmax(QKᵀ)V written out by hand, and rotations against DINOv3's own code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.models.dinov3_vit import modeling_dinov3_vit

from vitral.layers.attention import ScaledDotProduct, SelfAttention
from vitral.layers.position import Rotary2d, rotate


def by_hand(
    attention: SelfAttention,
    tokens: Tensor,
    bias: Tensor | None = None,
    rotation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The same attention, one head at a time, in the words of Vaswani et al., equation 1."""
    inner = attention.qkv.out_features // 3
    k = inner // attention.heads
    shift = attention.qkv.bias
    if attention.keyless_bias:
        shift = torch.cat([attention.query_bias, torch.zeros(inner), attention.value_bias])
    projected = tokens @ attention.qkv.weight.T + (0 if shift is None else shift)
    mixed = []
    for head in range(attention.heads):
        queries, keys, values = (
            projected[..., part * inner + head * k : part * inner + (head + 1) * k] for part in range(3)
        )
        queries, keys = attention.query_norm(queries), attention.key_norm(keys)
        if rotation is not None:
            queries, keys = (modeling_rotation(x, rotation) for x in (queries, keys))
        logits = queries @ keys.transpose(1, 2) / math.sqrt(k)
        if bias is not None:
            logits = logits + bias[:, head]
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        mixed.append(weights @ values)
    return attention.projection(torch.cat(mixed, dim=-1))


def modeling_rotation(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    return modeling_dinov3_vit.apply_rotary_pos_emb(x, x, *rotation)[0]


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False},
        {"key_bias": False},
        {"qk_norm": ("layer", 1e-6)},
        {"qk_norm": ("rms", 1e-5)},
    ],
    ids=str,
)
def test_self_attention_is_softmax_written_out(options: dict) -> None:
    attention = randomised(SelfAttention(32, 4, **options))
    tokens = torch.randn(2, 9, 32)
    torch.testing.assert_close(attention(tokens), by_hand(attention, tokens), atol=1e-5, rtol=1e-5)


def test_self_attention_adds_the_bias_and_turns_the_patches() -> None:
    attention = randomised(SelfAttention(32, 4))
    tokens, bias, rotation = torch.randn(2, 8, 32), torch.randn(2, 4, 8, 8), Rotary2d(8)((2, 3), torch.zeros(1))
    plain = attention(tokens)
    for options in ({"bias": bias}, {"rotation": rotation}, {"bias": bias, "rotation": rotation}):
        came = attention(tokens, **options)
        torch.testing.assert_close(came, by_hand(attention, tokens, **options), atol=1e-5, rtol=1e-5)
        assert (came - plain).abs().max() > 0.05


def test_a_bias_of_minus_infinity_hides_a_token() -> None:
    product = ScaledDotProduct(0.5)
    queries, keys, values = torch.randn(3, 1, 2, 5, 4).unbind(0)
    bias = torch.zeros(1, 1, 5, 5)
    bias[..., 3] = -math.inf
    seen = [0, 1, 2, 4]
    expected = product(queries, keys[:, :, seen], values[:, :, seen])
    torch.testing.assert_close(product(queries, keys, values, bias), expected)


def test_attention_weights_are_dropped_in_training_only() -> None:
    product = ScaledDotProduct(0.5, dropout=0.5)
    queries, keys, values = torch.randn(3, 1, 2, 5, 4).unbind(0)
    assert not torch.equal(product.train()(queries, keys, values), product(queries, keys, values))
    assert torch.equal(product.eval()(queries, keys, values), product(queries, keys, values))


def test_keys_and_queries_may_be_of_different_numbers() -> None:
    product = ScaledDotProduct(0.7)
    queries, keys, values = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 5)
    expected = (queries @ keys.transpose(2, 3) * 0.7).softmax(-1) @ values
    torch.testing.assert_close(product(queries, keys, values), expected)


def test_rotate_is_dinov3s_and_leaves_the_tokens_before_the_patches() -> None:
    x, (cos, sin) = torch.randn(2, 3, 11, 16), Rotary2d(16)((2, 3), torch.zeros(1))
    theirs, _ = modeling_dinov3_vit.apply_rotary_pos_emb(x, x, cos, sin)
    turned = rotate(x, (cos, sin))
    assert torch.equal(turned, theirs)
    assert torch.equal(turned[:, :, :5], x[:, :, :5])


def test_a_rotation_keeps_lengths() -> None:
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    turned = rotate(x, Rotary2d(8)((2, 3), torch.zeros(1)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=1e-6)
