"""An explanation of one object that a detector found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from vitral.base.colours import ColourMap
from vitral.base.draw import draw_boxes
from vitral.errors import UsageError
from vitral.explanation.look import Look
from vitral.explanation.result import Explanation

__all__ = ["ObjectExplanation", "draw_objects"]

_GAP, _PAPER = 12, (255, 255, 255)
_MOST = 64  # places that are drawn of a layer, the weightiest: beyond, dots cover the picture


@dataclass(frozen=True, eq=False, kw_only=True)
class ObjectExplanation(Explanation):
    """Which parts of a picture mattered for one object, as one method sees it.

    `target`, `label` and `score` are those of the object's class.

    Attributes:
        place: the object's among all that were found, from 0 for the best one.
        query: which row of the model's output it was read from: its query, anchor or region.
        box: left, top, right and bottom in pixels of the picture.
        look: everything that was found, and what every object's query took from where, layer by layer and head by head.
    """

    place: int
    query: int
    box: Float[np.ndarray, " 4"]
    look: Look

    def __repr__(self) -> str:
        return "Object" + super().__repr__()

    def draw(self, *, colours: ColourMap | None = None, strength: float = 0.75, longest: int = 1024) -> Image.Image:
        """A copy of the picture with the heat and the object's box on it; for the arguments see `Explanation.draw`.

        Where attention samples places, those of the layer are dots, the larger the more they count.
        """
        drawn = super().draw(colours=colours, strength=strength, longest=longest)
        scale = np.array([drawn.width / self.size[1], drawn.height / self.size[0]])
        if self.method == "attention" and self.look.sampled:
            points = self.look.points(self.place, self.options.get("layer", -1))
            _dot(drawn, points.xy.reshape(-1, 2) * scale, points.weights.ravel() / len(points.weights))
        row = (self.label or "", self.score or 0.0)
        return draw_boxes(drawn, (self.box * np.tile(scale, 2))[None], [row], [self.target or 0])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return super().to_dict() | {"place": self.place, "query": self.query, "box": self.box.tolist()}


def _dot(image: Image.Image, places: Float[np.ndarray, "n 2"], weights: Float[np.ndarray, " n"]) -> None:
    """Draw places as dots whose areas are as their weights, the greatest first, so that small ones lie on top."""
    unit = math.sqrt(image.width * image.height)
    pen = ImageDraw.Draw(image)
    for one in np.argsort(-weights)[:_MOST]:
        radius = unit * min(0.055 * math.sqrt(weights[one]), 0.03)
        if radius < 0.5:
            continue
        x, y = places[one]
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), (86, 180, 233), (24, 32, 46), 1)


def draw_objects(
    explanations: Sequence[Explanation], *, columns: int = 3, longest: int = 640, **options: Any
) -> Image.Image:
    """Explanations of the objects, or segments, of one picture on one sheet, in rows from left to right.

    Args:
        explanations: of one picture.
        columns: how many side by side, at most.
        longest: the longer side of each, in pixels.
        **options: see `Explanation.draw`.

    Raises:
        UsageError: no explanations.
    """
    if not explanations:
        raise UsageError("There is nothing to draw: nothing was found to be explained. A lower threshold finds more.")
    drawn = [one.draw(longest=longest, **options) for one in explanations]
    across = min(max(1, columns), len(drawn))
    down = -(-len(drawn) // across)
    width, height = max(one.width for one in drawn), max(one.height for one in drawn)
    sheet = Image.new("RGB", (across * (width + _GAP) - _GAP, down * (height + _GAP) - _GAP), _PAPER)
    for place, one in enumerate(drawn):
        sheet.paste(one, (place % across * (width + _GAP), place // across * (height + _GAP)))
    return sheet
