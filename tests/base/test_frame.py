"""The way back leads where the way there came from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitral.base.frame import Frame
from vitral.errors import UsageError

SIDES = st.integers(1, 20_000)
SCALES = st.floats(1e-3, 1e3)
OFFSETS = st.floats(-1e4, 1e4)
COORDINATES = st.floats(-1e5, 1e5)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    return Frame(
        picture=(draw(SIDES), draw(SIDES)),
        input=(draw(SIDES), draw(SIDES)),
        scale=(draw(SCALES), draw(SCALES)),
        offset=(draw(OFFSETS), draw(OFFSETS)),
    )


@given(frames(), st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=5))
def test_there_and_back_is_where_one_was(frame: Frame, points: list[tuple[float, float]]) -> None:
    picture = np.array(points)
    tolerance = 1e-9 * (1 + np.abs(picture) + np.abs(frame.offset[::-1]) / np.array(frame.scale[::-1]))
    assert (np.abs(frame.to_picture(frame.to_input(picture)) - picture) <= tolerance).all()
    tolerance = 1e-9 * (1 + np.abs(picture) + np.abs(frame.offset[::-1]))
    assert (np.abs(frame.to_input(frame.to_picture(picture)) - picture) <= tolerance).all()


@given(frames(), st.tuples(COORDINATES, COORDINATES, COORDINATES, COORDINATES))
def test_a_box_is_its_two_corners(frame: Frame, box: tuple[float, float, float, float]) -> None:
    corners = np.array(box).reshape(2, 2)
    assert (frame.boxes_to_picture(np.array(box)) == frame.to_picture(corners).ravel()).all()
    assert (frame.boxes_to_input(np.array(box)) == frame.to_input(corners).ravel()).all()


def test_a_resized_and_cropped_picture() -> None:
    # 600 x 400 (height x width) with its shorter side resized to 200, then 160 x 160 out of the middle.
    frame = Frame(picture=(600, 400), input=(160, 160), scale=(0.5, 0.5), offset=(70.0, 20.0))
    assert frame.window == (40, 140, 360, 460)
    assert frame.to_picture(np.array([80.0, 80.0])).tolist() == [200, 300]
    assert frame.to_input(np.array([[0, 0], [400, 600]])).tolist() == [[-20, -70], [180, 230]]
    assert frame.boxes_to_picture(np.array([[0, 0, 160, 160], [0, 80, 80, 160]])).tolist() == [
        [40, 140, 360, 460],
        [40, 300, 200, 460],
    ]


def test_leading_axes_are_kept() -> None:
    frame = Frame(picture=(2, 2), input=(2, 2))
    assert frame.to_picture(np.zeros((3, 0, 2))).shape == (3, 0, 2)
    assert frame.boxes_to_input(np.zeros((3, 5, 4), dtype=np.int64)).shape == (3, 5, 4)


@pytest.mark.parametrize("field", [{"picture": (0, 3)}, {"input": (3, -1)}, {"scale": (1.0, 0.0)}])
def test_a_frame_without_extent_is_refused(field: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(UsageError, match="two positive numbers"):
        Frame(**{"picture": (3, 3), "input": (3, 3), **field})  # type: ignore[arg-type]


# -- maps -------------------------------------------------------------------------------------------------------------


def at(values: np.ndarray, y: float, x: float) -> float:
    """A map at a point (in cells), linear between the centres of cells and constant beyond the outermost."""
    total = 0.0
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            down = max(0.0, 1 - abs(min(max(y, 0.5), values.shape[0] - 0.5) - (row + 0.5)))
            across = max(0.0, 1 - abs(min(max(x, 0.5), values.shape[1] - 0.5) - (column + 0.5)))
            total += down * across * values[row, column]
    return total


@st.composite
def mapped(draw: st.DrawFn, finest: float = 0.05, coarsest: float = 1.0) -> tuple[Frame, np.ndarray, tuple[int, int]]:
    """A frame, a map over its input and the size of a cell; a picture's pixel is `finest` to `coarsest` cells wide."""
    cell = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    grid = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    scale = tuple(draw(st.floats(finest, coarsest)) * side for side in cell)
    frame = Frame(
        picture=(draw(st.integers(1, 25)), draw(st.integers(1, 25))),
        input=(grid[0] * cell[0] + draw(st.integers(0, cell[0] - 1)), grid[1] * cell[1] + draw(st.integers(0, cell[1] - 1))),
        scale=(scale[0], scale[1]),
        offset=(draw(st.floats(-30, 30)), draw(st.floats(-30, 30))),
    )
    values = np.array(draw(st.lists(st.integers(-99, 99), min_size=grid[0] * grid[1], max_size=grid[0] * grid[1])))
    return frame, values.reshape(grid).astype(np.float32), cell


