"""Drawing answers onto copies of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from vitral.base.colours import ColourMap, coloured, stretched
from vitral.base.numbers import real_number
from vitral.errors import UsageError

__all__ = ["draw_bars", "draw_heat"]

_INK, _PAPER, _TRACK, _BAR = (24, 32, 46), (255, 255, 255), (232, 236, 241), (0, 114, 178)
"""Dark slate on white, and the blue of Okabe and Ito's palette, which colour-blind people tell apart."""


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


def _shortened(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """A text cut to fit, with an ellipsis where something was cut."""
    if pen.textlength(text, font=font) <= room:
        return text
    while text and pen.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text.rstrip(" ,") + "…"
