"""A look at every picture of some sets, by threads: the frame of every check of data, and what reports have in common.

`vitral.data.check` looks at labelled pictures, `object_check` at those with objects, `segment_check` at those with segments.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from vitral.base.image import Picture, read_picture
from vitral.base.numbers import whole_number
from vitral.base.processors import default_workers
from vitral.data.object_source import Problem
from vitral.data.objects import ListedObjects, ObjectSet
from vitral.data.segments import SegmentSet
from vitral.errors import PictureError

__all__ = [
    "AnnotatedReport",
    "Facts",
    "Range",
    "digest_of",
    "in_common",
    "look_at_all",
    "picture_as_it_is",
    "range_of",
    "same_pixels",
    "unreadable",
]

_TOGETHER = 32  # pictures that a thread reads before it reports
_AHEAD = 4  # such bundles that wait for each thread

_F = TypeVar("_F")


# -- looking ----------------------------------------------------------------------------------------------------------


def look_at_all(
    lengths: Mapping[str, int],
    look: Callable[[str, int], _F],
    *,
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, list[_F]]:
    """Facts about every picture of every split, in order.

    Args:
        lengths: how many pictures each split has.
        look: gives the facts about a picture, by its split and its index; called by several threads.
        workers: threads that read; as many as there are processors, up to 8, unless told.
        on_progress: called with how many pictures are read and how many there are, now and then.

    Raises:
        UsageError: `workers` is no number of threads.
    """
    threads = default_workers() if workers is None else whole_number("workers", workers)
    seen: dict[str, dict[int, _F]] = {split: {} for split in lengths}
    total, done = sum(lengths.values()), 0
    for split, begin, found in _bundles(lengths, look, threads):
        seen[split].update(enumerate(found, begin))
        done += len(found)
        if on_progress is not None:
            on_progress(done, total)
    return {split: [facts[index] for index in range(lengths[split])] for split, facts in seen.items()}


def _bundles(
    lengths: Mapping[str, int], look: Callable[[str, int], _F], threads: int
) -> Iterator[tuple[str, int, list[_F]]]:
    """The facts in bundles, as they come: the split, the first one's index, and the facts."""

    def work(split: str, begin: int) -> tuple[str, int, list[_F]]:
        return split, begin, [look(split, index) for index in range(begin, min(begin + _TOGETHER, lengths[split]))]

    with ThreadPoolExecutor(threads, thread_name_prefix="vitral-check") as pool:
        waiting: set[Future[tuple[str, int, list[_F]]]] = set()
        try:
            for split, count in lengths.items():
                for begin in range(0, count, _TOGETHER):
                    waiting.add(pool.submit(work, split, begin))
                    if len(waiting) >= threads * _AHEAD:
                        ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in ready)
            while waiting:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        finally:
            for future in waiting:
                future.cancel()


def picture_as_it_is(pictures: ObjectSet | SegmentSet, index: int) -> Picture:
    """A picture, also one of another size than its annotations say.

    Raises:
        PictureError: it cannot be read.
    """
    if isinstance(pictures, ListedObjects):  # its own `read` refuses another size, and says no more of the picture
        return read_picture(pictures.store.source(index), name=pictures.where(index))
    return pictures.read(index)


def unreadable(error: PictureError, name: str) -> Problem:
    """What cannot be read of a picture of that name: the picture itself, or its labels."""
    return Problem(kind="unreadable", file=error.name, annotation="", picture=name, reason=error.reason)


def digest_of(picture: Picture) -> bytes:
    """A digest of a picture's size and pixels."""
    digest = hashlib.sha256(f"{picture.size}".encode())
    digest.update(np.ascontiguousarray(picture.array).data)
    return digest.digest()


# -- reporting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Range:
    """How long the sides of the pictures are.

    Attributes:
        least: of the shortest, in pixels.
        median: of the one in the middle.
        most: of the longest.
    """

    least: int
    median: float
    most: int


def range_of(lengths: Sequence[int]) -> Range | None:
    """The range of some lengths; None of none."""
    return Range(least=min(lengths), median=float(np.median(lengths)), most=max(lengths)) if len(lengths) else None


def same_pixels(digests: Mapping[str, Sequence[bytes]]) -> list[list[tuple[str, int]]]:
    """Pictures with the same pixels, two or more to a group, in the order of the first ones: the split and index of each.

    Args:
        digests: those of every split's pictures; empty where a picture could not be read.
    """
    groups: dict[bytes, list[tuple[str, int]]] = {}
    for split, found in digests.items():
        for index, digest in enumerate(found):
            if digest:
                groups.setdefault(digest, []).append((split, index))
    return [group for group in groups.values() if len(group) > 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is kept of an annotated picture.

    Attributes:
        size: (height, width) in pixels; None where it cannot be read.
        digest: of its pixels; empty where it cannot be read.
        problems: what was found wrong with it.
    """

    size: tuple[int, int] | None = None
    digest: bytes = b""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedReport:
    """What every look at annotated pictures finds.

    Attributes:
        classes: the names of the classes.
        problems: what is wrong, by the files' order.
        heights: of all pictures that can be read; None if none can.
        widths: likewise.
        leaks: groups of pictures with the same pixels in several splits: (split, name) of each.
    """

    classes: tuple[str, ...]
    problems: tuple[Problem, ...]
    heights: Range | None
    widths: Range | None
    leaks: tuple[tuple[tuple[str, str], ...], ...]

    @property
    def kinds(self) -> dict[str, int]:
        """How often each kind of problem was found, the commonest first."""
        return dict(Counter(one.kind for one in self.problems).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dictionaries, lists, numbers and strings, ready for JSON."""
        return {
            "classes": list(self.classes),
            "problems": [dict(vars(one)) for one in self.problems],
            "heights": dict(vars(self.heights)) if self.heights else None,
            "widths": dict(vars(self.widths)) if self.widths else None,
            "leaks": [[{"split": split, "name": name} for split, name in group] for group in self.leaks],
        }


def in_common(sets: Mapping[str, ObjectSet | SegmentSet], seen: Mapping[str, Sequence[Facts]]) -> dict[str, Any]:
    """What all facts come to: the fields of an `AnnotatedReport`."""
    sizes = [one.size for found in seen.values() for one in found if one.size is not None]
    alike = same_pixels({split: [one.digest for one in found] for split, found in seen.items()})
    return {
        "classes": next(iter(sets.values())).classes,
        "problems": tuple(
            one
            for split, pictures in sets.items()
            for one in (*getattr(pictures, "problems", ()), *(wrong for facts in seen[split] for wrong in facts.problems))
        ),
        "heights": range_of([height for height, _ in sizes]),
        "widths": range_of([width for _, width in sizes]),
        "leaks": tuple(
            tuple((split, sets[split].where(index)) for split, index in group)
            for group in alike
            if len({split for split, _ in group}) > 1
        ),
    }
