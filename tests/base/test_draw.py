"""Pictures with heat on them, pixel by pixel, and bars as long as their scores."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from vitral.base import draw
from vitral.base.colours import distinct_colours
from vitral.base.draw import draw_bars, draw_boxes, draw_classes, draw_heat, draw_masks, draw_segments
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


PALETTE = {(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)}


def found(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed)
    corner = numbers.random((count, 2)) * [width, height] * 0.8
    return np.concatenate([corner, corner + (0.05 + numbers.random((count, 2))) * [width * 0.3, height * 0.3]], 1)


def of_colour(drawn: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(drawn) == colour).all(-1)


def test_lines_lie_on_the_edges_of_the_pixels_a_box_covers() -> None:
    image = Image.new("RGB", (100, 80), (120, 120, 120))
    drawn = draw_boxes(image, np.array([[10.0, 20.0, 60.0, 70.0]]), [("", 1.0)], [4])
    assert (np.asarray(image) == 120).all()
    blue = of_colour(drawn, (0, 114, 178))
    assert drawn.size == image.size
    assert blue[69, 10:60].all()
    assert blue[40:69, 10].all()
    assert blue[40:69, 59].all()
    assert not blue[70:].any()
    assert not blue[:, :10].any()
    around = np.asarray(drawn)[50, [9, 11, 58, 60]]
    assert (around == (24, 32, 46)).all()  # dark on both sides
    assert (np.asarray(drawn)[45:60, 13:57] == 120).all()


def test_lines_and_letters_grow_with_the_picture() -> None:
    widths, heights = [], []
    for scale in (1, 2, 4):
        image = Image.new("RGB", (500 * scale, 500 * scale), (120, 120, 120))
        drawn = draw_boxes(image, np.array([[100.0, 200.0, 300.0, 400.0]]) * scale, [("cat", 0.5)], [0])
        orange = of_colour(drawn, (230, 159, 0))
        widths.append(int(orange[350 * scale, : 200 * scale].sum()))
        heights.append(int(orange[: 198 * scale, 100 * scale].sum()))
    assert widths == [2, 4, 8]
    assert heights[1] == pytest.approx(2 * heights[0], abs=3)
    assert heights[2] == pytest.approx(4 * heights[0], abs=5)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (90, 700), (40, 40), (8, 6), (1, 1)])
def test_labels_stay_inside_and_apart_where_there_is_room(height: int, width: int) -> None:
    image = Image.new("RGB", (width, height), (120, 120, 120))
    pen, font = ImageDraw.Draw(image), draw._font(14)
    boxes = found(9, height, width)
    edges = [draw._pixels_of(box, image.size) for box in boxes.tolist()]
    rows = [(f"label {place} " * (1 + place % 3), place / 9) for place in range(9)]
    tags = list(draw._tags(pen, font, edges, rows, image.size))
    assert len(tags) == 9
    for (left, top, right, bottom), _ in tags:
        assert 0 <= left <= right < width
        assert 0 <= top <= bottom < height
    if height == 480:
        assert all(pen.textlength(text, font=font) <= right - left + 1 for (left, _, right, _), text in tags)
        assert [text.split()[-1] for _, text in tags] == [f"{place / 9:.0%}" for place in range(9)]
        covered = np.zeros((height, width), int)
        for (left, top, right, bottom), _ in tags:
            covered[top : bottom + 1, left : right + 1] += 1
        assert covered.max() == 1
    assert draw_boxes(image, boxes, rows, list(range(9))).size == (width, height)


def test_colours_tell_classes_apart_and_letters_can_be_read_on_them() -> None:
    image = Image.new("RGB", (900, 900), (120, 120, 120))
    boxes = np.array([[120.0 * place, 500, 120.0 * place + 90, 700] for place in range(7)])
    drawn = np.asarray(draw_boxes(image, boxes, [("x", 0.5)] * 7, list(range(7))))
    lines = {tuple(drawn[650, int(box[0])].tolist()) for box in boxes}
    assert lines == PALETTE
    again = np.asarray(draw_boxes(image, boxes, [("x", 0.5)] * 7, list(range(7, 14))))
    assert (again == drawn).all()

    def luminance(colour: tuple[int, ...]) -> float:
        levels = [level / 255 for level in colour]
        linear = [level / 12.92 if level <= 0.03928 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in PALETTE:
        light, dark = sorted((luminance(colour), luminance(draw._readable_on(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5  # WCAG 2.1, AA


def test_boxes_beyond_the_picture_and_empty_ones_do_no_harm() -> None:
    image = Image.new("RGB", (60, 50), (120, 120, 120))
    boxes = np.array([[-40.0, -30, 90, 80], [70, 60, 80, 90], [20, 20, 20, 20], [-9, -9, -3, -3]])
    drawn = draw_boxes(image, boxes, [("a\nb", 1.0)] * 4, [0, 1, 2, 3])
    assert of_colour(drawn, (230, 159, 0))[30, [0, 59]].all()
    assert (np.asarray(draw_boxes(image, np.zeros((0, 4)), [], [])) == 120).all()


def test_boxes_that_cannot_be_drawn_are_said() -> None:
    image = photograph()
    with pytest.raises(UsageError, match="2 boxes, 1 rows and 2 kinds came"):
        draw_boxes(image, np.zeros((2, 4)), [("a", 1.0)], [0, 1])
    with pytest.raises(UsageError, match="boxes to draw are not all finite"):
        draw_boxes(image, np.full((1, 4), np.nan), [("a", 1.0)], [0])


def halves(height: int = 60, width: int = 80) -> np.ndarray:
    numbers = np.zeros((height, width), np.uint8)
    numbers[:, width // 2 :] = 3
    return numbers


def near(drawn: np.ndarray, colour: np.ndarray, ground: int = 120) -> np.ndarray:
    """Where a colour covers more than half of a grey ground."""
    return np.abs(drawn.astype(float) - (0.55 * colour + 0.45 * ground)).max(-1) <= 1


def test_classes_have_colours_and_a_legend_below() -> None:
    image = Image.new("RGB", (400, 300), (120, 120, 120))
    numbers = halves(300, 400)
    numbers[:50] = 255
    sheet = np.asarray(draw_classes(image, numbers, ("sky", "a", "b", "road")))
    assert (np.asarray(image) == 120).all()
    assert sheet.shape[1] == 400
    table = distinct_colours(4)
    assert near(sheet[60:300, :190], table[0]).all()
    assert near(sheet[60:300, 210:], table[3]).all()
    assert (sheet[:45] == 120).all()  # ignored
    legend = sheet[300:]
    for colour in (table[0], table[3]):
        assert (legend == colour).all(-1).sum() > 100
    assert not (legend == table[1]).all(-1).any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 900), (900, 7), (200, 300)])
def test_the_legend_stays_on_the_sheet_whatever_comes(height: int, width: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 60, (height, width))
    labels = tuple(f"a class of a rather long name, or so it seems, number {place}" for place in range(60))
    sheet = draw_classes(Image.new("RGB", (width, height)), numbers, labels)
    pixels = np.asarray(sheet)[height:]
    assert sheet.width == max(width, 360)
    assert (pixels[:, -6:] == 255).all()
    assert (pixels[:, :6] == 255).all()
    assert (pixels[-6:] == 255).all()
    if height == 200:
        assert sheet.height > draw_classes(Image.new("RGB", (width, height)), numbers, labels, most=23).height - 25
        assert (np.asarray(draw_classes(Image.new("RGB", (width, height)), numbers, labels, most=9))[height:] != 255).any()


def test_masks_are_drawn_within_themselves_and_the_first_lies_on_top() -> None:
    image = Image.new("RGB", (300, 200), (120, 120, 120))
    masks = np.zeros((3, 200, 300), bool)
    masks[0, 20:120, 20:150], masks[1, 60:180, 100:280] = True, True
    drawn = np.asarray(draw_masks(image, masks, [("a", 0.5), ("b", 0.25), ("nothing", 0.1)], [0, 4, 5]))
    table = distinct_colours(6)
    assert (np.asarray(image) == 120).all()
    assert (drawn[~masks.any(0)] == 120).all()
    assert (drawn[20, 20:150] == (24, 32, 46)).all()  # the hairline
    assert (drawn[21, 22:148] == table[0]).all()  # the line
    assert near(drawn[30:60, 30:90], table[0]).all()
    assert near(drawn[150:175, 110:270], table[4]).all()
    over = drawn[110:117, 110:145].astype(float)  # where both are
    assert np.abs(over - (0.55 * table[0] + 0.45 * (0.55 * table[4] + 0.45 * 120))).max() <= 2
    assert (drawn[80:160] == table[4]).all(-1).sum() > 200  # its label
    none = draw_masks(image, masks[:0], [], [])
    assert (np.asarray(none) == 120).all()


def test_segments_are_drawn_as_far_as_they_have_rows() -> None:
    image = Image.new("RGB", (300, 200), (120, 120, 120))
    numbers = halves(200, 300).astype(np.int32) * 1000
    numbers[150:] = 7
    drawn = np.asarray(draw_segments(image, numbers, {3000: ("road", 0.5), 7: ("sky", 1.0)}))
    table = distinct_colours(2)
    assert (drawn[:145, :145] == 120).all()
    assert near(drawn[5:60, 160:], table[0]).all()
    assert near(drawn[190:195, 5:], table[1]).all()
    assert (drawn[100, 150] == (24, 32, 46)).all()


@pytest.mark.parametrize("shape", ["comb", "ring", "noise", "dot"])
def test_labels_begin_within_their_masks(shape: str) -> None:
    numbers = np.random.default_rng(0)
    mask = numbers.random((30, 40)) < 0.3 if shape == "noise" else np.zeros((30, 40), bool)
    if shape == "comb":
        mask[:, ::5] = True
    elif shape == "ring":
        mask[2:28, 2:38] = True
        mask[4:26, 4:36] = False
    elif shape == "dot":
        mask[29, 39] = True
    x, y = draw._heart(mask)
    assert mask[y, x]


def test_maps_and_masks_that_cannot_be_drawn_are_said() -> None:
    image = photograph()
    with pytest.raises(UsageError, match="A map of 30 × 20 pixels came for a picture of 20 × 30"):
        draw_classes(image, np.zeros((30, 20), int), ("a",))
    with pytest.raises(UsageError, match="Pixels of class 4 came to be drawn; there are 2 classes"):
        draw_classes(image, np.full((20, 30), 4), ("a", "b"))
    with pytest.raises(UsageError, match="A map of 30 × 20 pixels"):
        draw_segments(image, np.zeros((30, 20), int), {})
    with pytest.raises(UsageError, match="Masks of 30 × 20 pixels"):
        draw_masks(image, np.zeros((1, 30, 20), bool), [("a", 1.0)], [0])
    with pytest.raises(UsageError, match="1 masks, 0 rows and 1 kinds came"):
        draw_masks(image, np.zeros((1, 20, 30), bool), [], [0])
