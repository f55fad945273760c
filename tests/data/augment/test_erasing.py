"""Erasing takes out rectangles of the size, shape and number that the paper asks for."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from vitral.base.chance import generator_of
from vitral.data.augment.erasing import Erasing
from vitral.errors import UnknownNameError, UsageError


def unchecked(kind: type, **fields: Any) -> None:
    """Make one as outside the tests, where no types are checked."""
    inspect.unwrap(kind.__init__)(object.__new__(kind), **fields)  # type: ignore[misc]


def test_area_and_shape_are_uniform_in_their_ranges() -> None:
    erasing = Erasing(area=(0.02, 0.2), aspect=(0.5, 2.0))  # all of which fit
    windows = np.array([erasing.window((1000, 1000), generator_of(key)) for key in range(1500)])
    area, shape = windows[:, 2] * windows[:, 3] / 1e6, np.log(windows[:, 2] / windows[:, 3])
    assert stats.kstest(area, stats.uniform(0.02, 0.18).cdf).pvalue > 1e-3
    assert stats.kstest(shape, stats.uniform(-np.log(2), 2 * np.log(2)).cdf).pvalue > 1e-3
    where = windows[:, 0] / (1001 - windows[:, 2])
    assert stats.kstest(where, stats.uniform(0, 1).cdf).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["pixel", "constant"])
def test_exactly_the_rectangle_is_overwritten_in_a_copy(mode: Any) -> None:
    pixels = torch.full((3, 40, 50), 7.0)
    erasing = Erasing(probability=1.0, mode=mode)
    for key in range(20):
        rng = generator_of(key)
        rng.random()
        window = erasing.window((40, 50), rng)
        assert window is not None
        top, left, height, width = window
        inside = torch.zeros(40, 50, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        erased = erasing(pixels, generator_of(key))
        assert torch.equal((erased != 7).all(0), inside)
        assert (erased[:, ~inside] == 7).all()
        if mode == "constant":
            assert (erased[:, inside] == 0).all()
    assert (pixels == 7).all()


def test_the_noise_is_standard_normal_and_differs_in_every_pixel_and_channel() -> None:
    erased = Erasing(probability=1.0, area=(0.3, 0.3))(torch.full((3, 100, 100), 50.0), generator_of(3))
    noise = erased[erased < 20].numpy()
    assert stats.kstest(noise, stats.norm.cdf).pvalue > 1e-3
    assert len(np.unique(noise)) > 0.99 * len(noise)


def test_it_happens_as_often_as_asked() -> None:
    pixels = torch.zeros(1, 32, 32)
    happened = sum(Erasing(probability=0.25)(pixels, generator_of(key)) is not pixels for key in range(400))
    assert stats.binomtest(happened, 400, 0.25).pvalue > 1e-3


def test_a_rectangle_that_never_fits_is_left_out() -> None:
    pixels = torch.ones(1, 4, 400)
    assert Erasing(probability=1.0, area=(0.9, 1.0), aspect=(0.9, 1.1))(pixels, generator_of(0)) is pixels


def test_a_field_out_of_its_range_is_refused() -> None:
    for wrong in ({"probability": -0.1}, {"area": (0.0, 0.5)}, {"area": (0.2, 1.5)}, {"aspect": (2.0, 1.0)}):
        with pytest.raises(UsageError):
            Erasing(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="pixel"):
        unchecked(Erasing, **vars(Erasing()) | {"mode": "pixels"})
