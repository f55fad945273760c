"""What results share: how they show themselves, and of a row of objects, best first, all but where these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float

from vitral.base.image import Picture
from vitral.base.numbers import real_number
from vitral.errors import UsageError

__all__ = ["Ranked", "check_threshold", "kept", "summary"]

_R = TypeVar("_R", bound="Ranked")


def check_threshold(threshold: Any) -> float:
    """A least score as Python's own number; one that no score can be held against is refused."""
    number = real_number("threshold", threshold)
    if not 0 <= number <= 1:
        raise UsageError(f"threshold must be from 0 to 1; {threshold!r} came.")
    return number


def kept(name: str, picture: Picture | None) -> Picture:
    """The picture of a result.

    Args:
        name: its name.
        picture: itself, where it was kept.

    Raises:
        UsageError: it was not.
    """
    if picture is None:
        raise UsageError(f"The picture of {name} was not kept; predict it on its own, or stream with keep_pictures=True.")
    return picture


def summary(name: str, counted: str, best: Sequence[str], count: int) -> str:
    """What a result shows of itself: "p.jpg: 4 objects: dog 0.900, cat 0.500, cow 0.500, …".

    Args:
        name: the picture's.
        counted: how many things there are, in words.
        best: up to three of them.
        count: how many there are.
    """
    return f"{name}: {counted}{': ' if best else ''}{', '.join(best)}{', …' if count > 3 else ''}"


class Ranked:
    """A frozen dataclass that holds a row of objects, best first; those of one score stay in the order in which they came.

    Attributes:
        shown: the field that says where the objects are, and what messages call one of it: `("boxes", "box")`.
        name: the picture's.
        labels: the name of each object's class.
        scores: how sure the network is of each.
    """

    shown: ClassVar[tuple[str, str]]
    name: str
    labels: tuple[str, ...]
    scores: Float[np.ndarray, " k"]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        best = [f"{label} {score:.3f}" for label, score in zip(self.labels[:3], self.scores[:3], strict=True)]
        counted = f"{len(self)} object{'' if len(self) == 1 else 's'}"
        return f"{type(self).__name__}({summary(self.name, counted, best, len(self))})"

    def __getitem__(self: _R, chosen: Any) -> _R:
        """Some of the objects: by slice, by places, or by a mask such as `result.indices == 3`."""
        places = np.atleast_1d(np.arange(len(self))[chosen])
        return replace(self, **self._rows(places))  # type: ignore[type-var]

    def above(self: _R, threshold: float) -> _R:
        """The objects whose score is above a threshold.

        Raises:
            UsageError: it is not from 0 to 1.
        """
        return self[self.scores > check_threshold(threshold)]

    def _rows(self, places: np.ndarray) -> dict[str, Any]:
        """The fields that have a row for each object, of some of them."""
        columns = {field: getattr(self, field) for field in (self.shown[0], "scores", "indices", "queries")}
        found = {field: None if column is None else column[places] for field, column in columns.items()}
        return found | {"labels": tuple(self.labels[place] for place in places)}

    def _check_rows(self) -> None:
        """Refuse objects that lack something."""
        column, one = self.shown
        counts = [len(getattr(self, field)) for field in (column, "scores", "labels", "indices")]
        if len(set(counts)) > 1:
            raise UsageError(
                f"Every object needs a {one}, a score, a label and an index; {counts[0]} {column}, {counts[1]} scores, "
                f"{counts[2]} labels and {counts[3]} indices came."
            )
        queries = getattr(self, "queries", None)
        if queries is not None and len(queries) != counts[0]:
            raise UsageError(f"{len(queries)} queries came for {counts[0]} objects; every object was read from one.")

    def _put_in_order(self) -> None:
        """The best objects first."""
        if (self.scores[1:] > self.scores[:-1]).any():
            for field, rows in self._rows(np.argsort(-self.scores, kind="stable")).items():
                object.__setattr__(self, field, rows)
