"""Gradients against finite differences, integrals against their closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.explanation.conftest import question, tiny
from tests.parity.peers import pictures
from vitral.errors import UsageError
from vitral.explanation.gradients import integrated_gradients, saliency, smoothgrad


def linear(target_weights: Tensor) -> Any:
    """A score that is linear in the patches' tokens, and so in the pixels, of a network without blocks' influence."""

    def score(output: Any) -> Tensor:
        return (output.tokens * target_weights).sum((1, 2))

    return score


@pytest.fixture(scope="module")
def plain() -> Any:
    """A network that is linear in its pixels: blocks that add nothing, and no norm behind them."""
    model = tiny(depth=1, final_norm=False)
    block: Any = model.blocks[0]
    with torch.no_grad():
        for layer in (block.attention.projection, block.mlp.down):
            layer.weight.zero_()
            layer.bias.zero_()
    return model


def test_saliency_is_the_greatest_slope_of_a_pixel() -> None:
    model, pixels = tiny(depth=2).double(), pictures(32, 48).double()
    found = saliency(question(model, pixels, [3])).values[0]
    for y, x in ((0, 0), (17, 30), (31, 47)):
        slopes = []
        for channel in range(3):
            ends = []
            for step in (1e-5, -1e-5):
                moved = pixels.clone()
                moved[0, channel, y, x] += step
                ends.append(model(moved).logits[0, 3].item())
            slopes.append(abs(ends[0] - ends[1]) / 2e-5)
        assert found[y, x].item() == pytest.approx(max(slopes), rel=1e-4)


def test_smoothgrad_is_the_mean_over_noisy_copies() -> None:
    model, pixels = tiny(depth=2), pictures(32, 48)
    found = smoothgrad(question(model, pixels, [3]), samples=5, noise=0.2, seed=4).values
    generator = torch.Generator().manual_seed(4)
    deviation, total = 0.2 * (pixels.max() - pixels.min()), torch.zeros_like(pixels)
    for _ in range(5):
        noisy = (pixels + torch.randn(pixels.shape, generator=generator) * deviation).requires_grad_()
        total += torch.autograd.grad(model(noisy).logits[0, 3], noisy)[0]
    assert torch.allclose(found, (total / 5).abs().amax(1), rtol=1e-4, atol=1e-6)


def test_smoothgrad_of_a_linear_score_is_its_saliency(plain: Any) -> None:
    asked = question(plain, pictures(32, 48, 2), linear(torch.randn(25, 32)))
    assert torch.allclose(smoothgrad(asked, samples=3).values, saliency(asked).values, rtol=1e-3, atol=1e-4)


def test_integrated_gradients_of_a_linear_score_are_gradient_times_input(plain: Any) -> None:
    pixels = pictures(32, 48, 2)
    asked = question(plain, pixels, linear(torch.randn(25, 32)))
    differentiable = pixels.clone().requires_grad_()
    [gradient] = torch.autograd.grad(asked.logit(plain(differentiable)).sum(), differentiable)
    found = integrated_gradients(asked, steps=1)
    assert torch.allclose(found.values, (gradient * pixels).sum(1), rtol=1e-3, atol=1e-3)
    assert found.notes["completeness_gap"].max() < 1e-3


@pytest.mark.parametrize("baseline", ["grey", "black"])
def test_integrated_gradients_are_complete_to_a_hundredth(baseline: Any) -> None:
    model, pixels = tiny(), pictures(32, 48, 3)
    asked = question(model, pixels, [0, 3, 6])
    object.__setattr__(asked, "black", torch.full((3, 1, 1), -1.5))
    found = integrated_gradients(asked, baseline=baseline, max_steps=4096)
    start = torch.zeros_like(pixels) if baseline == "grey" else torch.full_like(pixels, -1.5)
    difference = (asked.logit(model(pixels)) - asked.logit(model(start))).detach()
    missing = (found.values.sum((1, 2)) - difference).abs() / difference.abs()
    assert missing.max() <= 0.01
    assert torch.allclose(found.notes["completeness_gap"], missing, atol=1e-5)


def test_integrated_gradients_follow_the_straight_way() -> None:
    """Against the plain sum of 4000 midpoints."""
    model, pixels = tiny(depth=1), pictures(32, 48)
    found = integrated_gradients(question(model, pixels, [3]), tolerance=1e-4, max_steps=2048).values[0]
    total = torch.zeros_like(pixels)
    for at in ((torch.arange(4000) + 0.5) / 4000).split(100):
        between = (at.view(-1, 1, 1, 1) * pixels).requires_grad_()
        total += torch.autograd.grad(model(between).logits[:, 3].sum(), between)[0].sum(0)
    expected = (total / 4000 * pixels)[0].sum(0)
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()


def test_the_gap_is_told_where_steps_do_not_suffice() -> None:
    found = integrated_gradients(question(tiny(), pictures(32, 48), [3]), steps=1, max_steps=1)
    assert found.notes["completeness_gap"][0] > 0.01


def test_bad_options_are_refused() -> None:
    asked = question(tiny(), pictures(32, 48), [3])
    with pytest.raises(UsageError, match="samples must be a whole number of at least 1; 0 came"):
        smoothgrad(asked, samples=0)
    with pytest.raises(UsageError, match="noise must be above 0"):
        smoothgrad(asked, noise=0.0)
    with pytest.raises(UsageError, match="steps must be a whole number"):
        integrated_gradients(asked, steps=-3)
    with pytest.raises(UsageError, match="tolerance must be above 0"):
        integrated_gradients(asked, tolerance=0.0)
