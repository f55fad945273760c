"""Pictures with heat on them, pixel by pixel, and bars as long as their scores."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vitral.base.draw import draw_bars, draw_heat
from vitral.errors import UsageError


def photograph(height: int = 20, width: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def expected(image: Image.Image, level: np.ndarray, cover: np.ndarray, name: str) -> np.ndarray:
    """Colours laid over the picture, whose own are drawn two fifths of the way from grey (ITU-R 601 luma)."""
    colours = matplotlib.colormaps[name](level)[..., :3] * 255
    pixels = np.asarray(image, dtype=float)
    ground = 0.4 * pixels + 0.6 * (pixels @ [0.299, 0.587, 0.114])[..., None]
    return (1 - cover[..., None]) * ground + cover[..., None] * colours


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", ["inferno", "viridis", "cividis"])
def test_the_hotter_the_more_its_colour_covers(name: str, strength: float) -> None:
    image = photograph()
    heat = np.random.default_rng(1).normal(3, 2, (20, 30))
    level = (heat - heat.min()) / (heat.max() - heat.min())
    drawn = np.asarray(draw_heat(image, heat, colours=name, strength=strength), dtype=float)
    theirs = expected(image, level, strength * (0.25 + 0.75 * level), name)
    assert np.abs(drawn - theirs).max() <= 12 * strength + 1.2
    assert np.abs(drawn - theirs).mean() < 1


def test_signs_are_red_and_blue_and_nothing_is_the_picture() -> None:
    image = Image.new("RGB", (4, 1), (120, 120, 120))
    drawn = np.asarray(draw_heat(image, np.array([[-2.0, 0.0, 1.0, 2.0]]), colours="RdBu_r", signed=True, strength=1.0))
    assert drawn[0, 1].tolist() == [120, 120, 120]
    assert drawn[0, 0].tolist() == [5, 48, 97]  # the ends of Brewer's RdBu, all of them
    assert drawn[0, 3].tolist() == [103, 0, 31]
    assert drawn[0, 2, 0] > drawn[0, 2, 2] + 30  # half as hot, half as much of it


def test_grey_pictures_keep_their_lightness_where_nothing_covers_them() -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(3, 0)).convert("RGB")
    drawn = np.asarray(draw_heat(image, np.zeros((3, 256)), signed=True, colours="RdBu_r"))
    assert (drawn == np.asarray(image)).all()


def test_the_picture_is_left_as_it_is() -> None:
    image = photograph()
    before, heat = np.asarray(image).copy(), np.random.default_rng(1).random((20, 30))
    kept = heat.copy()
    drawn = draw_heat(image, heat)
    assert drawn is not image
    assert (drawn.size, drawn.mode) == (image.size, "RGB")
    assert (np.asarray(image) == before).all()
    assert (heat == kept).all()
    drawn.paste((0, 0, 0), (0, 0, 30, 20))
    assert (np.asarray(image) == before).all()


def test_what_cannot_be_drawn_is_said_in_a_sentence() -> None:
    image, heat = photograph(), np.zeros((20, 30))
    with pytest.raises(UsageError, match=r"Heat of 30 × 20 pixels came for a picture of 20 × 30\."):
        draw_heat(image, heat.T)
    for strength in (-0.1, 1.01, float("nan")):
        with pytest.raises(UsageError, match=r"strength must be (from 0 to 1|a finite number)"):
            draw_heat(image, heat, strength=strength)
    heat[3, 4] = np.nan
    with pytest.raises(UsageError, match="1 of 600 numbers are NaN or infinite"):
        draw_heat(image, heat)


BLUE, TRACK = (0, 114, 178), (232, 236, 241)


def bars(sheet: Image.Image) -> list[tuple[int, int]]:
    """For each bar from the top: how many pixels of its middle line are blue, and how many are blue or track."""
    pixels = np.asarray(sheet)
    blue, track = ((pixels == colour).all(-1) for colour in (BLUE, TRACK))
    lines = np.flatnonzero((blue | track).sum(1) > 300)
    middles = [group[len(group) // 2] for group in np.split(lines, np.flatnonzero(np.diff(lines) > 1) + 1)]
    return [(int(blue[line].sum()), int((blue | track)[line].sum())) for line in middles]


@pytest.mark.parametrize(("height", "width"), [(400, 640), (2000, 1000), (30, 50), (640, 90)])
def test_bars_are_as_long_as_their_scores(height: int, width: int) -> None:
    image = photograph(height, width)
    before = np.asarray(image).copy()
    sheet = draw_bars(image, [("whole", 1.0), ("half", 0.5), ("a tenth", 0.1), ("none", 0.0), ("more", 1.7), ("less", -2.0)])
    assert (np.asarray(image) == before).all()
    measured = bars(sheet)
    assert len(measured) == 6
    for (length, whole), share in zip(measured, (1, 0.5, 0.1, 0, 1, 0), strict=True):
        assert whole == pytest.approx(sheet.width - 28, abs=2)
        assert length == pytest.approx(share * whole, abs=2)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((640, 480), (640, 480)), ((1280, 960), (640, 480)), ((64, 32), (640, 320)), ((400, 300), (400, 300))],
)
def test_the_picture_stands_on_top_of_its_bars(size: tuple[int, int], shown: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 200, 30))
    sheet = draw_bars(image, [("a", 0.3)])
    assert (np.asarray(sheet.crop((0, 0, *shown))) == (10, 200, 30)).all()
    assert sheet.size == (shown[0], shown[1] + 28 + 34)


def test_a_narrow_picture_stands_in_the_middle_and_long_labels_are_cut() -> None:
    sheet = draw_bars(Image.new("RGB", (100, 640), (10, 200, 30)), [("a label, " * 40, 0.5)])
    green = (np.asarray(sheet)[:640] == (10, 200, 30)).all(-1)
    assert sheet.width == 360
    assert np.flatnonzero(green.all(0)).tolist() == list(range(130, 230))
    assert not (np.asarray(sheet)[640:, 353:] != 255).any()  # nothing runs over the margin
