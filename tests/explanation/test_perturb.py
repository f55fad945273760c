"""Occlusion and RISE against brute force, window by window and mask by mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.explanation.conftest import question, tiny
from tests.parity.peers import pictures
from vitral.errors import UsageError
from vitral.explanation.perturb import _soft_masks, occlusion, rise


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 1), (3, 2)])
def test_occlusion_is_the_mean_fall_over_the_squares_that_hide_a_patch(window: int, stride: int) -> None:
    model, pixels = tiny(), pictures(32, 48, 2)
    found = occlusion(question(model, pixels, [3, 1]), window=window, stride=stride, batch_size=4).values
    for place, target in enumerate((3, 1)):
        picture = pixels[place : place + 1]
        whole = model(picture).logits.softmax(1)[0, target].item()
        falls: dict[tuple[int, int], list[float]] = {(row, column): [] for row in range(4) for column in range(6)}
        tops = sorted({*range(0, 4 - window + 1, stride), 4 - window})
        lefts = sorted({*range(0, 6 - window + 1, stride), 6 - window})
        for top in tops:
            for left in lefts:
                hidden = picture.clone()
                hidden[..., 8 * top : 8 * (top + window), 8 * left : 8 * (left + window)] = 0
                fall = whole - model(hidden).logits.softmax(1)[0, target].item()
                for row in range(top, top + window):
                    for column in range(left, left + window):
                        falls[row, column].append(fall)
        expected = torch.tensor([sum(one) / len(one) for one in falls.values()]).view(4, 6)
        assert (found[place] - expected).abs().max() < 1e-5


def test_occlusion_of_a_size_the_patch_does_not_divide() -> None:
    """The remainder that no patch covers is never looked at, so it is never hidden."""
    model, pixels = tiny(), pictures(37, 51)
    cut = pixels[..., :32, :48]
    found = occlusion(question(model, pixels, [3]), window=1).values
    assert torch.allclose(found, occlusion(question(model, cut, [3]), window=1).values, atol=1e-6)


def test_rise_is_the_mean_of_masks_weighted_with_their_probability() -> None:
    model, pixels = tiny(), pictures(32, 48, 2)
    found = rise(question(model, pixels, [3, 1]), masks=10, cells=3, keep=0.4, seed=7, batch_size=4).values
    generator, expected, coverage = torch.Generator().manual_seed(7), torch.zeros(2, 32, 48), torch.zeros(32, 48)
    for count in (4, 4, 2):
        for mask in _soft_masks(count, 3, 0.4, (32, 48), generator):
            coverage += mask
            for place, target in enumerate((3, 1)):
                expected[place] += model(pixels[place : place + 1] * mask).logits.softmax(1)[0, target].detach() * mask
    assert torch.allclose(found, expected / coverage, rtol=1e-4, atol=1e-5)


def test_rise_masks_are_smooth_random_and_as_bright_as_asked() -> None:
    masks = _soft_masks(400, 7, 0.3, (56, 70), torch.Generator().manual_seed(0))
    assert masks.shape == (400, 56, 70)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert masks.mean().item() == pytest.approx(0.3, abs=0.01)
    assert masks.mean(0).std() < 0.03  # every place is seen as often
    assert masks.diff(dim=1).abs().max() <= 1 / 8 + 1e-5  # bilinear over cells of 8 × 10 pixels
    assert F.avg_pool2d(masks, 8).std() > 0.2


def test_rise_of_a_score_that_is_always_the_same_is_flat() -> None:
    """Whatever the masks happened to cover, heat that says nothing shows nothing."""
    asked = question(tiny(), pictures(32, 48), lambda output: output.pooled[:, 0] * 0 + 0.7)
    assert torch.allclose(rise(asked, masks=40).values, torch.full((1, 32, 48), 0.7), atol=1e-6)


def test_rise_depends_on_its_seed_alone() -> None:
    asked = question(tiny(), pictures(32, 48), [3])
    first, again, other = (rise(asked, masks=20, seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bad_options_are_refused() -> None:
    asked = question(tiny(), pictures(32, 48), [3])
    with pytest.raises(UsageError, match="window=5 does not fit a grid of 4 × 6 patches"):
        occlusion(asked, window=5)
    with pytest.raises(UsageError, match="stride must be a whole number"):
        occlusion(asked, stride=0)
    with pytest.raises(UsageError, match="stride=3 would leave patches that no square of window=2 hides"):
        occlusion(asked, window=2, stride=3)
    with pytest.raises(UsageError, match="keep must be between 0 and 1"):
        rise(asked, keep=1.0)
    with pytest.raises(UsageError, match="masks must be a whole number"):
        rise(asked, masks=0)
