"""Whole numbers of every library are whole numbers, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vitral.base.numbers import all_finite, as_integer, whole_number
from vitral.errors import UsageError


@pytest.mark.parametrize("seven", [7, np.int64(7), np.uint8(7), np.array(7), torch.tensor(7)])
def test_a_whole_number_becomes_pythons_own(seven: Any) -> None:
    for found in (as_integer(seven), whole_number("steps", seven)):
        assert found == 7
        assert type(found) is int


@pytest.mark.parametrize("other", [True, np.True_, 7.0, np.float32(7), "7", None, [7], np.array([7, 7]), torch.tensor(7.0)])
def test_what_is_no_whole_number_is_refused(other: Any) -> None:
    assert as_integer(other) is None
    with pytest.raises(UsageError, match=r"steps must be a whole number of at least 1; .* came"):
        whole_number("steps", other)


def test_a_number_may_be_too_small() -> None:
    assert whole_number("workers", 0, least=0) == 0
    assert as_integer(np.int8(-3)) == -3
    with pytest.raises(UsageError, match="steps must be a whole number of at least 1; 0 came"):
        whole_number("steps", 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    all_finite("scores", np.zeros(3), np.ones((2, 2)))
    with pytest.raises(UsageError, match=r"The scores are not all finite \(NaN or infinity\)"):
        all_finite("scores", np.zeros(3), np.array([1.0, bad]))
