"""Colours against matplotlib's maps of the same names."""

from __future__ import annotations

from typing import get_args

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2lab

from vitral.base.colours import COLOUR_MAPS, OKABE_ITO, ColourMap, coloured, distinct_colours, stretched, voc_colours
from vitral.errors import UnknownNameError, UsageError

names = pytest.mark.parametrize("name", get_args(ColourMap))


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L* of sRGB colours, 0 to 100 (IEC 61966-2-1 and CIE 15, D65)."""
    part = rgb / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(luminance > (6 / 29) ** 3, 116 * np.cbrt(luminance) - 16, luminance * (29 / 3) ** 3)


def test_every_name_has_its_colours() -> None:
    assert set(COLOUR_MAPS) == set(get_args(ColourMap))
    for table in COLOUR_MAPS.values():
        assert table.shape == (256, 3)
        assert table.dtype == np.uint8


@names
def test_colours_are_matplotlibs(name: ColourMap) -> None:
    theirs = matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255
    off = np.abs(COLOUR_MAPS[name] - theirs)
    assert off.max() <= 11  # between sixteen or seventeen of their 256 colours
    assert off.mean() < 1
    assert off[[0, 255]].max() <= 0.5
    if name != "RdBu_r":
        assert off[::17].max() <= 0.5


@pytest.mark.parametrize("name", ["viridis", "inferno", "cividis"])
def test_lightness_runs_one_way(name: ColourMap) -> None:
    steps = np.diff(lightness(COLOUR_MAPS[name]))
    assert steps.min() > -0.25  # a level of 255 is up to a quarter of a unit: rounding, not a turn
    assert np.diff(lightness(COLOUR_MAPS[name][::5])).min() > 0
    assert steps.sum() > 70


def test_the_map_for_both_signs_is_lightest_in_the_middle() -> None:
    light = lightness(COLOUR_MAPS["RdBu_r"])
    assert light.argmax() in (127, 128)
    assert np.diff(light[:128:5]).min() > 0
    assert np.diff(light[128::5]).max() < 0
    assert light[128] > 96
    (low_red, _, low_blue), (high_red, _, high_blue) = COLOUR_MAPS["RdBu_r"][[20, 235]].astype(int)
    assert low_blue > low_red + 50
    assert high_red > high_blue + 50


@names
def test_numbers_take_the_colour_of_their_place(name: ColourMap) -> None:
    table = COLOUR_MAPS[name]
    assert (coloured(np.arange(256) / 255, name) == table).all()
    assert (coloured(np.array([-3.0, 0.0, 1.0, 42.0, np.inf, -np.inf]), name) == table[[0, 0, 255, 255, 255, 0]]).all()
    values = np.random.default_rng(0).random((2, 5, 3))
    assert (coloured(values, name) == table[np.rint(values * 255).astype(int)]).all()
    assert coloured(values.astype(np.float32), name).shape == (2, 5, 3, 3)


def test_other_colours_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown colour map 'virdis'\. Did you mean 'viridis'"):
        coloured.__wrapped__(np.zeros(1), "virdis")  # type: ignore[attr-defined]


FINITE = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9)


@given(FINITE)
def test_stretched_from_least_to_greatest(numbers: list[float]) -> None:
    values = np.array(numbers)
    level = stretched(values)
    assert level.shape == values.shape
    assert ((level >= 0) & (level <= 1)).all()
    assert level[values.argmin()] == 0
    assert level[values.argmax()] == (values.min() != values.max())
    assert (np.diff(level[values.argsort()]) >= 0).all()
    if 0 < np.ptp(values) < np.inf:
        np.testing.assert_allclose(values.min() + level * np.ptp(values), values, rtol=1e-9, atol=1e-9 * np.ptp(values))


@given(FINITE)
def test_stretched_with_zero_in_the_middle(numbers: list[float]) -> None:
    values = np.array(numbers)
    level = stretched(values, signed=True)
    assert ((level >= 0) & (level <= 1)).all()
    plain = np.abs(values) > 1e-9 * np.abs(values).max()  # what is nearer to zero rounds to the middle
    assert (np.sign(level - 0.5)[plain] == np.sign(values[plain])).all()
    assert (level[values == 0] == 0.5).all()
    np.testing.assert_allclose(stretched(-values, signed=True), 1 - level, atol=1e-15)
    if values.any():
        assert np.abs(2 * level - 1).max() == 1


def test_numbers_all_the_same_and_whole_numbers() -> None:
    assert stretched(np.full((2, 2), 7.5)).tolist() == [[0, 0], [0, 0]]
    assert stretched(np.zeros(3), signed=True).tolist() == [0.5, 0.5, 0.5]
    assert stretched(np.array([-2, -2]), signed=True).tolist() == [0, 0]
    assert stretched(np.array([3, 1, 5], dtype=np.uint8)).tolist() == [0.5, 0, 1]
    assert stretched(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("signed", [True, False])
def test_what_is_no_number_has_no_colour(bad: float, signed: bool) -> None:
    with pytest.raises(UsageError, match="2 of 4 numbers are NaN or infinite and have no colour"):
        stretched(np.array([0.0, bad, bad, 1.0]), signed=signed)


def test_vocs_palette_is_the_one_in_its_files() -> None:
    table = voc_colours(300)
    # Number, red, green and blue as the development kit lists them: aeroplane, bicycle, sofa, tv/monitor, ignored.
    for number, colour in ((0, "000000"), (1, "800000"), (2, "008000"), (18, "00c000"), (20, "004080"), (255, "e0e0c0")):
        assert table[number].tobytes().hex() == colour
    assert len(np.unique(table, axis=0)) == 300
    assert voc_colours(0).shape == (0, 3)


def test_colours_of_kinds_are_told_apart() -> None:
    table = distinct_colours(256)
    assert table[:7].tolist() == [list(colour) for colour in OKABE_ITO]
    assert (distinct_colours(3000)[:256] == table).all()
    lab = rgb2lab(table[None] / 255)[0]
    for count, least in ((20, 25), (150, 9)):  # CIE 1976: 2.3 is just seen
        away = np.linalg.norm(lab[:count, None] - lab[None, :count], axis=-1) + 1e9 * np.eye(count)
        assert away.min() > least
    assert len(np.unique(distinct_colours(1000), axis=0)) == 1000
    assert distinct_colours(9000).shape == (9000, 3)
    assert distinct_colours(0).shape == (0, 3)
    with pytest.raises(UsageError, match="count must be a whole number"):
        distinct_colours.__wrapped__(-1)  # type: ignore[attr-defined]
