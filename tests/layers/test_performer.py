"""Attention by random features against the attention that it approximates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitral.errors import UsageError
from vitral.layers.attention import SelfAttention
from vitral.layers.performer import PerformerAttention, orthogonal_features, positive_features


def error(features: int, seed: int, spread: float = 0.5) -> float:
    """Relative error of a mix, against softmax attention in double precision."""
    generator = torch.Generator().manual_seed(5)
    queries, keys, values = (torch.randn(2, 3, 20, 8, generator=generator) for _ in range(3))
    attention = PerformerAttention(24, 3, features, seed=seed)
    exact = F.scaled_dot_product_attention(queries.double() * spread, keys.double() * spread, values.double())
    found = attention.mixed(queries * spread, keys * spread, values)
    return ((found - exact).norm() / exact.norm()).item()


def test_the_error_falls_as_features_grow() -> None:
    """As 1/√m: sixteen times the features, a quarter of the error."""
    few, more, many = (np.mean([error(count, seed) for seed in range(4)]) for count in (32, 512, 8192))
    assert 2.5 < few / more < 7
    assert 2.5 < more / many < 7
    assert many < 0.03


@torch.no_grad()
def test_with_many_features_it_is_softmax_attention() -> None:
    linear, softmax = PerformerAttention(16, 2, 8192), SelfAttention(16, 2)
    linear.load_state_dict({**softmax.state_dict(), "features": linear.features})
    tokens = torch.randn(2, 30, 16) / 2
    torch.testing.assert_close(linear(tokens), softmax(tokens), atol=0.003, rtol=0)
    assert softmax(tokens).abs().max() > 0.2


def test_a_product_of_features_is_the_kernel() -> None:
    """Lemma 1: the mean over w of exp(w·q − |q|²/2) · exp(w·k − |k|²/2) is exp(q·k), here up to a factor for all."""
    vectors = torch.as_tensor(orthogonal_features(2**17, 4, 0))
    queries, keys = torch.randn(1, 1, 5, 4) / 2, torch.randn(1, 1, 6, 4) / 2
    found = positive_features(queries, vectors, together=False) @ positive_features(keys, vectors, together=True).mT
    expected = (queries @ keys.mT).exp()
    torch.testing.assert_close(
        found / found.sum(-1, keepdim=True), expected / expected.sum(-1, keepdim=True), rtol=0.02, atol=0
    )


def test_features_are_orthogonal_and_each_is_gaussian() -> None:
    vectors = orthogonal_features(20, 8, seed=3)
    assert vectors.shape == (20, 8)
    for block in (vectors[:8], vectors[8:16], vectors[16:]):
        products = block @ block.T
        np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-5)
    many = orthogonal_features(40_000, 8, seed=3).astype(np.float64)
    np.testing.assert_allclose(many.T @ many / len(many), np.eye(8), atol=0.03)
    np.testing.assert_allclose(np.square(many).sum(1).mean(), 8, rtol=0.02)  # χ² of 8 degrees
    np.testing.assert_allclose(np.square(many).sum(1).var(), 16, rtol=0.05)


def test_orthogonal_features_err_less_than_independent_ones() -> None:
    """Theorem 2, for sixteen features of heads of sixteen channels: an error of 0.86 of the independent ones', or less."""
    query = key = np.full(16, 0.1)  # of length 0.4

    def mean_error(orthogonal: bool) -> float:
        estimates = []
        for seed in range(4000):
            drawn = orthogonal_features(16, 16, seed) if orthogonal else np.random.default_rng(seed).normal(size=(16, 16))
            estimates.append(np.exp(drawn @ (query + key) - query @ query / 2 - key @ key / 2).mean())
        return float(np.square(np.array(estimates) - np.exp(query @ key)).mean())

    independent = mean_error(False)
    np.testing.assert_allclose(independent, np.exp(0.64 + 0.32) * (1 - np.exp(-0.64)) / 16, rtol=0.1)
    assert mean_error(True) < 0.9 * independent


def test_the_same_seed_is_the_same_attention() -> None:
    first, again, other = (PerformerAttention(16, 2, 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)
    other.redraw(1)
    assert torch.equal(first.features, other.features)
    assert "features" in first.state_dict()


@pytest.mark.parametrize("spread", [0.0, 30.0])
def test_extreme_logits_stay_finite_with_their_gradients(spread: float) -> None:
    attention = PerformerAttention(16, 2, 32)
    tokens = (torch.randn(2, 12, 16) * spread).requires_grad_()
    with torch.no_grad():
        attention.qkv.weight.mul_(10)
    mixed = attention(tokens)
    mixed.square().sum().backward()
    assert torch.isfinite(mixed).all()
    assert torch.isfinite(tokens.grad).all()


@torch.no_grad()
def test_no_token_counts_more_by_its_place() -> None:
    attention, order = PerformerAttention(16, 2, 32), torch.randperm(9)
    tokens = torch.randn(2, 9, 16)
    torch.testing.assert_close(attention(tokens[:, order]), attention(tokens)[:, order])
    alone = attention(tokens[:1])
    torch.testing.assert_close(alone, attention(tokens)[:1], atol=1e-6, rtol=1e-5)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="features must be a whole number of at least 1; 0 came"):
        PerformerAttention(16, 2, 0)
    with pytest.raises(UsageError, match="width 16 is not a multiple of heads 3"):
        PerformerAttention(16, 3)
