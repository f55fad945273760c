"""Drawing answers onto copies of pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from vitral.base.colours import OKABE_ITO, ColourMap, coloured, distinct_colours, stretched
from vitral.base.masks import box_of, eroded, regions_of
from vitral.base.numbers import all_finite, real_number
from vitral.errors import UsageError

__all__ = ["draw_bars", "draw_boxes", "draw_classes", "draw_heat", "draw_masks", "draw_segments"]

_INK, _PAPER, _TRACK, _BAR = (24, 32, 46), (255, 255, 255), (232, 236, 241), (0, 114, 178)
"""Dark slate on white, and the blue of Okabe and Ito's palette, which colour-blind people tell apart."""

_COVER, _BAND = 0.55, 256
"""How much of the picture a colour covers, edges aside; and how many lines are coloured at once, to need little memory."""

_MOST_TAGS = 200
"""Of how many masks or segments labels are written: more would cover the picture."""


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
    pen = ImageDraw.Draw(drawn)
    line, edges = max(1, round(side / 250)), [_pixels_of(box, image.size) for box in boxes.tolist()]
    for (left, top, right, bottom), kind in reversed(list(zip(edges, kinds, strict=True))):
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_INK, width=line + 2)
        pen.rectangle((left, top, right, bottom), outline=OKABE_ITO[kind % len(OKABE_ITO)], width=line)
    _write_tags(drawn, edges, rows, [OKABE_ITO[kind % len(OKABE_ITO)] for kind in kinds])
    return drawn


def draw_classes(
    image: Image.Image, class_map: Integer[np.ndarray, "y x"], labels: Sequence[str], *, ignore: int = 255, most: int = 24
) -> Image.Image:
    """A copy of a picture with the colours of classes over it, and a legend below: colour, name and share of the picture.

    A class has the same colour in every picture. Pixels that are ignored stay grey.

    Args:
        image: an RGB picture; it is left as it is.
        class_map: for each of its pixels the place of its class among `labels`, or `ignore`.
        labels: the names of all classes.
        ignore: the number of pixels of no class, where no class has it.
        most: how many classes the legend names, those with most pixels; how many others there are, it says.

    Raises:
        UsageError: another number of pixels, or a number that is no class.
    """
    _one_number_a_pixel(image, class_map)
    values, areas, _ = regions_of(class_map)
    known = (values >= 0) & (values < len(labels))
    if (values[~known] != ignore).any():
        wrong = values[~known & (values != ignore)][0]
        raise UsageError(f"Pixels of class {wrong} came to be drawn; there are {len(labels)} classes.")
    table = distinct_colours(len(labels))
    colours = np.zeros((len(values), 3), dtype=np.uint8)
    colours[known] = table[values[known]]
    drawn = _tinted(image, class_map, values, colours, known)
    order = [place for place in np.argsort(-areas, kind="stable").tolist() if known[place]]
    rows = [
        (_colour_of(table, int(values[place])), labels[values[place]], int(areas[place]) / class_map.size) for place in order
    ]
    return _with_legend(drawn, rows, most)


def draw_segments(
    image: Image.Image, segment_map: Integer[np.ndarray, "y x"], rows: Mapping[int, tuple[str, float]]
) -> Image.Image:
    """A copy of a picture, of the same size, with every segment in a colour of its own, and what it is written on it.

    The first 200 that have pixels are labelled.

    Args:
        image: an RGB picture; it is left as it is.
        segment_map: for each of its pixels the number of its segment, or a number that has no row; such pixels stay grey.
        rows: a text and a score, from 0 to 1, of each segment. Its place decides upon its colour.

    Raises:
        UsageError: another number of pixels.
    """
    _one_number_a_pixel(image, segment_map)
    values, _, boxes = regions_of(segment_map)
    table, order = distinct_colours(len(rows)), {number: place for place, number in enumerate(rows)}
    known = np.array([value in rows for value in values.tolist()], dtype=bool)
    colours = np.zeros((len(values), 3), dtype=np.uint8)
    tags = {}
    for place, value in enumerate(values.tolist()):
        if known[place]:
            colours[place] = table[order[value]]
            left, top, right, bottom = map(int, boxes[place])
            x, y = _heart(segment_map[top:bottom, left:right] == value)
            tags[value] = (left + x, top + y)
    drawn = _tinted(image, segment_map, values, colours, known)
    shown = [number for number in rows if number in tags][:_MOST_TAGS]
    marks = [_colour_of(table, order[number]) for number in shown]
    _write_tags(drawn, [tags[number] * 2 for number in shown], [rows[number] for number in shown], marks, middle=True)
    return drawn


