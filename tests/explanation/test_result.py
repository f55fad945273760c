"""Heat that knows its picture: where it lies, how it is drawn, what it says as plain values."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitral.base.colours import COLOUR_MAPS
from vitral.base.draw import draw_heat
from vitral.base.frame import Frame
from vitral.base.image import Picture, read_picture
from vitral.errors import UsageError
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.result import Explanation


def explained(heat: np.ndarray, frame: Frame, cell: tuple[int, int] = (8, 8), **fields: Any) -> Explanation:
    grid = frame.input[0] // 8, frame.input[1] // 8
    geometry = TokenGeometry(("class",), grid, (8, 8), frame)
    return Explanation(
        name="a.png", method="relevance", heat=heat.astype(np.float32), cell=cell, geometry=geometry, **fields
    )


# 90 x 120, its shorter side to 48, then 32 x 48 out of the middle of 48 x 64.
FRAME = Frame(picture=(90, 120), input=(32, 48), scale=(48 / 90, 64 / 120), offset=(8.0, 8.0))


def random_heat(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def between(heat: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """numpy's linear interpolation, along either axis, of cells whose centres lie at 0.5, 1.5, …"""
    along = np.stack([np.interp(columns, np.arange(heat.shape[1]) + 0.5, line) for line in heat])
    return np.stack([np.interp(rows, np.arange(heat.shape[0]) + 0.5, line) for line in along.T]).T


def test_the_peak_is_the_centre_of_the_hottest_cell() -> None:
    heat = np.zeros((4, 6))
    heat[1, 4], heat[3, 0] = 2.0, -5.0
    assert explained(heat, FRAME).peak == pytest.approx(((36 + 8) / (64 / 120), (12 + 8) / (48 / 90)))
    pixels = np.zeros((32, 48))
    pixels[30, 2] = 1.0
    assert explained(pixels, FRAME, (1, 1)).peak == pytest.approx((10.5 * 120 / 64, 38.5 * 90 / 48))
    one = explained(heat, FRAME)
    token = one.geometry.token(1, 4)
    x0, y0, x1, y1 = one.geometry.rectangle(token)
    assert one.peak == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2))
    assert one.geometry.token_at(*one.peak) == token


@pytest.mark.parametrize("cell", [(8, 8), (1, 1)])
def test_heat_on_the_input_and_on_the_picture(cell: tuple[int, int]) -> None:
    heat = random_heat(4, 6) if cell == (8, 8) else random_heat(32, 48)
    one = explained(heat, FRAME, cell)
    assert one.size == (90, 120)
    on_input, on_picture = one.on_input(), one.on_picture()
    places = (np.arange(32) + 0.5) / cell[0], (np.arange(48) + 0.5) / cell[1]
    np.testing.assert_allclose(on_input, between(heat, *places), atol=1e-5)
    places = ((np.arange(90) + 0.5) * 48 / 90 - 8) / cell[0], ((np.arange(120) + 0.5) * 64 / 120 - 8) / cell[1]
    assert one.geometry.frame.window == pytest.approx((15, 15, 105, 75))
    inside = np.zeros((90, 120), dtype=bool)
    inside[15:75, 15:105] = True
    np.testing.assert_allclose(on_picture[inside], between(heat, *places)[inside], atol=1e-5)
    assert (on_picture[~inside] == heat.min()).all()
    assert (one.on_picture(outside=-9.0)[~inside] == -9).all()
    assert (one.on_picture(outside=-9.0)[inside] == on_picture[inside]).all()


def test_where_signs_count_what_was_not_seen_counts_for_nothing() -> None:
    one = explained(random_heat(4, 6), FRAME, signed=True)
    assert (one.on_picture()[:15] == 0).all()
    assert one.on_picture()[15:75, 15:105].min() < -0.1


def spot(size: tuple[int, int], frame: Frame | None = None, **fields: Any) -> Explanation:
    """One hot patch, the third of the second row, on a plain grey picture."""
    height, width = size
    heat = np.zeros((4, 4))
    heat[1, 2] = 1.0
    frame = frame or Frame(picture=size, input=(32, 32), scale=(32 / height, 32 / width))
    picture = Picture(Image.new("RGB", (width, height), (128, 128, 128)), size, "a.png")
    return explained(heat, frame, **{"picture": picture, **fields})


@pytest.mark.parametrize(
    ("size", "longest", "drawn"),
    [
        ((300, 200), 1024, (300, 200)),  # as it is
        ((3000, 2000), 1024, (1024, 683)),  # shrunk
        ((1000, 4000), 512, (128, 512)),
        ((30, 20), 1024, (256, 171)),  # enlarged to a quarter
        ((1, 1), 1024, (256, 256)),
        ((2, 400), 100, (1, 100)),  # never less than a pixel
        ((32, 32), 16, (16, 16)),
    ],
)
def test_the_drawing_is_of_a_handy_size_and_hot_where_the_heat_is(
    size: tuple[int, int], longest: int, drawn: tuple[int, int]
) -> None:
    one = spot(size)
    assert one.picture is not None
    before = one.picture.array.copy()
    image = one.draw(longest=longest, strength=1.0)
    assert (image.height, image.width) == drawn
    assert image.mode == "RGB"
    assert one.picture.image.size == (size[1], size[0])
    assert (one.picture.array == before).all()
    assert image is not one.picture.image
    if min(drawn) < 16:
        return
    pixels = np.asarray(image).astype(int)
    hot, cold = COLOUR_MAPS["inferno"][[255, 0]].astype(int)
    row, column = int(1.5 / 4 * drawn[0]), int(2.5 / 4 * drawn[1])
    # At the patch's centre the colour of the hottest; two patches away a quarter of the coldest over grey.
    assert np.abs(pixels[row, column] - hot).max() <= (8 if min(drawn) > 100 else 90)
    expected = 0.75 * 128 + 0.25 * cold
    assert np.abs(pixels[int(3.5 / 4 * drawn[0]), int(0.5 / 4 * drawn[1])] - expected).max() <= 1


