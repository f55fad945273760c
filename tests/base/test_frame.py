"""The way back leads where the way there came from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
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
