"""Colours for numbers that colour-blind people can read, and that print in grey."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from vitral.errors import UnknownNameError

__all__ = ["COLOUR_MAPS", "ColourMap", "coloured", "stretched"]

ColourMap = Literal["viridis", "inferno", "cividis", "RdBu_r"]

# Seventeen stops of each of matplotlib's maps of the same names, evenly spaced. viridis and inferno: Smith and van der Walt
# 2015; cividis: Nuñez et al. 2018; RdBu: Brewer 2003, for numbers of both signs. Lightness runs one way in the first three.
_STOPS: dict[ColourMap, str] = {
    "viridis": "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 "
    "d8e219 fde725",
    "inferno": "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d24644 e45a31 f1731d f98e09 fcac11 f9cb35 "
    "f2ea69 fcffa4",
    "cividis": "00224e 002e6a 1a386f 32436d 434e6c 535a6d 61656f 6f7073 7d7c78 8c8878 9b9476 aba072 bcae6c cdbb63 dec958 "
    "f0d846 fee838",
    "RdBu_r": "053061 175290 2a71b2 3f8ec0 6bacd1 9bc9e0 c2ddec e0ecf3 f7f6f6 fbe5d8 fbccb4 f5aa89 e48066 d05548 ba2832 "
    "930e26 67001f",
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
    """
    values = np.asarray(values, dtype=np.float64)
    if signed:
        reach = np.abs(values).max(initial=0.0) or 1.0
        return 0.5 + values / (2 * reach)
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
