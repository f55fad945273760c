"""Tokens, patches and rectangles of the picture lead to each other and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.test_vit import KINDS, small
from vitral.base.frame import Frame
from vitral.base.image import read_picture
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.explanation.geometry import TokenGeometry


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[str, ...], tuple[int, int], tuple[int, int], Frame]:
    """What a geometry is made of: prefix, grid, patch size and frame."""
    grid = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    patch = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    remainder = draw(st.integers(0, patch[0] - 1)), draw(st.integers(0, patch[1] - 1))
    frame = Frame(
        picture=(draw(st.integers(1, 5000)), draw(st.integers(1, 5000))),
        input=(grid[0] * patch[0] + remainder[0], grid[1] * patch[1] + remainder[1]),
        scale=(draw(st.floats(0.01, 20)), draw(st.floats(0.01, 20))),
        offset=(draw(st.floats(-500, 500)), draw(st.floats(-500, 500))),  # cropped, or padded
    )
    return tuple(f"register {n}" for n in range(draw(st.integers(0, 5)))), grid, patch, frame


def test_numpys_whole_numbers_are_numbers() -> None:
    geometry = TokenGeometry(("class",), (2, 3), (8, 8), Frame(picture=(16, 24), input=(16, 24)))
    assert geometry.name(np.int64(5)) == "patch (1, 1)"
    assert [geometry.name(token) for token in np.array([0, -1])] == ["class", "patch (1, 2)"]
    assert geometry.token(np.int64(1), np.uint8(1)) == 5
    assert type(geometry.token(np.int64(1), np.uint8(1))) is int


@given(geometries())
def test_token_patch_and_rectangle_lead_to_each_other(made_of: Any) -> None:
    geometry = TokenGeometry(*made_of)
    rows, columns = geometry.grid
    first = len(geometry.prefix)
    assert len(geometry) == first + rows * columns
    places = [geometry.patch(token) for token in range(first, len(geometry))]
    assert places == [(row, column) for row in range(rows) for column in range(columns)]
    assert geometry.rectangles.shape == (rows * columns, 4)
    for token, (row, column) in enumerate(places, start=first):
        assert geometry.token(row, column) == token
        assert geometry.token(row - rows, column - columns) == token
        assert geometry.patch(token - len(geometry)) == (row, column)
        assert geometry.name(token) == f"patch ({row}, {column})"
        x0, y0, x1, y1 = geometry.rectangle(token)
        assert (x0, y0, x1, y1) == tuple(geometry.rectangles[token - first].tolist())
        assert x0 < x1
        assert y0 < y1
        assert geometry.token_at((x0 + x1) / 2, (y0 + y1) / 2) == token
        for across, down in ((0.01, 0.01), (0.99, 0.01), (0.01, 0.99), (0.99, 0.99)):
            assert geometry.token_at(x0 + across * (x1 - x0), y0 + down * (y1 - y0)) == token


@given(geometries())
def test_rectangles_tile_what_the_patches_cover(made_of: Any) -> None:
    geometry = TokenGeometry(*made_of)
    boxes = geometry.rectangles.reshape(*geometry.grid, 4)
    near = {"rtol": 1e-9, "atol": 1e-6}
    np.testing.assert_allclose(boxes[:, :-1, 2], boxes[:, 1:, 0], **near)
    np.testing.assert_allclose(boxes[:-1, :, 3], boxes[1:, :, 1], **near)
    scale, offset, patch = geometry.frame.scale, geometry.frame.offset, geometry.patch_size
    np.testing.assert_allclose(boxes[..., 2] - boxes[..., 0], patch[1] / scale[1], **near)
    np.testing.assert_allclose(boxes[..., 3] - boxes[..., 1], patch[0] / scale[0], **near)
    np.testing.assert_allclose(boxes[0, 0, :2], [offset[1] / scale[1], offset[0] / scale[0]], **near)


@given(geometries())
def test_where_no_patch_is_there_is_no_token(made_of: Any) -> None:
    geometry = TokenGeometry(*made_of)
    left, top = geometry.rectangles[:, :2].min(0)
    right, bottom = geometry.rectangles[:, 2:].max(0)
    x, y, wide, high = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    assert geometry.token_at(x, y) is not None
    far = 0.51
    for across, down in ((far, 0), (-far, 0), (0, far), (0, -far), (far, -far)):
        assert geometry.token_at(x + across * wide, y + down * high) is None
    for nowhere in (math.inf, -math.inf, math.nan):
        assert geometry.token_at(nowhere, y) is None
        assert geometry.token_at(x, nowhere) is None


def test_a_photograph_resized_and_cropped_counted_by_hand() -> None:
    # 600 x 400 (height x width), its shorter side to 200, then 160 x 160 out of the middle.
    frame = Frame(picture=(600, 400), input=(160, 160), scale=(0.5, 0.5), offset=(70.0, 20.0))
    geometry = TokenGeometry(("class", "register 1"), (10, 5), (16, 32), frame)
    assert geometry.name(0) == "class"
    assert geometry.name(1) == geometry.name(-51) == "register 1"
    assert geometry.name(2) == "patch (0, 0)"
    assert geometry.rectangle(2) == (40, 140, 104, 172)
    assert geometry.rectangle(-1) == (296, 428, 360, 460)
    assert geometry.token_at(40.0, 140.0) == 2
    assert geometry.token_at(359.9, 459.9) == 51
    assert geometry.token_at(104.0, 171.9) == 3  # the left edge belongs to a patch, the right one to its neighbour
    for x, y in ((39.9, 200.0), (360.0, 200.0), (200.0, 139.9), (200.0, 460.0), (0.0, 0.0)):
        assert geometry.token_at(x, y) is None


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size=(40, 40), resize="shortest_edge", crop=(32, 32)),
        Preprocessing(size=(32, 48), resize="exact"),
        Preprocessing(size=(24, 24), resize="shortest_edge", crop=(64, 32)),  # padded above and below
    ],
)
def test_rectangles_show_what_the_patches_were_made_of(preprocessing: Preprocessing) -> None:
    # Every patch of the input is painted in a colour of its own where its rectangle lies in the picture.
    picture = np.full((90, 130, 3), 255, dtype=np.uint8)
    _, frame = preprocessing(read_picture(picture))
    grid = frame.input[0] // 8, frame.input[1] // 8
    geometry = TokenGeometry((), grid, (8, 8), frame)
    for token in range(len(geometry)):
        x0, y0, x1, y1 = (round(side) for side in geometry.rectangle(token))
        if min(x0, y0) >= 0 and x1 <= 130 and y1 <= 90:
            painted = picture.copy()
            painted[y0:y1, x0:x1] = 0
            pixels, _ = preprocessing(read_picture(painted))
            plain, _ = preprocessing(read_picture(picture))
            darker = (plain - pixels).sum(0).reshape(grid[0], 8, grid[1], 8).sum((1, 3))
            assert darker.flatten().argmax() == token
            assert darker.flatten()[token] > 0.8 * darker.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_the_geometry_of_a_model_is_that_of_its_tokens(kind: str) -> None:
    model = small(kind)
    height, width = model.config.image_size[0] + 3, model.config.image_size[1] + 9
    with torch.no_grad():
        out = model(torch.randn(1, 3, height, width))
    geometry = TokenGeometry.of(model, out.grid, Frame(picture=(height, width), input=(height, width)))
    assert len(geometry) == out.tokens.shape[1]
    assert len(geometry.prefix) == out.prefix
    assert geometry.patch_size == model.config.patch_size
    laid = geometry.layout(out.tokens.transpose(1, 2))
    assert torch.equal(laid, out.feature_map)
    # A pixel moves the token whose patch it is in.
    token = geometry.token_at(13.5, 9.5)
    pixels = torch.zeros(1, 3, height, width)
    touched = pixels.clone()
    touched[:, :, 9, 13] = 5
    with torch.no_grad():
        moved = (model.embed(touched)[0] - model.embed(pixels)[0]).abs().amax((0, 2))
    assert moved.nonzero().flatten().tolist() == [token]


@pytest.mark.parametrize("tensors", [True, False])
def test_values_are_laid_out_as_the_patches_lie(tensors: bool) -> None:
    geometry = TokenGeometry(("class", "register 1"), (2, 3), (8, 8), Frame(picture=(16, 24), input=(16, 24)))
    values = np.arange(5 * 8).reshape(5, 8)
    of_all, of_patches = (torch.from_numpy(values), torch.from_numpy(values[:, 2:])) if tensors else (values, values[:, 2:])
    for laid in (geometry.layout(of_all), geometry.layout(of_patches)):
        assert isinstance(laid, torch.Tensor) == tensors
        assert tuple(laid.shape) == (5, 2, 3)
        assert laid[1].tolist() == [[10, 11, 12], [13, 14, 15]]
    assert geometry.layout(of_all[0]).tolist() == [[2, 3, 4], [5, 6, 7]]
    assert geometry.layout(of_all[None, None]).shape == (1, 1, 5, 2, 3)
    with pytest.raises(UsageError, match=r"There are 8 tokens, 6 of them patches; 7 values came\."):
        geometry.layout(of_all[:, 1:])


def test_what_is_not_there_is_said_in_a_sentence() -> None:
    geometry = TokenGeometry(("class",), (2, 3), (8, 8), Frame(picture=(16, 24), input=(16, 24)))
    for token in (7, -8, 500):
        for ask in (geometry.name, geometry.patch, geometry.rectangle):
            with pytest.raises(UsageError, match=f"There is no token {token}: there are 7, numbered 0 to 6"):
                ask(token)
    for token in (0, -7):
        for ask in (geometry.patch, geometry.rectangle):
            with pytest.raises(UsageError, match=r"Token 0 is the class token; patches begin at token 1\."):
                ask(token)
    for place in ((2, 0), (0, 3), (-3, 0), (0, -4)):
        with pytest.raises(UsageError, match=r"There is no patch \(.*\) in a grid of 2 rows and 3 columns\."):
            geometry.token(*place)
