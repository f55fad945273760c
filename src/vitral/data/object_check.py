"""A look at every annotated picture before a training does: what is there, and what is wrong with it.

Annotations are read as `vitral.data.objects` reads them; then every picture is read once, by threads, and only facts are
kept: whether it can be, its size, and a digest of its pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitral.data.look import AnnotatedReport, Facts, digest_of, in_common, look_at_all, picture_as_it_is, unreadable
from vitral.data.object_source import Problem, out_of_picture, outside
from vitral.data.objects import ObjectFormat, ObjectSet, ObjectSplits, read_objects
from vitral.errors import PictureError

__all__ = ["ObjectCounts", "ObjectReport", "check_objects"]

_SMALL, _LARGE = 32**2, 96**2  # square pixels: where COCO's evaluation draws the lines


@dataclass(frozen=True, kw_only=True)
class ObjectCounts:
    """How much there is in a split.

    Attributes:
        pictures: how many pictures.
        empty: how many of them have no objects.
        objects: how many objects each class has, crowds among them.
        crowds: how many of all are crowds, or marked as difficult.
        sizes: how many are small (less than 32² square pixels), middling, and large (96² or more).
        most: how many objects the fullest picture has.
    """

    pictures: int
    empty: int
    objects: tuple[int, ...]
    crowds: int
    sizes: tuple[int, int, int]
    most: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectReport(AnnotatedReport):
    """What a look at every annotated picture found.

    Attributes:
        counts: how much there is in each split.
    """

    counts: dict[str, ObjectCounts]

    def without_objects(self, split: str) -> tuple[str, ...]:
        """The classes that have no object in a split."""
        return tuple(name for name, count in zip(self.classes, self.counts[split].objects, strict=True) if not count)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dictionaries, lists, numbers and strings, ready for JSON."""
        return super().to_dict() | {
            "counts": {
                split: vars(one) | {"objects": dict(zip(self.classes, one.objects, strict=True)), "sizes": list(one.sizes)}
                for split, one in self.counts.items()
            },
            "without_objects": {split: list(self.without_objects(split)) for split in self.counts},
        }


def check_objects(
    data: str | os.PathLike[str] | ObjectSplits,
    *,
    format: ObjectFormat | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ObjectReport:
    """Read every annotated picture once and report.

    Args:
        data: a source (see `vitral.data.objects.read_objects`), or sets that were read, best with "keep".
        format: how the annotations of a source lie; None to see for oneself.
        workers: threads that read; as many as there are processors, up to 8, unless told.
        on_progress: called with how many pictures are read and how many there are, now and then.

    Raises:
        UsageError: the source cannot be understood, or `workers` is no number of threads.
        UnknownNameError: no such format.
    """
    sets = (data if isinstance(data, ObjectSplits) else read_objects(data, format=format, bad="keep")).sets
    missing = {
        split: {one.picture for one in getattr(pictures, "problems", ()) if one.kind == "missing"}
        for split, pictures in sets.items()
    }

    def look(split: str, index: int) -> Facts:
        return Facts() if sets[split].names[index] in missing[split] else _look(sets[split], index)

    lengths = {split: len(pictures) for split, pictures in sets.items()}
    seen = look_at_all(lengths, look, workers=workers, on_progress=on_progress)
    return ObjectReport(counts={split: _counts(pictures) for split, pictures in sets.items()}, **in_common(sets, seen))


def _look(pictures: ObjectSet, index: int) -> Facts:
    """Read one picture and keep the facts."""
    name = pictures.names[index]
    try:
        picture = picture_as_it_is(pictures, index)
    except PictureError as error:
        return Facts(problems=(unreadable(error, name),))
    found: list[Problem] = []
    told = pictures.size_of(index)
    if told is not None and told != picture.size:
        reason = (
            f"Its annotations say {told[0]} × {told[1]} pixels (height × width), but it has {picture.size[0]} × "
            f"{picture.size[1]}."
        )
        found.append(Problem(kind="size", file=pictures.where(index), annotation="", picture=name, reason=reason))
    elif told is None:
        annotations = pictures.annotations(index)
        for number, box in zip(annotations.ids.tolist(), annotations.boxes.tolist(), strict=True):
            if outside(box, picture.size):
                where, reason = f"annotation {number}", out_of_picture(box, picture.size)
                found.append(
                    Problem(kind="outside", file=pictures.where(index), annotation=where, picture=name, reason=reason)
                )
    return Facts(size=picture.size, digest=digest_of(picture), problems=tuple(found))


def _counts(pictures: ObjectSet) -> ObjectCounts:
    """How much there is in a set."""
    objects = np.zeros(len(pictures.classes), dtype=np.int64)
    crowds = empty = most = 0
    sizes = np.zeros(3, dtype=np.int64)
    for index in range(len(pictures)):
        one = pictures.annotations(index)
        objects += np.bincount(one.labels, minlength=len(objects))
        sizes += np.bincount(np.searchsorted([_SMALL, _LARGE], one.areas, side="right"), minlength=3)
        crowds += int(one.crowd.sum())
        empty += not len(one)
        most = max(most, len(one))
    return ObjectCounts(
        pictures=len(pictures),
        empty=empty,
        objects=tuple(objects.tolist()),
        crowds=crowds,
        sizes=(int(sizes[0]), int(sizes[1]), int(sizes[2])),
        most=most,
    )
