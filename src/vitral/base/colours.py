"""Colours for numbers that colour-blind people can read, and that print in grey; and colours for kinds."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from vitral.base.numbers import whole_number
from vitral.errors import UnknownNameError, UsageError

__all__ = ["COLOUR_MAPS", "OKABE_ITO", "ColourMap", "coloured", "distinct_colours", "stretched", "voc_colours"]

ColourMap = Literal["viridis", "inferno", "cividis", "RdBu_r"]

# Evenly spaced stops of matplotlib's maps of the same names: every seventeenth of its 256 colours, and of RdBu_r, whose
# middle counts, every sixteenth part. viridis and inferno: Smith and van der Walt 2015; cividis: Nuñez et al. 2018; RdBu:
# Brewer 2003, for numbers of both signs. Lightness runs one way in the first three.
_STOPS: dict[ColourMap, str] = {
    "viridis": "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b "
    "fde725",
    "inferno": "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c c73e4c dd513a ed6925 f8850f fca50a fac62d f2e661 "
    "fcffa4",
    "cividis": "00224e 002e6c 1e3a6f 35456c 47516c 575d6d 666970 757575 848279 948e77 a59c74 b7a96e c8b866 dbc75a eed649 "
    "fee838",
    "RdBu_r": "053061 175290 2a71b2 3f8dc0 6bacd0 9ac9e0 c1ddec dfecf3 f7f7f6 fbe6d9 fbceb6 f5ac8b e58268 d25749 bb2a34 "
    "960f26 67001f",
}


def _table(stops: str) -> UInt8[np.ndarray, "256 3"]:
    colours = np.array([list(bytes.fromhex(stop)) for stop in stops.split()])
    places = np.linspace(0, len(colours) - 1, 256)
    channels = [np.interp(places, np.arange(len(colours)), channel) for channel in colours.T]
    return np.stack(channels, axis=1).round().astype(np.uint8)


COLOUR_MAPS: dict[ColourMap, UInt8[np.ndarray, "256 3"]] = {name: _table(stops) for name, stops in _STOPS.items()}
"""Name → colours of 0, 1/255, …, 1."""


OKABE_ITO = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Orange, sky blue, bluish green, yellow, blue, vermilion, reddish purple: colour-blind people tell them apart."""


def coloured(values: Float[np.ndarray, "*n"], colours: ColourMap = "viridis") -> UInt8[np.ndarray, "*n 3"]:
    """Colours of numbers from 0 to 1; what lies beyond takes the colour of the nearer end.

    Raises:
        UnknownNameError: no such colours.
    """
    if colours not in COLOUR_MAPS:
        raise UnknownNameError("colour map", colours, COLOUR_MAPS)
    return COLOUR_MAPS[colours][np.clip(np.rint(values * 255), 0, 255).astype(np.intp)]


def stretched(values: Shaped[np.ndarray, "*n"], *, signed: bool = False) -> Float[np.ndarray, "*n"]:
    """Numbers mapped to [0, 1]: from least to greatest, or, where signs count, with zero in the middle.

    Numbers that are all the same become 0 (or, signed and not zero, an end).

    Raises:
        UsageError: not all of them are finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise UsageError(f"{np.sum(~np.isfinite(values))} of {values.size} numbers are NaN or infinite and have no colour.")
    if signed:
        reach = np.abs(values).max(initial=0.0) or 1.0
        return 0.5 + values / (2 * reach)
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def voc_colours(count: int = 256) -> UInt8[np.ndarray, "k 3"]:
    """The palette of Pascal VOC's indexed pictures: the bits of a number dealt to red, green and blue, highest first.

    Number 0 is black, and 255, which VOC's files have for what is ignored, off-white. All numbers below 2²⁴ have
    colours of their own.

    Raises:
        UsageError: no whole number of at least 0.
    """
    numbers = np.arange(whole_number("count", count, least=0))
    colours = np.zeros((len(numbers), 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def distinct_colours(count: int) -> UInt8[np.ndarray, "k 3"]:
    """Colours that are told apart, for as many kinds as there are; those of fewer kinds are the first of those of more.

    The first seven are Okabe and Ito's, which colour-blind people tell apart. Each further one is, of a grid of colours that
    are neither nearly black, white or grey nor glaring, the one farthest from all before it (CIE 1976 L*a*b*). Behind
    the last of some 2,000 they repeat.

    Raises:
        UsageError: no whole number of at least 0.
    """
    wanted = whole_number("count", count, least=0)
    known = _told_apart(max(256, 1 << (min(wanted, 4096) - 1).bit_length()))
    return known[np.arange(wanted) % len(known)]


@cache
def _told_apart(count: int) -> UInt8[np.ndarray, "k 3"]:
    """The first of these colours."""
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    calm = (lab[:, 0] > 30) & (lab[:, 0] < 92) & (chroma > 25) & (chroma < 80)
    grid, lab = grid[calm], lab[calm]
    chosen = list(np.array(OKABE_ITO, dtype=np.uint8))
    away = np.min([np.square(lab - one).sum(1) for one in _lab(np.array(chosen))], axis=0)
    while len(chosen) < count and away.max() > 0:
        place = int(away.argmax())
        chosen.append(grid[place])
        away = np.minimum(away, np.square(lab - lab[place]).sum(1))
    return np.array(chosen)


def _lab(rgb: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """CIE 1976 L*a*b* of sRGB colours under D65 (IEC 61966-2-1 and CIE 15)."""
    part = rgb / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    ratio = linear @ np.array(matrix).T / [0.95047, 1.0, 1.08883]
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
