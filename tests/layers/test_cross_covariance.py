"""Attention among channels, against its equation and a peer."""

from __future__ import annotations

import pytest
import torch
from timm.models.xcit import XCA
from torch import nn

from vitral.layers.cross_covariance import CrossCovarianceAttention

WIDTH, HEADS = 24, 3


def stirred(attention: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0.3, 0.5)
    return attention.eval()


def by_the_equation(attention: CrossCovarianceAttention, tokens: torch.Tensor) -> torch.Tensor:
    """Equations 3 and 4, one picture and one head at a time, in double precision."""
    weight, bias = attention.qkv.weight.double(), attention.qkv.bias.double()
    answers = []
    for picture in tokens.double():
        queries, keys, values = (picture @ weight.T + bias).split(WIDTH, dim=1)
        heads = []
        for head in range(HEADS):
            mine = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            asking = queries[:, mine] / queries[:, mine].norm(dim=0)
            asked = keys[:, mine] / keys[:, mine].norm(dim=0)
            weights = (attention.temperature[head].double() * asking.T @ asked).softmax(-1)
            heads.append(values[:, mine] @ weights.T)
        answers.append(torch.cat(heads, dim=1) @ attention.projection.weight.double().T + attention.projection.bias.double())
    return torch.stack(answers)


@pytest.mark.parametrize("recorded", [False, True])
def test_it_is_the_papers_equation(recorded: bool) -> None:
    attention = stirred(CrossCovarianceAttention(WIDTH, HEADS))
    tokens = torch.randn(2, 15, WIDTH)
    with torch.set_grad_enabled(recorded):
        found = attention(tokens, (3, 5))
    torch.testing.assert_close(found.double(), by_the_equation(attention, tokens), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers_as_timm(bias: bool) -> None:
    theirs = stirred(XCA(WIDTH, HEADS, qkv_bias=bias))
    ours = CrossCovarianceAttention(WIDTH, HEADS, qkv_bias=bias)
    names = {"proj.weight": "projection.weight", "proj.bias": "projection.bias"}
    ours.load_state_dict({names.get(name, name): tensor for name, tensor in theirs.state_dict().items()})
    for count in (1, 7, 50):
        tokens = torch.randn(2, count, WIDTH)
        torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_may_come_in_any_order() -> None:
    attention = stirred(CrossCovarianceAttention(WIDTH, HEADS))
    tokens, order = torch.randn(1, 12, WIDTH), torch.randperm(12)
    torch.testing.assert_close(attention(tokens[:, order], (3, 4)), attention(tokens)[:, order], atol=1e-5, rtol=0)


@torch.no_grad()
def test_its_product_sees_channels_in_the_place_of_tokens() -> None:
    attention = stirred(CrossCovarianceAttention(WIDTH, HEADS))
    seen: list[tuple[torch.Tensor, ...]] = []
    attention.product.register_forward_pre_hook(lambda _, given: seen.append(given))
    attention(torch.randn(2, 10, WIDTH))
    queries, keys, values = seen[0]
    assert queries.shape == keys.shape == values.shape == (2, HEADS, WIDTH // HEADS, 10)
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(2, HEADS, 8))
    torch.testing.assert_close(queries.norm(dim=-1), attention.temperature[:, :, 0].abs().expand(2, HEADS, 8))
    weights = attention.product.weights(queries, keys)
    assert weights.shape == (2, HEADS, 8, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, 8))


def test_gradients_are_those_of_the_equation() -> None:
    attention = stirred(CrossCovarianceAttention(WIDTH, HEADS))
    tokens = torch.randn(2, 6, WIDTH, requires_grad=True)
    probe = torch.randn(2, 6, WIDTH)
    parameters = [tokens, *attention.parameters()]
    ours = torch.autograd.grad((attention(tokens) * probe).sum(), parameters)
    theirs = torch.autograd.grad((by_the_equation(attention, tokens) * probe).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_of_one_colour_has_no_nan(dtype: torch.dtype) -> None:
    attention = CrossCovarianceAttention(WIDTH, HEADS, qkv_bias=False).to(dtype)
    tokens = torch.zeros(1, 4, WIDTH, dtype=dtype, requires_grad=True)
    attention(tokens).sum().backward()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()
    with torch.no_grad():
        assert torch.equal(attention(tokens), attention.projection.bias.expand(1, 4, -1))


@torch.no_grad()
def test_the_answer_of_the_tokens_is_left_alone() -> None:
    attention, tokens = stirred(CrossCovarianceAttention(WIDTH, HEADS)), torch.randn(2, 9, WIDTH)
    before = tokens.clone()
    assert torch.equal(attention(tokens), attention(tokens))
    assert torch.equal(tokens, before)
