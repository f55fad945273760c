"""Colours for numbers that colour-blind people can read, and that print in grey."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from vitral.errors import UnknownNameError, UsageError

__all__ = ["COLOUR_MAPS", "ColourMap", "coloured", "stretched"]

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
