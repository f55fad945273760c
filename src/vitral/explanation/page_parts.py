"""What pages about the things found in a picture are told, whatever these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Float
from PIL import Image

from vitral.base import page
from vitral.base.colours import COLOUR_MAPS, OKABE_ITO, stretched
from vitral.base.frame import Frame, Seen
from vitral.explanation.detection import ObjectMethod
from vitral.explanation.packing import Store
from vitral.explanation.result import Explanation

__all__ = [
    "blocks_summed",
    "coarser_heat",
    "colours_told",
    "corners",
    "eight_bits",
    "method_buttons",
    "method_told",
    "methods_section",
    "picture_told",
    "resource",
    "shown_score",
    "tint",
]

_LONGEST = 960  # pixels of the picture on the page
_FINEST = 144  # numbers along the longer side of a heat per pixel

_E = TypeVar("_E", bound=Explanation)


def resource(name: str) -> str:
    """A style or a script that lies beside this page."""
    return files("vitral.explanation").joinpath(name).read_text("utf-8")


def picture_told(seen: Seen) -> dict[str, Any]:
    """The picture, at the page's size, and its own size in pixels."""
    picture, (height, width) = cast(Any, seen.picture), seen.frame.picture
    scale = min(1.0, _LONGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = picture.image
    if image.size != size or picture.box is not None:
        image = image.resize(size, Image.Resampling.LANCZOS, box=picture.box)
    return {"address": page.picture_address(image, photo=max(size) > 96), "width": width, "height": height}


def colours_told(store: Store) -> dict[str, Any]:
    """The colours of heat that ranks, and of heat whose sign counts."""
    return {"heat": store.add(COLOUR_MAPS["inferno"]), "signed": store.add(COLOUR_MAPS["RdBu_r"])}


def tint(number: int) -> str:
    """The colour of a thing on the page; they repeat behind the seventh."""
    return "#{:02x}{:02x}{:02x}".format(*OKABE_ITO[number % len(OKABE_ITO)])


def method_told(
    name: str, methods: Mapping[str, ObjectMethod], found: Sequence[Explanation] | None, store: Store
) -> dict[str, Any]:
    """A method, and its heat for each thing in eight bits; None where it lies elsewhere, as that of attention."""
    told: dict[str, Any] = {"name": name, "title": methods[name].title, "signed": methods[name].signed}
    if found is None:
        return told
    coarse = [coarser_heat(one) for one in found]
    heats = [np.rint(255 * stretched(one.clipped, signed=one.signed)).astype(np.uint8) for one in coarse]
    frame, shape, cell = coarse[0].geometry.frame, coarse[0].heat.shape, coarse[0].cell
    return told | {"levels": store.add(np.stack(heats)), "over": corners(frame, (shape[0], shape[1]), cell)}


def coarser_heat(explanation: _E) -> _E:
    """Heat of as many numbers as a page has use for: per pixel, the sums of squares of pixels."""
    side = -(-max(explanation.heat.shape) // _FINEST)
    if side == 1:
        return explanation
    cell = explanation.cell[0] * side, explanation.cell[1] * side
    return replace(explanation, heat=blocks_summed(explanation.heat, side), cell=cell)


def blocks_summed(values: Float[np.ndarray, "*k i j"], side: int) -> Float[np.ndarray, "*k u v"]:
    """Sums of squares of cells; those at the right and at the bottom may hold fewer."""
    if side == 1:
        return values
    rows, columns = (-(-length // side) * side for length in values.shape[-2:])
    margins = [(0, 0)] * (values.ndim - 2) + [(0, rows - values.shape[-2]), (0, columns - values.shape[-1])]
    padded = np.pad(values, margins)
    laid = padded.reshape(*values.shape[:-2], rows // side, side, columns // side, side)
    return cast(np.ndarray, laid.sum((-3, -1)))


def eight_bits(shares: Float[np.ndarray, "*k i j"]) -> tuple[np.ndarray, Float[np.ndarray, "*k"]]:
    """Square roots of shares of each map's greatest, from 0 to 255, and the greatest.

    The root spends the levels where most shares are, near zero.
    """
    peaks = shares.max((-2, -1))
    scaled = np.sqrt(shares / np.maximum(peaks, np.finfo(np.float32).tiny)[..., None, None])
    return np.rint(255 * scaled).astype(np.uint8), peaks


def corners(frame: Frame, grid: tuple[int, int], cell: tuple[int, int]) -> list[float]:
    """Where the cells of a grid lie in the picture, all together: left, top, right and bottom."""
    size = np.array([grid[1] * cell[1], grid[0] * cell[0]])
    return cast(list[float], frame.to_picture(np.stack([np.zeros(2), size])).ravel().tolist())


def method_buttons(methods: Sequence[Mapping[str, Any]]) -> str:
    """What the methods are chosen by."""
    return "".join(
        f'<button class="choice" aria-pressed="false" data-method="{one["name"]}">{escape(one["title"])}</button>'
        for one in methods
    )


def methods_section(names: Sequence[str], methods: Mapping[str, ObjectMethod], *more: tuple[str, str]) -> str:
    """What each method's heat is, and what else can be looked at."""
    if not names:
        return ""
    rows = []
    for name in names:
        method = methods[name]
        colours = " Red speaks for the class, blue against it." if method.signed else ""
        rows.append((method.title, f"Each place's heat is {method.asks} ({method.paper}).{colours}"))
    return page.section("What the heat is", page.facts([*rows, *more]))


def shown_score(score: float) -> str:
    """A probability as the page writes it."""
    return f"{score:.1%}".replace("%", "\u00a0%")
