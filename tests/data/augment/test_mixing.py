"""Pairs are mixed by shares of the right distribution, whatever batch they are in."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import mixup as timm_mixup
from torch import Tensor

from vitral.base.chance import generator_of
from vitral.data.augment.chain import Augmentation
from vitral.data.augment.mixing import cut_window, mix
from vitral.errors import UsageError


def batch(rows: int, side: int = 8) -> tuple[Tensor, Tensor]:
    """Row i is i everywhere, and certainly of class i."""
    pixels = torch.arange(rows, dtype=torch.float32)[:, None, None, None].expand(rows, 3, side, side).contiguous()
    return pixels, torch.eye(rows)


def generators(pairs: int, seed: int = 0) -> list[np.random.Generator]:
    return [generator_of(seed, pair) for pair in range(pairs)]


def test_mixup_shares_are_beta_and_pixels_and_targets_agree() -> None:
    pixels, targets = batch(1200, 2)
    mixed, soft = mix(pixels, targets, generators(600), Augmentation(mixup=0.4))
    own = soft[torch.arange(1200), torch.arange(1200)]
    other = soft[torch.arange(1200), torch.arange(1200) ^ 1]
    torch.testing.assert_close(own + other, torch.ones(1200))
    torch.testing.assert_close(own[0::2], own[1::2], rtol=0, atol=0)  # both of a pair by the same share
    expected = own * torch.arange(1200) + other * (torch.arange(1200) ^ 1)
    torch.testing.assert_close(mixed, expected[:, None, None, None].expand_as(mixed), atol=1e-3, rtol=1e-5)
    assert stats.kstest(own[0::2].numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


def test_cutmix_exchanges_one_rectangle_and_its_true_area_is_the_share() -> None:
    pixels, targets = batch(400, 16)
    mixed, soft = mix(pixels, targets, generators(200), Augmentation(cutmix=1.0))
    for pair in range(200):
        one, two = mixed[2 * pair], mixed[2 * pair + 1]
        foreign = one == 2 * pair + 1
        assert torch.equal(foreign, two == 2 * pair)  # the same pixels, in all channels
        assert ((one == 2 * pair) | foreign).all()
        rows, columns = foreign[0].any(1), foreign[0].any(0)
        assert torch.equal(foreign[0], rows[:, None] & columns)  # a rectangle
        share = 1 - foreign[0].float().mean()
        assert soft[2 * pair, 2 * pair] == pytest.approx(float(share), abs=1e-6)
        assert soft[2 * pair, 2 * pair + 1] == pytest.approx(1 - float(share), abs=1e-6)
        assert soft[2 * pair + 1, 2 * pair + 1] == pytest.approx(float(share), abs=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (17, 40)])
def test_the_rectangle_is_timms_for_the_same_middle(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for key, keep in enumerate(np.linspace(0, 1, 23).tolist()):
        down, across = generator_of(key).random(2).tolist()
        middles = [int(size[0] * down), int(size[1] * across)]
        monkeypatch.setattr(timm_mixup.np.random, "randint", Mock(side_effect=middles))
        theirs = tuple(int(edge) for edge in timm_mixup.rand_bbox((3, *size), keep))
        assert cut_window(size, keep, generator_of(key)) == theirs


def test_a_rectangles_middle_is_uniform() -> None:
    windows = np.array([cut_window((101, 101), 1 - 1e-4, generator_of(key)) for key in range(2000)])  # one pixel
    assert ((windows[:, 1] - windows[:, 0]) == 1).all()
    assert stats.kstest((windows[:, 0] + 0.5) / 101, stats.uniform(0, 1).cdf).pvalue > 1e-3
    assert stats.kstest((windows[:, 2] + 0.5) / 101, stats.uniform(0, 1).cdf).pvalue > 1e-3


def kinds(augmentation: Augmentation, pairs: int = 400) -> tuple[int, int, int]:
    """How many pairs were left alone, blended, and cut."""
    pixels, targets = batch(2, 32)
    counts = [0, 0, 0]
    for pair in range(pairs):
        mixed, soft = mix(pixels, targets, [generator_of(9, pair)], augmentation)
        if torch.equal(mixed, pixels):
            counts[0] += 1
            assert torch.equal(soft, targets)
        else:
            counts[2 if set(mixed.unique().tolist()) == {0.0, 1.0} else 1] += 1
    return counts[0], counts[1], counts[2]


def test_pairs_are_mixed_as_often_as_asked_and_by_cutmix_as_often() -> None:
    # α = 20 keeps shares away from 0 and 1, where a mixed pair looks like one left alone.
    alone, blended, cut = kinds(Augmentation(mixup=20.0, cutmix=20.0, mix_probability=0.6, cutmix_share=0.3))
    assert stats.binomtest(alone, 400, 0.4).pvalue > 1e-3
    assert stats.binomtest(cut, blended + cut, 0.3).pvalue > 1e-3
    assert kinds(Augmentation(mixup=20.0), 50) == (0, 50, 0)
    assert kinds(Augmentation(cutmix=20.0), 50) == (0, 0, 50)
    assert kinds(Augmentation(mixup=20.0, cutmix=20.0, cutmix_share=0.0), 50) == (0, 50, 0)


def test_a_pair_does_not_know_which_batch_it_is_in() -> None:
    pixels, targets = torch.randn(12, 3, 16, 16), torch.rand(12, 5)
    augmentation = Augmentation(mixup=0.8, cutmix=1.0, mix_probability=0.8)
    whole = mix(pixels, targets, generators(6), augmentation)
    keys = generators(6)
    pieces = [mix(pixels[at : at + 4], targets[at : at + 4], keys[at // 2 : at // 2 + 2], augmentation) for at in (0, 4, 8)]
    assert torch.equal(whole[0], torch.cat([piece[0] for piece in pieces]))
    assert torch.equal(whole[1], torch.cat([piece[1] for piece in pieces]))


def test_an_odd_last_row_and_what_came_stay_as_they_are() -> None:
    pixels, targets = torch.randn(5, 3, 8, 8), torch.rand(5, 4)
    before = pixels.clone(), targets.clone()
    mixed, soft = mix(pixels, targets, generators(2), Augmentation(mixup=1.0))
    assert torch.equal(mixed[4], pixels[4])
    assert torch.equal(soft[4], targets[4])
    assert not torch.equal(mixed[:4], pixels[:4])
    assert torch.equal(pixels, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(mixup=1.0, mix_probability=0.0)])
def test_nothing_is_mixed_where_nothing_is_asked_for(augmentation: Augmentation) -> None:
    pixels, targets = batch(4)
    mixed, soft = mix(pixels, targets, generators(2), augmentation)
    assert mixed is pixels
    assert soft is targets
    assert not augmentation.mixes


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_generators_is_refused(count: Any) -> None:
    pixels, targets = batch(4)
    with pytest.raises(UsageError, match="needs 2 generators"):
        mix(pixels, targets, generators(count), Augmentation(mixup=1.0))
