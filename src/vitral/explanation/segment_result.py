"""An explanation of one segment of a picture, or of one of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from vitral.base.colours import ColourMap
from vitral.base.masks import boundary_of, box_of, encode_rle
from vitral.explanation.result import Explanation
from vitral.explanation.segment_look import Pixel, SegmentLook

__all__ = ["SegmentExplanation"]

_EDGE = (86, 180, 233)  # sky blue of Okabe and Ito's, which no heat has


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentExplanation(Explanation):
    """Which parts of a picture mattered for one segment, or for what was said of one pixel, as one method sees it.

    `target`, `label` and `score` are those of the segment's class.

    Attributes:
        place: the segment's among all that were found and the pixels behind them, from 0; see `SegmentLook.asked`.
        mask: its pixels.
        query: which row of the model's output it was read from; None for networks of classes.
        pixel: x and y of the pixel that was asked about; None for a segment.
        look: everything that was found, and what was taken from where, layer by layer and head by head.
    """

    place: int
    mask: Bool[np.ndarray, "y x"]
    query: int | None
    pixel: Pixel | None
    look: SegmentLook

    def __repr__(self) -> str:
        return "Segment" + super().__repr__()

    def draw(self, *, colours: ColourMap | None = None, strength: float = 0.75, longest: int = 1024) -> Image.Image:
        """A copy of the picture with the heat and the segment's outline, or the pixel's place, on it; see
        `Explanation.draw`."""
        drawn = super().draw(colours=colours, strength=strength, longest=longest)
        thick = max(1, round(max(drawn.size) / 300))
        if self.pixel is not None:
            x, y = (
                (int(at) + 0.5) * new / old for at, new, old in zip(self.pixel, drawn.size, self.size[::-1], strict=True)
            )
            pen, reach = ImageDraw.Draw(drawn), 6 * thick
            for colour, wide in (((24, 32, 46), 3 * thick), (_EDGE, thick)):
                pen.line((x - reach, y, x + reach, y), colour, wide)
                pen.line((x, y - reach, x, y + reach), colour, wide)
            return drawn
        rows, columns = (
            (np.arange(new) * old // new) for new, old in zip((drawn.height, drawn.width), self.size, strict=True)
        )
        pixels = np.array(drawn)
        pixels[boundary_of(self.mask[np.ix_(rows, columns)], thick + 1)] = _EDGE
        return Image.fromarray(pixels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a mask is COCO's run lengths, a box [left, top, right, bottom] in pixels."""
        return super().to_dict() | {
            "place": self.place,
            "query": self.query,
            "pixel": None if self.pixel is None else list(self.pixel),
            "box": list(box_of(self.mask)),
            "mask": encode_rle(self.mask),
        }
