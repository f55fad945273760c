"""Drawing answers onto copies of pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from vitral.base.colours import ColourMap, coloured, stretched
from vitral.base.numbers import all_finite, real_number
from vitral.errors import UsageError

__all__ = ["draw_bars", "draw_boxes", "draw_heat"]

_INK, _PAPER, _TRACK, _BAR = (24, 32, 46), (255, 255, 255), (232, 236, 241), (0, 114, 178)
"""Dark slate on white, and the blue of Okabe and Ito's palette, which colour-blind people tell apart."""

_KINDS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""The colours of that palette: orange, sky blue, bluish green, yellow, blue, vermilion, reddish purple."""


def draw_bars(image: Image.Image, rows: Sequence[tuple[str, float]], *, longest: int = 640) -> Image.Image:
    """A copy of a picture with one labelled bar below it for each row.

    Args:
        image: an RGB picture; it is left as it is.
        rows: a text and a score each; bars are as long as the score, from 0 to 1.
        longest: the longer side of the copy's picture, in pixels; smaller pictures are enlarged to at least half of it.
    """
    scale = longest / max(image.size)
    if scale < 1 or scale > 2:
        enlarged = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(enlarged, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    width, line, margin = max(image.width, 360), 34, 14
    sheet = Image.new("RGB", (width, image.height + 2 * margin + line * len(rows)), _PAPER)
    sheet.paste(image, ((width - image.width) // 2, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for place, (label, score) in enumerate(rows):
        top = image.height + margin + place * line
        figure = f"{score:.1%}" if 0 <= score <= 1 else f"{score:.2f}"
        room = width - 3 * margin - pen.textlength(figure, font=font)
        pen.text((margin, top), _shortened(label, pen, font, room), _INK, font=font)
        pen.text((width - margin, top), figure, _INK, font=font, anchor="ra")
        track = (margin, top + 21, width - margin, top + 26)
        pen.rounded_rectangle(track, 2, _TRACK)
        length = round((width - 2 * margin) * min(max(score, 0.0), 1.0))
        if length > 3:
            pen.rounded_rectangle((margin, track[1], margin + length, track[3]), 2, _BAR)
    return sheet


def draw_heat(
    image: Image.Image,
    heat: Float[np.ndarray, "y x"],
    *,
    colours: ColourMap = "inferno",
    signed: bool = False,
    strength: float = 0.75,
) -> Image.Image:
    """A copy of a picture with heat on it: the hotter, the more its colour covers the (greyed) picture.

    Args:
        image: an RGB picture; it is left as it is.
        heat: a number for each of its pixels.
        colours: of the heat, from least to greatest.
        signed: whether signs count; then zero is in the middle of the colours and covers nothing.
        strength: how much of the picture the greatest heat covers, from 0 to 1.

    Raises:
        UsageError: another number of pixels, heat that is no finite number, or a strength beyond its range.
        UnknownNameError: no such colours.
    """
    if heat.shape != image.size[::-1]:
        raise UsageError(
            f"Heat of {heat.shape[0]} × {heat.shape[1]} pixels came for a picture of {image.height} × {image.width}."
        )
    if not 0 <= real_number("strength", strength) <= 1:
        raise UsageError(f"strength must be from 0 to 1; {strength!r} came.")
    level = stretched(heat, signed=signed)
    cover = strength * (np.abs(2 * level - 1) if signed else 0.25 + 0.75 * level)[..., None]
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]
    ground = 0.4 * np.asarray(image, dtype=np.float64) + 0.6 * grey
    mixed = (1 - cover) * ground + cover * coloured(level, colours)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def draw_boxes(
    image: Image.Image, boxes: Float[np.ndarray, "k 4"], rows: Sequence[tuple[str, float]], kinds: Sequence[int]
) -> Image.Image:
    """A copy of a picture, of the same size, with labelled boxes on it.

    Lines and letters grow with the picture. A line is dark on both its sides, so that it is seen on any ground. A label
    stands above its box or, where that would leave the picture or cover another label, at its other edges or within; it is
    shortened where the picture is too narrow. What comes first lies on top.

    Args:
        image: an RGB picture; it is left as it is.
        boxes: left, top, right and bottom of each, in pixels of the picture; what lies beyond it is cut off.
        rows: a text and a score, from 0 to 1, for each box.
        kinds: a number for each box; those of one number have one colour. There are seven, which colour-blind people tell
            apart; then they repeat.

    Raises:
        UsageError: a box without a row or a kind, or one that is not finite.
    """
    if not len(boxes) == len(rows) == len(kinds):
        raise UsageError(f"{len(boxes)} boxes, {len(rows)} rows and {len(kinds)} kinds came; every box needs one of each.")
    all_finite("boxes to draw", boxes)
    drawn = image.copy()
    side = math.sqrt(image.width * image.height)
    pen, font = ImageDraw.Draw(drawn), _font(max(11, round(side / 45)))
    line, edges = max(1, round(side / 250)), [_pixels_of(box, image.size) for box in boxes.tolist()]
    for (left, top, right, bottom), kind in reversed(list(zip(edges, kinds, strict=True))):
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_INK, width=line + 2)
        pen.rectangle((left, top, right, bottom), outline=_KINDS[kind % len(_KINDS)], width=line)
    tags = list(_tags(pen, font, edges, rows, image.size))
    for (place, text), kind in reversed(list(zip(tags, kinds, strict=True))):
        colour = _KINDS[kind % len(_KINDS)]
        pen.rectangle(place, colour)
        middle = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        pen.text(middle, text, _readable_on(colour), font=font, anchor="mm")
    return drawn


def _pixels_of(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The first and last column and row of pixels that a box touches, within a picture of (width, height)."""
    left, right = (min(max(edge, 0.0), float(size[0])) for edge in box[::2])
    top, bottom = (min(max(edge, 0.0), float(size[1])) for edge in box[1::2])
    first, above = min(int(left), size[0] - 1), min(int(top), size[1] - 1)
    return first, above, max(first, math.ceil(right) - 1), max(above, math.ceil(bottom) - 1)


