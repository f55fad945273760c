"""Objects as maps of numbers: one number for each object of a picture, and what a map says as masks and boxes.

```
images/FudanPed00001.jpg      masks/FudanPed00001.png       0 is the ground, 1, 2, … are one object each (Penn-Fudan)
```

All objects of such a source are of one class. Label files may hold colours too: black is the ground, any other colour an
object.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from vitral.base.masks import regions_of
from vitral.data.label_files import Pairs, colour_codes, label_values
from vitral.data.listed import PicturesWithLabels
from vitral.data.objects import Annotations
from vitral.errors import PictureError

__all__ = ["InstanceMaps", "holds_instances", "objects_in", "only_class"]

_PEDESTRIANS = re.compile(r"(FudanPed|PennPed)\d+")
_MOST = 100_000  # objects of a picture, which have their ids


def objects_in(
    numbers: Integer[np.ndarray, "y x"],
    wanted: Integer[np.ndarray, " k"],
    labels: Int64[np.ndarray, " k"],
    crowd: Bool[np.ndarray, " k"],
    *,
    first: int = 1,
) -> Annotations:
    """The objects of a map of numbers: each has the pixels that hold its number.

    Args:
        numbers: the map.
        wanted: the number of each object; each has a pixel.
        labels: the class of each.
        crowd: which are crowds.
        first: the id of the first; the others follow.
    """
    regions = regions_of(numbers)
    rows = np.searchsorted(regions.values, wanted)
    return Annotations(
        boxes=regions.boxes[rows],
        labels=labels,
        crowd=crowd,
        areas=regions.areas[rows].astype(np.float64),
        ids=np.arange(first, first + len(wanted), dtype=np.int64),
        masks=np.equal(numbers[None], np.asarray(wanted, dtype=numbers.dtype)[:, None, None]),
    )


def holds_instances(pairs: Pairs) -> bool:
    """Whether label files number objects, by how their pictures are called; of others nobody can tell."""
    return all(_PEDESTRIANS.match(posixpath.basename(pair.name)) for pair in pairs.all)


def only_class(pairs: Pairs) -> str:
    """The name of the only class, where nobody gave one."""
    return "pedestrian" if holds_instances(pairs) else "object"


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceMaps(PicturesWithLabels):
    """An `ObjectSet` of one class that label files describe, a number for each object; its annotations have masks.

    Args:
        classes: the name of the only class.
        void: numbers that are no object, beside 0.
    """

    classes: tuple[str, ...]
    void: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"<InstanceMaps {self.name}: {len(self):,} pictures of {self.classes[0]}>"

    @property
    def categories(self) -> tuple[int, ...]:
        """The number of the only class in COCO's form of results."""
        return (1,)

    def image_id(self, index: int) -> int:
        """The number of a picture, from 1."""
        return self._place(index) + 1

    def numbers(self, index: int) -> Int32[np.ndarray, "y x"]:
        """The number of the object that each pixel shows; 0 on the ground.

        Raises:
            IndexError: there is no such picture.
            PictureError: the label file is missing or damaged, or holds what is no number of an object.
        """
        values = label_values(self.labels, self._place(index))
        numbers = colour_codes(values) if values.ndim == 3 else values.astype(np.int32)
        numbers[np.isin(numbers, self.void)] = 0
        least = int(numbers.min(initial=0))
        if least < 0:
            reason = f"It holds {least}, which is no number of an object. If nothing is known there, say void=[{least}]"
            raise PictureError(self.labels.where(self._place(index)), f"{reason} (--void {least}).")
        return numbers

    def annotations(self, index: int) -> Annotations:
        """The objects of one picture in the order of their numbers, with their masks.

        Raises:
            IndexError: there is no such picture.
            PictureError: the label file is missing or damaged.
        """
        numbers = self.numbers(index)
        there = regions_of(numbers).values
        there = there[there != 0]
        return objects_in(
            numbers,
            there,
            np.zeros(len(there), dtype=np.int64),
            np.zeros(len(there), dtype=bool),
            first=1 + _MOST * self._place(index),
        )
