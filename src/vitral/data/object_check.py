"""A look at every annotated picture before a training does: what is there, and what is wrong with it.

Annotations are read as `vitral.data.objects` reads them; then every picture is read once, by threads, and only facts are
kept: whether it can be, its size, and a digest of its pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vitral.base.device import default_workers
from vitral.base.image import read_picture
from vitral.base.numbers import whole_number
from vitral.data.check import Range
from vitral.data.object_source import Problem, out_of_picture, outside
from vitral.data.objects import ListedObjects, ObjectFormat, ObjectSet, ObjectSplits, read_objects
from vitral.errors import PictureError

__all__ = ["ObjectCounts", "ObjectReport", "check_objects"]

_TOGETHER = 1024  # pictures between two looks at how far it has come
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
class ObjectReport:
    """What a look at every annotated picture found.

    Attributes:
        classes: the names of the classes.
        counts: how much there is in each split.
        problems: what is wrong, by the files' order.
        heights: of all pictures that can be read; None if none can.
        widths: likewise.
        leaks: groups of pictures with the same pixels in several splits: (split, name) of each.
    """

    classes: tuple[str, ...]
    counts: dict[str, ObjectCounts]
    problems: tuple[Problem, ...]
    heights: Range | None
    widths: Range | None
    leaks: tuple[tuple[tuple[str, str], ...], ...]

    @property
    def kinds(self) -> dict[str, int]:
        """How often each kind of problem was found, the commonest first."""
        return dict(Counter(one.kind for one in self.problems).most_common())

    def without_objects(self, split: str) -> tuple[str, ...]:
        """The classes that have no object in a split."""
        return tuple(name for name, count in zip(self.classes, self.counts[split].objects, strict=True) if not count)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dictionaries, lists, numbers and strings, ready for JSON."""
        return {
            "classes": list(self.classes),
            "counts": {
                split: vars(one) | {"objects": dict(zip(self.classes, one.objects, strict=True)), "sizes": list(one.sizes)}
                for split, one in self.counts.items()
            },
            "without_objects": {split: list(self.without_objects(split)) for split in self.counts},
            "problems": [dict(vars(one)) for one in self.problems],
            "heights": dict(vars(self.heights)) if self.heights else None,
            "widths": dict(vars(self.widths)) if self.widths else None,
            "leaks": [[{"split": split, "name": name} for split, name in group] for group in self.leaks],
        }


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of a picture: its size and a digest of its pixels; and what was found wrong."""

    size: tuple[int, int] | None = None
    digest: bytes = b""
    problems: tuple[Problem, ...] = ()


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
    threads = default_workers() if workers is None else whole_number("workers", workers)
    splits = data if isinstance(data, ObjectSplits) else read_objects(data, format=format, bad="keep")
    total, done = sum(map(len, splits.sets.values())), 0
    seen: dict[str, list[_Seen]] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="vitral-check") as pool:
        for split, pictures in splits.sets.items():
            missing = {one.picture for one in getattr(pictures, "problems", ()) if one.kind == "missing"}
            look = partial(_look, pictures, missing)
            seen[split] = []
            for begin in range(0, len(pictures), _TOGETHER):
                for one in pool.map(look, range(begin, min(begin + _TOGETHER, len(pictures)))):
                    seen[split].append(one)
                    done += 1
                    if on_progress is not None and (done % 16 == 0 or done == total):
                        on_progress(done, total)
    return _report(splits.sets, seen)


def _look(pictures: ObjectSet, missing: set[str], index: int) -> _Seen:
    """Read one picture and keep the facts."""
    name = pictures.names[index]
    if name in missing:
        return _Seen()
    try:
        if isinstance(pictures, ListedObjects):  # its own `read` refuses another size, and says no more of the picture
            picture = read_picture(pictures.store.source(index), name=pictures.where(index))
        else:
            picture = pictures.read(index)
    except PictureError as error:
        problem = Problem(kind="unreadable", file=error.name, annotation="", picture=name, reason=error.reason)
        return _Seen(problems=(problem,))
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
    digest = hashlib.sha256(f"{picture.size}".encode())
    digest.update(np.ascontiguousarray(picture.array).data)
    return _Seen(picture.size, digest.digest(), tuple(found))


def _report(sets: Mapping[str, ObjectSet], seen: Mapping[str, list[_Seen]]) -> ObjectReport:
    """What all the facts come to."""
    sizes = [one.size for found in seen.values() for one in found if one.size is not None]
    by_digest: dict[bytes, list[tuple[str, str]]] = {}
    for split, found in seen.items():
        for index, one in enumerate(found):
            if one.digest:
                by_digest.setdefault(one.digest, []).append((split, sets[split].where(index)))
    problems = [
        one
        for split, pictures in sets.items()
        for one in (*getattr(pictures, "problems", ()), *(wrong for each in seen[split] for wrong in each.problems))
    ]
    return ObjectReport(
        classes=next(iter(sets.values())).classes,
        counts={split: _counts(pictures) for split, pictures in sets.items()},
        problems=tuple(problems),
        heights=_range([height for height, _ in sizes]),
        widths=_range([width for _, width in sizes]),
        leaks=tuple(tuple(group) for group in by_digest.values() if len({split for split, _ in group}) > 1),
    )


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


def _range(lengths: list[int]) -> Range | None:
    return Range(least=min(lengths), median=float(np.median(lengths)), most=max(lengths)) if lengths else None