@settings(max_examples=60)
@given(mapped())
def test_a_map_is_interpolated_pixel_by_pixel(given_: tuple[Frame, np.ndarray, tuple[int, int]]) -> None:
    frame, values, cell = given_
    found = frame.map_to_picture(values, cell, outside=-777.0)
    assert found.shape == frame.picture
    for y in range(frame.picture[0]):
        for x in range(frame.picture[1]):
            across, down = frame.to_input(np.array([x + 0.5, y + 0.5])) / cell[::-1]
            if min(abs(across), abs(down), abs(across - values.shape[1]), abs(down - values.shape[0])) < 1e-9:
                continue  # a pixel's centre on the outline: rounding decides
            inside = 0 < across < values.shape[1] and 0 < down < values.shape[0]
            assert found[y, x] == pytest.approx(at(values, down, across) if inside else -777.0, abs=1e-2, rel=1e-4)


@settings(max_examples=50)
@given(mapped(finest=0.05, coarsest=7.0), st.floats(-1e3, 1e3, width=32))
def test_a_constant_map_stays_constant_and_no_map_leaves_its_range(
    given_: tuple[Frame, np.ndarray, tuple[int, int]], constant: float
) -> None:
    frame, values, cell = given_
    flat = frame.map_to_picture(np.full_like(values, constant), cell, outside=constant)
    np.testing.assert_allclose(flat, constant, rtol=1e-5)
    found = frame.map_to_picture(values, cell, outside=float(values.min()))
    assert values.min() - 1e-3 <= found.min() <= found.max() <= values.max() + 1e-3


def test_at_the_centres_of_patches_a_map_is_itself() -> None:
    values = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    # Cells of 6 × 10 pixels, 3 × 5 of the picture: their centres are centres of its pixels.
    frame = Frame(picture=(21, 32), input=(30, 40), scale=(2.0, 2.0), offset=(6.0, 10.0))
    found = frame.map_to_picture(values, (6, 10), outside=9.0)
    assert frame.window == (5, 3, 25, 18)
    np.testing.assert_allclose(found[4:18:3, 7:25:5], values, rtol=1e-6)
    inside = np.zeros(frame.picture, dtype=bool)
    inside[3:18, 5:25] = True
    assert (found[~inside] == 9).all()
    assert (found[inside] != 9).all()


def test_what_the_patches_leave_over_and_what_is_padded_is_outside() -> None:
    # An input of 10 pixels holds two patches of 4; three of its pixels at the left are padding.
    frame = Frame(picture=(10, 12), input=(10, 10), offset=(0.0, -3.0))
    found = frame.map_to_picture(np.ones((2, 2), dtype=np.float32), (4, 4), outside=-1.0)
    inside = np.zeros((10, 12), dtype=bool)
    inside[:8, :5] = True
    assert (found[inside] == 1).all()
    assert (found[~inside] == -1).all()


@pytest.mark.parametrize(("length", "count"), [(5, 40), (7, 23), (1, 9), (13, 14), (3, 3)])
def test_shrunk_to_fewer_pixels_every_cell_counts_and_the_mean_stays(length: int, count: int) -> None:
    frame = Frame(picture=(length, length), input=(count, count), scale=(count / length,) * 2)
    shares = np.empty((count, length))  # of every cell in every pixel
    for row in range(count):
        cells = np.zeros((count, count), dtype=np.float32)
        cells[row] = 1
        shares[row] = frame.map_to_picture(cells)[:, 0]
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-5)
    assert (shares.sum(1) > 0.4 * length / count).all()
    values = np.random.default_rng(count).normal(size=(count, count)).astype(np.float32)
    wave = frame.map_to_picture(values, (1, 1))
    assert wave.std() < values.std() * (1.01 if length == count else 0.95)
    if length == count:
        np.testing.assert_allclose(wave, values, atol=1e-6)


def test_a_shrunk_map_is_what_shrinking_the_large_one_gives() -> None:
    # A smooth map of 90 × 90 cells onto a picture of 30 × 30, at once and by averaging its cells three by three.
    y, x = np.mgrid[:90, :90] / 90
    smooth = (np.sin(6 * x) * np.cos(4 * y) + y).astype(np.float32)
    at_once = Frame(picture=(30, 30), input=(90, 90), scale=(3.0, 3.0)).map_to_picture(smooth)
    averaged = smooth.reshape(30, 3, 30, 3).mean((1, 3))
    np.testing.assert_allclose(at_once[1:-1, 1:-1], averaged[1:-1, 1:-1], atol=0.01)


@given(frames(), SIDES, SIDES, st.tuples(COORDINATES, COORDINATES))
def test_the_frame_of_a_resized_copy(frame: Frame, height: int, width: int, point: tuple[float, float]) -> None:
    copy = frame.resized((height, width))
    assert copy.picture == (height, width)
    assert (copy.input, copy.offset) == (frame.input, frame.offset)
    grown = np.array([width / frame.picture[1], height / frame.picture[0]])
    in_input = np.array(point)
    tolerance = 1e-9 * (1 + np.abs(frame.to_picture(in_input)) * grown)
    assert (np.abs(copy.to_picture(in_input) - frame.to_picture(in_input) * grown) <= tolerance).all()
    assert frame.resized(frame.picture) == frame
