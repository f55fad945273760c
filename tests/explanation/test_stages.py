"""Steps between grids, against padding and convolving them, and against counting cells."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitral.errors import UsageError
from vitral.explanation.stages import cell_of, coarser, moved, steps
from vitral.models.catalogue import create_model

SIDES = st.integers(1, 40)


@pytest.mark.parametrize("step", [1, 2, 4, 8])
@given(rows=SIDES, columns=SIDES)
@settings(deadline=None, max_examples=25)
def test_a_step_is_found_that_leads_from_one_grid_to_the_other(step: int, rows: int, columns: int) -> None:
    for coarse in ((-(-rows // step), -(-columns // step)), (max(1, rows // step), max(1, columns // step))):
        for many, few, found in zip((rows, columns), coarse, steps((rows, columns), coarse), strict=True):
            assert few in (-(-many // found), many // found)
    if min(rows, columns) >= 3 * step:  # larger steps would not lead to as many cells
        assert steps((rows, columns), (-(-rows // step), -(-columns // step))) == (step, step)


def test_a_merged_token_is_the_mean_of_those_under_it() -> None:
    """On a grid padded with nothing that counts: sums of windows, divided by how many cells of the grid a window holds."""
    fine, coarse = (5, 7), (3, 4)
    values = torch.rand(2, 12)
    found = moved(values, coarse, fine)
    held = F.avg_pool2d(F.pad(torch.ones(1, 1, *fine), (0, 1, 0, 1)), 2, divisor_override=1)
    expected = (values.view(2, 1, *coarse) / held).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, 0, :5, :7]
    torch.testing.assert_close(found, expected.flatten(1))
    torch.testing.assert_close(found.sum(-1), values.sum(-1))


def test_what_no_convolution_reached_gets_nothing() -> None:
    found = moved(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), (2, 2), (5, 5)).view(5, 5)
    assert found[:, 4].abs().max() == found[4].abs().max() == 0
    assert found[:4, :4].tolist() == [[0.25, 0.25, 0.5, 0.5]] * 2 + [[1, 1, 2, 2]] * 2


@given(now=st.tuples(SIDES, SIDES), onto=st.tuples(SIDES, SIDES), before=st.integers(0, 2))
@settings(deadline=None, max_examples=100)
def test_nothing_is_lost_between_any_two_grids(now: tuple[int, int], onto: tuple[int, int], before: int) -> None:
    values = torch.rand(1, before + now[0] * now[1], dtype=torch.float64)
    found = moved(values, now, onto)
    assert found.shape == (1, before + onto[0] * onto[1])
    assert torch.equal(found[:, :before], values[:, :before])
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(), values.sum())


@given(rows=SIDES, columns=SIDES, step=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_what_is_summed_over_cells_is_a_pooling(rows: int, columns: int, step: int, seed: int) -> None:
    coarse = (-(-rows // step), -(-columns // step))
    if steps((rows, columns), coarse) != (step, step):
        return  # small grids are explained by several steps, and the least is taken
    values = torch.rand(1, 1, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    padded = F.pad(values, (0, -columns % step, 0, -rows % step))
    expected = F.avg_pool2d(padded, step, divisor_override=1)
    torch.testing.assert_close(moved(values.flatten(1), (rows, columns), coarse), expected.flatten(1))


def test_the_grid_of_so_many_cells() -> None:
    assert coarser((56, 56), 49) == (7, 7)
    assert coarser((19, 33), 10 * 17) == (10, 17)  # a remainder is a cell
    assert coarser((19, 33), 9 * 16) == (9, 16)  # a remainder is left out
    assert coarser((6, 5), 1) == (1, 1)
    assert coarser((6, 5), 7) is None


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="4 × 9 is not coarser than one of 4 × 8"):
        steps((4, 8), (4, 9))
    with pytest.raises(UsageError, match="11 values do not cover a grid of 3 × 4"):
        moved(torch.zeros(11), (3, 4), (1, 1))


def test_cells_of_every_stage_in_pixels() -> None:
    with torch.device("meta"):
        model = create_model("swin_ti")
    for size in ((224, 224), (75, 130), (97, 64)):
        for stride in (4, 8, 16):
            assert cell_of(model, (-(-size[0] // stride), -(-size[1] // stride)), size) == (stride, stride)
        assert cell_of(model, model.config.grid_of(size), size) == (32, 32)