def _tags(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    edges: Sequence[tuple[int, int, int, int]],
    rows: Sequence[tuple[str, float]],
    size: tuple[int, int],
) -> Iterator[tuple[tuple[int, int, int, int], str]]:
    """For each box where its label stands, in first and last pixels, and the text that fits there."""
    _, ascent, _, descent = pen.textbbox((0, 0), "Ägp", font=font)
    margin = max(2, round((descent - ascent) / 5))
    high = min(round(descent - ascent) + 2 * margin, size[1])
    taken = np.zeros((0, 4), dtype=np.int64)
    for (left, top, right, bottom), (label, score) in zip(edges, rows, strict=True):
        figure = f" {score:.0%}"
        room = size[0] - 2 * margin - pen.textlength(figure, font=font)
        text = _shortened(" ".join(label.split()), pen, font, room) + figure
        wide = min(math.ceil(pen.textlength(text, font=font)) + 2 * margin, size[0])
        tops, lefts = (top - high, bottom + 1, top, bottom + 1 - high), (left, right + 1 - wide)
        corners = [(x, y) for y in tops for x in lefts]
        inside = [(x, y) for x, y in corners if 0 <= x <= size[0] - wide and 0 <= y <= size[1] - high]
        inside += [(min(max(x, 0), size[0] - wide), min(max(y, 0), size[1] - high)) for x, y in corners]
        places = np.array([(x, y, x + wide - 1, y + high - 1) for x, y in inside])
        apart = (places[:, None, :2] > taken[None, :, 2:]) | (places[:, None, 2:] < taken[None, :, :2])
        free = apart.any(-1).all(-1)
        chosen = places[int(free.argmax())]  # the first free one, or the first of all
        taken = np.concatenate([taken, chosen[None]])
        yield tuple(chosen.tolist()), text


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Matplotlib's own font, which has letters of many languages; Pillow's has those of English. It is found unimported."""
    found = find_spec("matplotlib")
    file = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found and found.origin else None
    return ImageFont.truetype(file, size) if file and file.is_file() else ImageFont.load_default(size=size)


def _readable_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out more (WCAG 2.1, relative luminance; they are even at 0.179)."""
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in np.array(colour) / 255]
    return (0, 0, 0) if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else (255, 255, 255)


def _shortened(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """A text cut to fit, with an ellipsis where something was cut."""
    if pen.textlength(text, font=font) <= room:
        return text
    while text and pen.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text.rstrip(" ,") + "…"