def draw_masks(
    image: Image.Image, masks: Bool[np.ndarray, "k y x"], rows: Sequence[tuple[str, float]], kinds: Sequence[int]
) -> Image.Image:
    """A copy of a picture, of the same size, with the pixels of objects coloured, their outlines, and what they are.

    Masks may overlap; what comes first lies on top. Of one that covers nothing, nothing is drawn. The first
    200 are labelled.

    Args:
        image: an RGB picture; it is left as it is.
        masks: the pixels of each object.
        rows: a text and a score, from 0 to 1, for each.
        kinds: a number for each; those of one number have one colour.

    Raises:
        UsageError: a mask without a row or a kind, or masks of another size.
    """
    if not len(masks) == len(rows) == len(kinds):
        raise UsageError(f"{len(masks)} masks, {len(rows)} rows and {len(kinds)} kinds came; every mask needs one of each.")
    if masks.shape[1:] != image.size[::-1]:
        raise UsageError(
            f"Masks of {' × '.join(map(str, masks.shape[1:]))} pixels came for a picture of {image.height} × {image.width}."
        )
    pixels = _grey_ground(image, 0.5)
    table, line = distinct_colours(max(kinds, default=-1) + 1), _line(image)
    hair = 1 + line // 4
    tags, named, marks = [], [], []
    boxes = [box_of(mask) for mask in masks]
    for place in reversed(range(len(masks))):
        left, top, right, bottom = boxes[place]
        if left == right:
            continue
        inside, part = masks[place, top:bottom, left:right], pixels[top:bottom, left:right]
        _mix(part, inside, table[kinds[place]], _COVER)
        part[inside & ~eroded(inside, line + hair)] = table[kinds[place]]
        part[inside & ~eroded(inside, hair)] = _INK
        x, y = _heart(inside)
        tags.append((left + x, top + y) * 2)
        named.append(rows[place])
        marks.append(_colour_of(table, kinds[place]))
    drawn = Image.fromarray(pixels)
    first = slice(None, -_MOST_TAGS - 1, -1)  # they were drawn from last to first
    _write_tags(drawn, tags[first], named[first], marks[first], middle=True)
    return drawn


def _one_number_a_pixel(image: Image.Image, numbers: Integer[np.ndarray, "y x"]) -> None:
    if numbers.shape != image.size[::-1]:
        raise UsageError(
            f"A map of {numbers.shape[0]} × {numbers.shape[1]} pixels came for a picture of {image.height} × {image.width}."
        )


def _line(image: Image.Image) -> int:
    """How thick the coloured line of an outline is, in pixels."""
    return max(1, round(math.sqrt(image.width * image.height) / 300))


def _colour_of(table: UInt8[np.ndarray, "n 3"], place: int) -> tuple[int, int, int]:
    red, green, blue = table[place].tolist()
    return red, green, blue


def _grey_ground(image: Image.Image, share: float) -> UInt8[np.ndarray, "y x 3"]:
    """A picture whose colours are paler, so that those laid over it stand out."""
    return np.array(Image.blend(image, image.convert("L").convert("RGB"), share))


def _mix(
    pixels: UInt8[np.ndarray, "y x 3"], where: Bool[np.ndarray, "y x"], colour: UInt8[np.ndarray, " 3"], cover: float
) -> None:
    """Lay a colour over some of the pixels, in place."""
    kept = pixels[where]
    pixels[where] = (kept * (1 - cover) + colour * cover + 0.5).astype(np.uint8)