def test_draw_is_heat_on_the_picture() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    one = explained(random_heat(4, 6), FRAME, picture=read_picture(photo))
    theirs = draw_heat(Image.fromarray(photo), one.on_picture(), colours="viridis", strength=0.5)
    assert (np.asarray(one.draw(colours="viridis", strength=0.5, longest=120)) == np.asarray(theirs)).all()
    signed = explained(random_heat(4, 6), FRAME, picture=read_picture(photo), signed=True)
    theirs = draw_heat(Image.fromarray(photo), signed.on_picture(), colours="RdBu_r", signed=True)
    assert (np.asarray(signed.draw(longest=120)) == np.asarray(theirs)).all()


def test_signed_heat_is_red_and_blue_and_neutral_at_zero() -> None:
    heat = np.zeros((4, 4))
    heat[0, 0], heat[3, 3] = 1.0, -2.0
    frame = Frame(picture=(320, 320), input=(32, 32), scale=(0.1, 0.1))
    picture = Picture(Image.new("RGB", (320, 320), (128, 128, 128)), (320, 320), "a.png")
    pixels = np.asarray(explained(heat, frame, signed=True, picture=picture).draw(strength=1.0)).astype(int)
    assert pixels[40, 280].tolist() == [128, 128, 128]
    assert np.abs(pixels[310, 310] - [5, 48, 97]).max() <= 4
    red, _, blue = pixels[10, 10]  # half as hot as the blue corner is cold
    assert red > blue + 30


def test_a_reduced_jpeg_is_drawn_where_it_lies() -> None:
    # A bright square in a picture whose sides no reduction divides: columns 501 to 801, rows 301 to 501.
    size = (803, 1101)
    photo = np.full((*size, 3), 20, dtype=np.uint8)
    photo[301:501, 501:801] = 235
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=95)
    reduced = read_picture(file.getvalue(), at_least=(150, 150))
    assert reduced.reduced
    assert reduced.box is not None
    assert reduced.size == size
    frame = Frame(picture=size, input=(32, 32), scale=(32 / 803, 32 / 1101))
    for longest in (1024, 400, reduced.image.width):
        one = explained(np.zeros((4, 4)), frame, picture=reduced)
        pixels = np.asarray(one.draw(longest=longest, strength=0.0).convert("L")).astype(float)
        assert max(pixels.shape) == longest
        rows, columns = np.nonzero(pixels > 127)
        scale = longest / 1101
        assert columns.mean() + 0.5 == pytest.approx(651 * scale, abs=0.7)
        assert rows.mean() + 0.5 == pytest.approx(401 * scale, abs=0.7)
        assert len(rows) == pytest.approx(300 * 200 * scale**2, rel=0.02)


def test_the_box_of_a_reduced_picture_counts_even_where_its_size_fits() -> None:
    # 99 pixels seen as 50: the last column is half beyond the picture. The drawing is 50 wide as well.
    image = Image.fromarray(np.linspace(0, 255, 50).astype(np.uint8)[None, :, None].repeat(50, 0).repeat(3, 2))
    picture = Picture(image, (99, 99), "a.jpg", box=(0.0, 0.0, 49.5, 49.5))
    frame = Frame(picture=(99, 99), input=(32, 32), scale=(32 / 99, 32 / 99))
    drawn = np.asarray(explained(np.zeros((4, 4)), frame, picture=picture).draw(longest=50, strength=0.0))
    assert drawn.shape == (50, 50, 3)
    assert drawn[25, 48, 0] < np.asarray(image)[25, 48, 0]


def test_what_cannot_be_drawn_is_said_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"The picture of a\.png was not kept, so nothing can be drawn on it\."):
        spot((30, 20), picture=None).draw()
    for longest in (0, -5):
        with pytest.raises(UsageError, match="longest must be at least one pixel"):
            spot((30, 20)).draw(longest=longest)
    with pytest.raises(UsageError, match="strength must be from 0 to 1"):
        spot((30, 20)).draw(strength=1.5)


def test_plain_values_ready_for_json() -> None:
    heat = random_heat(4, 6)
    one = explained(heat, FRAME, target=3, label="dog", score=0.25, signed=True, notes={"completeness": 0.01})
    values = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert values.pop("heat") == [[float(number) for number in row] for row in heat]
    assert values.pop("window") == pytest.approx([15, 15, 105, 75])
    assert values == {
        "name": "a.png",
        "size": [90, 120],
        "method": "relevance",
        "options": {},
        "target": 3,
        "label": "dog",
        "score": 0.25,
        "signed": True,
        "cell": [8, 8],
        "notes": {"completeness": 0.01},
    }
    plain = json.loads(json.dumps(explained(heat, FRAME).to_dict()))
    assert plain["target"] is plain["label"] is plain["score"] is None


def test_it_says_what_it_is() -> None:
    one = explained(random_heat(4, 6), FRAME, target=3, label="dog", score=0.25)
    assert repr(one) == "Explanation(a.png: relevance of dog (0.250), 4 × 6)"
    assert repr(explained(random_heat(4, 6), FRAME)) == "Explanation(a.png: relevance, 4 × 6)"
