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


def masked(logits: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(logits + bias) row by row, where a row without anything to see is zero."""
    if bias is not None:
        logits = torch.where(bias, logits, -math.inf) if bias.dtype == torch.bool else logits + bias
    weights = torch.zeros_like(logits)
    for place in torch.cartesian_prod(*(torch.arange(side) for side in logits.shape[:3])).tolist():
        row = logits[tuple(place)]
        if (row > -math.inf).any():
            raised = (row - row.max()).exp()
            weights[tuple(place)] = raised / raised.sum()
    return weights


def biases() -> dict[str, Tensor | None]:
    hidden = torch.zeros(2, 1, 5, 7)
    hidden[..., 3], hidden[0, 0, 2], hidden[1, 0, 4, :-1] = -math.inf, -math.inf, -math.inf
    seen = torch.rand(1, 3, 5, 7) > 0.4
    seen[0, 1, 1] = False
    return {
        "none": None,
        "numbers": torch.randn(2, 3, 5, 7),
        "minus infinity": hidden,
        "whether seen": seen,
        "one row for all": torch.randn(1, 1, 1, 7),
        "nothing seen": torch.zeros(1, 1, 5, 7, dtype=torch.bool),
        "the least number": torch.full((1, 1, 5, 7), torch.finfo(torch.float32).min),
    }


@pytest.mark.parametrize("kind", biases())
@pytest.mark.parametrize("recording", [True, False])
def test_weights_are_the_map_that_is_mixed_with(kind: str, recording: bool) -> None:
    product, bias = ScaledDotProduct(0.7), biases()[kind]
    queries, keys, values = torch.randn(2, 3, 5, 4) * 3, torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)
    kept = [x.clone() for x in (queries, keys, values)] + ([] if bias is None else [bias.clone()])
    with torch.set_grad_enabled(recording):
        weights, mixed = product.weights(queries, keys, bias), product(queries, keys, values, bias)
    expected = masked((queries.double() @ keys.double().mT) * 0.7, bias)
    torch.testing.assert_close(weights.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(weights @ values, mixed, atol=1e-5, rtol=0)
    blind = expected.sum(-1) == 0
    assert not weights[blind].any()
    assert (weights.sum(-1)[~blind] - 1).abs().max() < 1e-6 if not blind.all() else kind == "nothing seen"
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, (queries, keys, values, bias), strict=False))


@pytest.mark.parametrize("kind", ["none", "numbers", "minus infinity", "whether seen"])
def test_gradients_through_the_weights_are_those_of_the_fused_kernel(kind: str) -> None:
    product, bias = ScaledDotProduct(0.7), biases()[kind]
    given = [torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)]
    queries, keys, values = (x.requires_grad_() for x in given)
    towards = torch.randn(2, 3, 5, 6)
    open_, fused = (
        torch.autograd.grad((mixed * towards).sum(), (queries, keys, values))
        for mixed in (product.weights(queries, keys, bias) @ values, product(queries, keys, values, bias))
    )
    for ours, theirs in zip(open_, fused, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("came", "found"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("recording", [True, False])
def test_weights_are_in_single_precision_or_better(came: torch.dtype, found: torch.dtype, recording: bool) -> None:
    queries, keys = torch.randn(2, 1, 2, 5, 4).to(came).unbind(0)
    bias = torch.randn(1, 2, 5, 5).to(came)
    with torch.set_grad_enabled(recording):
        weights = ScaledDotProduct(0.7).weights(queries, keys, bias)
        with torch.autocast("cpu", torch.bfloat16):
            recast = ScaledDotProduct(0.7).weights(queries, keys, bias)
    assert weights.dtype == recast.dtype == found
    exact = masked((queries.double() @ keys.double().mT) * 0.7, bias.double())
    precision = 1e-14 if came == torch.float64 else 2e-7
    assert (weights - exact).abs().max() < precision
    assert (recast - exact).abs().max() < precision


@pytest.mark.parametrize("recording", [True, False])
def test_large_logits_do_not_overflow_and_what_is_no_number_is_not_hidden(recording: bool) -> None:
    queries, keys = torch.zeros(1, 1, 2, 1), torch.tensor([[[[1.0], [2.0]]]])
    queries[0, 0, 0] = 1e4
    with torch.set_grad_enabled(recording):
        assert ScaledDotProduct(1.0).weights(queries, keys)[0, 0].tolist() == [[0, 1], [0.5, 0.5]]
        queries[0, 0, 0] = math.nan
        weights = ScaledDotProduct(1.0).weights(queries, keys, torch.zeros(1, 1, 2, 2))
    assert weights[0, 0, 0].isnan().all()
    assert weights[0, 0, 1].tolist() == [0.5, 0.5]
