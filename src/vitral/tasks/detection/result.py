"""Object detection: which objects a picture shows, and where, with a score for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from vitral.base.config import check_choices
from vitral.base.draw import draw_boxes
from vitral.base.image import Picture
from vitral.base.numbers import whole_number
from vitral.errors import UsageError
from vitral.tasks.ranked import Ranked, check_threshold, kept

__all__ = ["Detections", "Options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How what a network says becomes an answer.

    Attributes:
        threshold: objects are kept whose score is above this, from 0 to 1.
        top_k: how many objects to keep at most, the best ones. None: as many as there are queries, or, of networks without
            queries, as many as their authors kept.

    Raises:
        UsageError: a number out of its range.
    """

    threshold: float = 0.5
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        check_threshold(self.threshold)
        if self.top_k is not None:
            whole_number("top_k", self.top_k)


@dataclass(frozen=True, eq=False, repr=False)
class Detections(Ranked):
    """The objects of one picture, best first; those of one score stay in the order in which they came.

    Attributes:
        name: the picture's path, address or description.
        size: its height and width in pixels.
        boxes: left, top, right and bottom of each object, in pixels of the picture.
        scores: how sure the network is of each, from high to low; probabilities.
        labels: names of their classes.
        indices: the places of their classes in the model's output.
        picture: the picture itself, where it was kept.
        queries: which row of the model's output each object was read from: its query, anchor or region. None where nobody
            told.

    Raises:
        UsageError: one box, score, label or index for each object did not come, or a number that is not finite.
    """

    name: str
    size: tuple[int, int]
    boxes: Float[np.ndarray, "k 4"]
    scores: Float[np.ndarray, " k"]
    labels: tuple[str, ...]
    indices: Int[np.ndarray, " k"]
    picture: Picture | None = None
    queries: Int[np.ndarray, " k"] | None = None

    shown = ("boxes", "box")

    def __post_init__(self) -> None:
        self._check_rows()
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise UsageError(f"The boxes or scores found in {self.name} are not finite numbers (NaN or infinity).")
        self._put_in_order()

    def draw(self) -> Image.Image:
        """A copy of the picture with a box around each object, and what it is.

        Raises:
            UsageError: the picture was not kept.
        """
        picture = kept(self.name, self.picture)
        image = picture.image
        left, top, right, bottom = picture.box or (0, 0, *image.size)  # where the original lies in what was decoded
        scale = np.array([(right - left) / self.size[1], (bottom - top) / self.size[0]] * 2)
        rows = zip(self.labels, self.scores.tolist(), strict=True)
        return draw_boxes(image, self.boxes * scale + [left, top] * 2, list(rows), self.indices.tolist())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a box is [left, top, right, bottom] in pixels."""
        rows = zip(self.labels, self.scores.tolist(), self.indices.tolist(), self.boxes.tolist(), strict=True)
        return {
            "name": self.name,
            "size": list(self.size),
            "objects": [{"label": label, "score": score, "index": index, "box": box} for label, score, index, box in rows],
        }

    def to_coco(self, image_id: int | str, categories: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows as COCO's files of results have them; a box is [left, top, width, height] in pixels.

        Args:
            image_id: the picture's, in the file of annotations.
            categories: the file's category of each of the model's classes; None where the classes are these categories.

        Raises:
            UsageError: an object of a class that has no category.
        """
        missing = [] if categories is None else self.indices[self.indices >= len(categories)].tolist()
        if missing:
            raise UsageError(
                f"An object of class {missing[0]} was found in {self.name}, but categories came for "
                f"{len(categories or ())} classes only."
            )
        rows = zip(self.indices.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": index if categories is None else int(categories[index]),
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for index, score, (left, top, right, bottom) in rows
        ]
