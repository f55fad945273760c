"""An `ObjectSet` in memory, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitral.base.image import Picture, read_picture
from vitral.data.objects import Annotations
from vitral.errors import PictureError


@dataclass(eq=False)
class DrawnObjects:
    """Pictures as arrays (None for one that cannot be read), boxes xyxy and labels of each."""

    pictures: Sequence[Any]
    boxes: Sequence[Any]
    labels: Sequence[Any]
    classes: tuple[str, ...]
    name: str = "drawn"

    @property
    def categories(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.classes) + 1))

    @property
    def names(self) -> Sequence[str]:
        return tuple(f"{number:03}.png" for number in range(len(self)))

    @property
    def fingerprint(self) -> str:
        return f"{self.name} of {len(self)}"

    def __len__(self) -> int:
        return len(self.pictures)

    def where(self, index: int) -> str:
        return f"drawn/{self.names[index]}"

    def image_id(self, index: int) -> int:
        return 100 - index

    def size_of(self, index: int) -> tuple[int, int] | None:
        return None

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        if self.pictures[index] is None:
            raise PictureError(self.where(index), "It is broken.")
        return read_picture(self.pictures[index], name=self.where(index))

    def annotations(self, index: int) -> Annotations:
        boxes = np.asarray(self.boxes[index], dtype=np.float32).reshape(-1, 4)
        return Annotations(
            boxes=boxes,
            labels=np.asarray(self.labels[index], dtype=np.int64).reshape(-1),
            crowd=np.zeros(len(boxes), dtype=bool),
            areas=(boxes[:, 2:] - boxes[:, :2]).prod(1).astype(np.float64),
            ids=np.arange(len(boxes)),
        )
