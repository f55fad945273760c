"""A picture with all that is known of places in it, so that whatever moves the picture moves them too.

Coordinates are continuous, as everywhere in Vitral: pixel `i` covers [i, i + 1).

What becomes of objects that leave the picture is one rule for all augmentations:

- boxes are clipped to the picture: a box is the tightest around what is still visible of the old one;
- after a turn it is the tightest around the object's mask, where that is known: turned again and again, boxes alone grow;
- an object (a row of `boxes` and `masks`) is dropped once nothing of it is visible: its box is empty, or its mask;
- `kept` tells which rows of the original are left, so that labels follow: `labels = labels[example.kept]`;
- points are never dropped nor clipped: row `i` stays point `i`, and `points_inside` tells which are in the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer
from PIL import Image

from vitral.base.numbers import all_finite
from vitral.errors import UsageError

__all__ = ["Augment", "Chain", "Example"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Example:
    """A picture and what is known of places in it.

    Args:
        image: the pixels, mode RGB or L (grey).
        boxes: (x0, y0, x1, y1) of k objects, in pixels of the picture.
        masks: the pixels of the same k objects.
        class_map: the class of each pixel.
        points: (x, y), in pixels of the picture.
        kept: which rows of the original example the k objects are; None: all of them, in their order.
        ignore: what `class_map` holds where the class is not known; padding and turning bring it in.

    Raises:
        UsageError: sizes that do not agree, a picture of another mode, or numbers that are not finite.
    """

    image: Image.Image
    boxes: Float32[np.ndarray, "k 4"] | None = None
    masks: Bool[np.ndarray, "k y x"] | None = None
    class_map: Integer[np.ndarray, "y x"] | None = None
    points: Float32[np.ndarray, "m 2"] | None = None
    kept: Int64[np.ndarray, " k"] | None = None
    ignore: int = 255

    def __post_init__(self) -> None:
        if self.image.mode not in ("RGB", "L"):
            raise UsageError(f"The image of an Example must be RGB or L, but its mode is {self.image.mode!r}. Convert it.")
        if self.boxes is not None or self.masks is not None or self.kept is not None:
            self._check_objects()
        if self.class_map is not None:
            self._check_class_map(self.class_map)
        if self.points is not None:
            if self.points.ndim != 2 or self.points.shape[1] != 2:
                raise UsageError(f"The points of an Example must be (m, 2), x and y, but are {self.points.shape}.")
            all_finite("points of an Example", self.points)

    def _check_objects(self) -> None:
        """Boxes, masks and row numbers speak of the same objects; `kept` is always known where there are objects."""
        counts = {len(rows) for rows in (self.boxes, self.masks, self.kept) if rows is not None}
        if len(counts) > 1:
            raise UsageError(f"boxes, masks and kept of an Example must have a row per object, but have {counts} rows.")
        if self.boxes is not None:
            if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
                raise UsageError(f"The boxes of an Example must be (k, 4), x0 y0 x1 y1, but are {self.boxes.shape}.")
            all_finite("boxes of an Example", self.boxes)
            if (self.boxes[:, :2] > self.boxes[:, 2:]).any():
                raise UsageError("The boxes of an Example must have x0 <= x1 and y0 <= y1. Were they cxcywh or xywh?")
        if self.masks is not None and self.masks.shape[1:] != self.size:
            raise UsageError(f"The masks of an Example must be {self.size} as its image, but are {self.masks.shape[1:]}.")
        if self.kept is None:
            object.__setattr__(self, "kept", np.arange(counts.pop(), dtype=np.int64))

    def _check_class_map(self, class_map: Integer[np.ndarray, "y x"]) -> None:
        if class_map.shape != self.size:
            raise UsageError(f"The class_map of an Example must be {self.size} as its image, but is {class_map.shape}.")
        kind = np.iinfo(class_map.dtype)
        if not kind.min <= self.ignore <= kind.max:
            raise UsageError(f"ignore of an Example is {self.ignore}, which a class_map of {class_map.dtype} cannot hold.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture, in pixels."""
        return self.image.height, self.image.width

    @property
    def points_inside(self) -> Bool[np.ndarray, " m"]:
        """Which points lie in the picture."""
        if self.points is None:
            return np.zeros(0, dtype=bool)
        height, width = self.size
        inside: Bool[np.ndarray, " m"] = np.all((self.points >= 0) & (self.points < (width, height)), axis=1)
        return inside

    def with_image(self, image: Image.Image) -> Example:
        """The same places in a picture of the same size and other colours."""
        if self.kept is None and self.class_map is None and self.points is None:
            return Example(image=image, ignore=self.ignore)
        return Example(
            image=image,
            boxes=self.boxes,
            masks=self.masks,
            class_map=self.class_map,
            points=self.points,
            kept=self.kept,
            ignore=self.ignore,
        )


Augment: TypeAlias = Callable[[Example, np.random.Generator], Example]
"""What may happen to an example: a pure function of it and of a generator, which it draws from."""


@dataclass(frozen=True)
class Chain:
    """Several augmentations, one after the other.

    Args:
        steps: the first is applied first.
    """

    steps: tuple[Augment, ...] = ()

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example after all steps."""
        for step in self.steps:
            example = step(example, rng)
        return example
