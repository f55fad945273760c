"""An explanation: heat over a picture that knows its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vitral.base.colours import ColourMap
from vitral.base.draw import draw_heat
from vitral.base.frame import Frame
from vitral.base.image import Picture
from vitral.errors import UsageError
from vitral.explanation.geometry import TokenGeometry

__all__ = ["Explanation"]

_PLAIN = (str, int, float, bool)


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which parts of a picture mattered, as one method sees it.

    Attributes:
        name: the picture's path, address or description.
        method: a key of `explanation.methods.METHODS`.
        heat: a number per patch (i j) or per pixel of the model's input (y x); greater is more important.
        cell: (height, width) of what one number covers, in input pixels: the patch size, or (1, 1).
        geometry: where the tokens lie in the picture.
        target: the class that was explained; None for a method that knows no class, or a score of the caller's.
        label: its name.
        score: its probability.
        options: what was asked of the method: layer, head, ….
        signed: whether negative heat speaks against the class; else heat only ranks.
        picture: the picture itself, where it was kept.
        notes: further numbers a method has to tell, such as how far integrated gradients are from complete.

    Raises:
        UsageError: heat that is not finite.
    """

    name: str
    method: str
    heat: Float[np.ndarray, "i j"]
    cell: tuple[int, int]
    geometry: TokenGeometry
    target: int | None = None
    label: str | None = None
    score: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    signed: bool = False
    picture: Picture | None = None
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not np.isfinite(self.heat).all():
            raise UsageError(
                f"The heat of {self.name} ({self.method}) has numbers that are not finite (NaN or infinity). If the model "
                "computes in half precision, try dtype='float32'."
            )

    def __repr__(self) -> str:
        of = "" if self.label is None else f" of {self.label}" + ("" if self.score is None else f" ({self.score:.3f})")
        asked = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        how = f"{self.method}({asked})" if asked else self.method
        return f"Explanation({self.name}: {how}{of}, {self.heat.shape[0]} × {self.heat.shape[1]})"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return self.geometry.frame.picture

    @property
    def clipped(self) -> Float[np.ndarray, "i j"]:
        """The heat as it is drawn, per pixel cut off at the 99th percentile of its magnitude.

        A few pixels of a gradient may be so hot that all others would look cold.
        """
        if self.cell != (1, 1):
            return self.heat
        limit = np.quantile(np.abs(self.heat), 0.99)
        return self.heat.clip(-limit, limit)

    def on_picture(self, outside: float | None = None) -> Float[np.ndarray, "y x"]:
        """The heat of every pixel of the original picture.

        Args:
            outside: the heat of what the model did not see; the least heat (or, signed, none) by default.
        """
        return self._on(self.geometry.frame, outside)

    def on_input(self) -> Float[np.ndarray, "y x"]:
        """The heat of every pixel of the model's input."""
        size = self.geometry.frame.input
        return self._on(Frame(picture=size, input=size), None)

    def _on(self, frame: Frame, outside: float | None) -> Float[np.ndarray, "y x"]:
        if outside is None:
            outside = 0.0 if self.signed else float(self.heat.min())
        return frame.map_to_picture(self.heat, self.cell, outside=outside)

    @property
    def peak(self) -> tuple[float, float]:
        """The hottest point (x, y) of the picture, in pixels: the centre of the hottest cell."""
        row, column = np.unravel_index(int(self.heat.argmax()), self.heat.shape)
        centre = np.array([(column + 0.5) * self.cell[1], (row + 0.5) * self.cell[0]])
        x, y = self.geometry.frame.to_picture(centre).tolist()
        return x, y

    def draw(self, *, colours: ColourMap | None = None, strength: float = 0.75, longest: int = 1024) -> Image.Image:
        """A copy of the picture with the heat on it.

        Args:
            colours: by default "inferno" for heat that ranks, "RdBu_r" where signs count (red speaks for the class).
            strength: how much of the picture the greatest heat covers, from 0 to 1.
            longest: the longer side of the copy, in pixels; larger pictures are shrunk, very small ones enlarged.

        Raises:
            UsageError: the picture was not kept, or a strength or a length that cannot be.
            UnknownNameError: no such colours.
        """
        if self.picture is None:
            raise UsageError(f"The picture of {self.name} was not kept, so nothing can be drawn on it.")
        if longest < 1:
            raise UsageError(f"longest must be at least one pixel; {longest} came.")
        image = self.picture.image
        scale = min(longest / max(self.size), max(1.0, longest / 4 / max(self.size)))
        height, width = (max(1, round(side * scale)) for side in self.size)
        if image.size != (width, height) or self.picture.box is not None:
            how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            image = image.resize((width, height), how, box=self.picture.box)
        heat = replace(self, heat=self.clipped)._on(self.geometry.frame.resized((height, width)), None)
        return draw_heat(
            image, heat, colours=colours or ("RdBu_r" if self.signed else "inferno"), signed=self.signed, strength=strength
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "name": self.name,
            "size": list(self.size),
            "method": self.method,
            "options": {name: value if isinstance(value, _PLAIN) else str(value) for name, value in self.options.items()},
            "target": self.target,
            "label": self.label,
            "score": self.score,
            "signed": self.signed,
            "cell": list(self.cell),
            "window": list(self.geometry.frame.window),
            "heat": self.heat.tolist(),
            "notes": dict(self.notes),
        }