def _tinted(
    image: Image.Image,
    numbers: Integer[np.ndarray, "y x"],
    values: Int64[np.ndarray, " n"],
    colours: UInt8[np.ndarray, "n 3"],
    known: Bool[np.ndarray, " n"],
) -> Image.Image:
    """A picture with a colour over the pixels of each number that is known. At the edges of its parts it covers wholly."""
    pixels, line = _grey_ground(image, 0.6), _line(image)
    same, first = np.ones(numbers.shape, dtype=bool), np.ones(numbers.shape, dtype=bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        alike = numbers[one] == numbers[other]
        first[one] &= alike
        same[one] &= alike
        same[other] &= alike
    same = eroded(same, line - 1, beyond=True)
    first = eroded(first, line // 4, beyond=True)  # a dark hairline parts colours that look alike
    for top in range(0, len(pixels), _BAND):
        band = slice(top, top + _BAND)
        places = np.searchsorted(values, numbers[band])
        cover = np.where(same[band], np.float32(_COVER), np.float32(1)) * known[places]
        ground = pixels[band]
        for channel in range(3):
            wanted = colours[:, channel].astype(np.float32)[places]
            ground[..., channel] = ground[..., channel] * (1 - cover) + wanted * cover + np.float32(0.5)
        ground[~first[band]] = _INK
    return Image.fromarray(pixels)


def _heart(mask: Bool[np.ndarray, "y x"]) -> tuple[int, int]:
    """A pixel (x, y) well inside a mask: in the row that halves its area, the middle of the longest run."""
    rows = np.cumsum(np.count_nonzero(mask, axis=1))
    y = int(np.searchsorted(rows, (rows[-1] + 1) // 2))
    turns = np.diff(mask[y].astype(np.int8), prepend=0, append=0)
    starts, ends = np.flatnonzero(turns == 1), np.flatnonzero(turns == -1)
    longest = int((ends - starts).argmax())
    return int(starts[longest] + ends[longest] - 1) // 2, y


def _with_legend(image: Image.Image, rows: Sequence[tuple[tuple[int, int, int], str, float]], most: int) -> Image.Image:
    """A picture with rows of colour, name and share below it, in as many columns as there is room for."""
    width = max(image.width, 360)
    size = max(13, round(math.sqrt(width * image.height) / 55))
    probe, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), _font(size)
    gap, high = size, round(size * 1.6)
    named = [(colour, " ".join(label.split()), _share(share)) for colour, label, share in rows[:most]]
    figures = max((probe.textlength(figure, font=font) for *_, figure in named), default=0.0)
    texts = max((probe.textlength(label, font=font) for _, label, _ in named), default=0.0)
    wide = min(math.ceil(texts + figures) + size + 2 * gap, width - 2 * gap)
    columns = max(1, min((width - gap) // (wide + gap), len(named)))
    lines = -(-len(named) // columns)
    left_out = len(rows) - len(named)
    sheet = Image.new("RGB", (width, image.height + gap * 2 + high * (lines + (left_out > 0))), _PAPER)
    sheet.paste(image, ((width - image.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for place, (colour, label, figure) in enumerate(named):
        left, top = gap + place // lines * (wide + gap), image.height + gap + place % lines * high
        middle = top + high // 2
        pen.rectangle((left, middle - size // 2, left + size, middle + size // 2), colour, outline=_INK)
        text = _shortened(label, pen, font, wide - size - 2 * gap - figures)
        pen.text((left + size + gap // 2, middle), text, _INK, font=font, anchor="lm")
        pen.text((left + wide, middle), figure, _INK, font=font, anchor="rm")
    if left_out:
        text = f"and {left_out} more class{'' if left_out == 1 else 'es'}"
        pen.text((gap, image.height + gap + lines * high + high // 2), text, _INK, font=font, anchor="lm")
    return sheet


def _share(share: float) -> str:
    """A share of a picture for a reader."""
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def _write_tags(
    image: Image.Image,
    edges: Sequence[tuple[int, int, int, int]],
    rows: Sequence[tuple[str, float]],
    colours: Sequence[tuple[int, int, int]],
    *,
    middle: bool = False,
) -> None:
    """Write labels on a picture, the first on top: at the edges of boxes, or in their middles."""
    pen, font = ImageDraw.Draw(image), _font(max(11, round(math.sqrt(image.width * image.height) / 45)))
    tags = list(_tags(pen, font, edges, rows, image.size, middle=middle))
    for (place, text), colour in reversed(list(zip(tags, colours, strict=True))):
        pen.rectangle(place, colour)
        centre = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        pen.text(centre, text, _readable_on(colour), font=font, anchor="mm")


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
    *,
    middle: bool = False,
) -> Iterator[tuple[tuple[int, int, int, int], str]]:
    """For each box where its label stands, in first and last pixels, and the text that fits there.

    Labels stand at the edges of boxes, or with their middles on theirs, or a little above or below.
    """
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
        if middle:
            x, y = (left + right + 1 - wide) // 2, (top + bottom + 1 - high) // 2
            corners = [(x, y + step) for step in (0, high, -high, 2 * high, -2 * high)]
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
