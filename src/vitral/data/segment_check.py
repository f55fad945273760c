"""A look at every segmented picture before a training does: what label files are taken to mean, and what does not fit.

Every picture and its labels are read once, by threads, and only facts are kept: sizes, how many pixels each class has and
how many have none, a digest of the picture; and what is wrong, with the file, the number, how many pixels hold it, and what
to do about it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from vitral.base.image import read_header
from vitral.data.class_maps import ClassMaps
from vitral.data.label_files import other_size
from vitral.data.listed import PicturesWithLabels
from vitral.data.look import AnnotatedReport, Facts, digest_of, in_common, look_at_all, picture_as_it_is, unreadable
from vitral.data.object_source import Problem
from vitral.data.objects import Annotations, ObjectSet
from vitral.data.panoptic import PanopticMaps, class_map_of
from vitral.data.segments import ClassMapSet, SegmentKind, SegmentSet, SegmentSplits, read_segments
from vitral.errors import PictureError, UsageError

__all__ = ["SegmentCounts", "SegmentReport", "check_segments"]

_NOTHING = "No pixel of its pictures is of any class. Are void and offset right (--void, --offset)?"
_TURNED = "Its EXIF turns it, and its size does not tell whether its labels are turned as well."
_UPRIGHT = (
    "If labels were drawn on pictures as EXIF turns them, save those upright, without EXIF; else take the orientation out "
    "of their EXIF."
)


@dataclass(frozen=True, kw_only=True)
class SegmentCounts:
    """How much there is in a split.

    Attributes:
        pictures: how many pictures.
        pixels: how many pixels each class has; of objects that overlap each counts for itself.
        unlabelled: how many pixels have no class: nothing is known of them, or what they hold is no class.
        total: how many pixels there are.
        objects: how many objects or segments each class has, crowds among them; nothing where only classes are known.
        crowds: how many of those are crowds.
    """

    pictures: int
    pixels: tuple[int, ...]
    unlabelled: int
    total: int
    objects: tuple[int, ...]
    crowds: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentReport(AnnotatedReport):
    """What a look at every segmented picture found.

    Attributes:
        kind: what is known of pixels.
        assumes: what the files are taken to mean, in sentences.
        things: which classes are things; None where nothing tells.
        counts: how much there is in each split.
        advice: what to do about what is wrong in the same way in many files, said once.
    """

    kind: SegmentKind
    assumes: str
    things: tuple[bool, ...] | None
    counts: dict[str, SegmentCounts]
    advice: tuple[str, ...]

    def shares(self, split: str) -> tuple[float, ...]:
        """How much of all pixels of a split each class has."""
        one = self.counts[split]
        return tuple(count / one.total if one.total else 0.0 for count in one.pixels)

    def without_pixels(self, split: str) -> tuple[str, ...]:
        """The classes that have no pixel in a split."""
        return tuple(name for name, count in zip(self.classes, self.counts[split].pixels, strict=True) if not count)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dictionaries, lists, numbers and strings, ready for JSON."""
        return super().to_dict() | {
            "kind": self.kind,
            "assumes": self.assumes,
            "things": None if self.things is None else list(self.things),
            "counts": {
                split: vars(one)
                | {
                    "pixels": dict(zip(self.classes, one.pixels, strict=True)),
                    "objects": dict(zip(self.classes, one.objects, strict=False)) if one.objects else None,
                }
                for split, one in self.counts.items()
            },
            "without_pixels": {split: list(self.without_pixels(split)) for split in self.counts},
            "advice": list(self.advice),
        }


class _Labelled(NamedTuple):
    """What is kept of a picture's labels."""

    size: tuple[int, int]
    pixels: Int64[np.ndarray, " c"]
    unlabelled: int
    objects: Int64[np.ndarray, " c"] | None
    crowds: int
    problems: tuple[Problem, ...]
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen(Facts):
    """What is kept of a picture and of what its labels say, where they can be read; and what to do about what is wrong."""

    labelled: _Labelled | None
    advice: tuple[str, ...]


def check_segments(
    data: str | os.PathLike[str] | SegmentSplits,
    kind: SegmentKind | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **meaning: Any,
) -> SegmentReport:
    """Read every segmented picture and its labels once and report.

    Args:
        data: a source (see `vitral.data.segments.read_segments`), or splits that were read, best with "skip".
        kind: what is read of pixels; None: what the source says first.
        workers: threads that read; as many as there are processors, up to 8, unless told.
        on_progress: called with how many pictures are read and how many there are, now and then.
        meaning: what label files mean, the options of `read_segments`.

    Raises:
        UsageError: the source cannot be understood, or `workers` is no number of threads.
        PictureError: a label file that cannot be read, where classes must be counted.
        UnknownNameError: no such kind.
    """
    if isinstance(data, SegmentSplits):
        if kind is not None or meaning:
            raise UsageError("Splits that were read have their kind and meaning already. Leave those options out.")
        splits = data
    else:
        splits = read_segments(data, kind, bad="skip", **meaning)

    def look(split: str, index: int) -> _Seen:
        return _look(splits.sets[split], index)

    lengths = {split: len(pictures) for split, pictures in splits.sets.items()}
    return _report(splits, look_at_all(lengths, look, workers=workers, on_progress=on_progress))


def _look(pictures: SegmentSet, index: int) -> _Seen:
    """Read one picture and its labels, and keep the facts."""
    name = pictures.names[index]
    problems: list[Problem] = []
    size, digest, labelled = None, b"", None
    advice: tuple[str, ...] = ()
    try:
        picture = picture_as_it_is(pictures, index)
        size, digest = picture.size, digest_of(picture)
    except PictureError as error:
        problems.append(unreadable(error, name))
    try:
        labelled = _labels(pictures, index)
        problems += labelled.problems
        advice = labelled.advice
    except PictureError as error:
        problems.append(unreadable(error, name))
    if size is not None and labelled is not None and labelled.size != size:
        problems.append(_misfit(pictures, index, other_size(size, labelled.size)))
    elif size is not None and labelled is not None and isinstance(pictures, PicturesWithLabels | PanopticMaps):
        turn = read_header(pictures.store.source(index)).orientation
        if turn in (2, 3, 4) or (turn > 1 and size[0] == size[1]):  # of the others the size has told
            problems.append(_misfit(pictures, index, _TURNED))
            advice = (*advice, _UPRIGHT)
    return _Seen(size=size, digest=digest, labelled=labelled, problems=tuple(problems), advice=advice)


def _misfit(pictures: SegmentSet, index: int, reason: str) -> Problem:
    """A picture whose labels do not lie on it pixel by pixel."""
    return Problem(kind="size", file=pictures.where(index), annotation="", picture=pictures.names[index], reason=reason)


def _labels(pictures: SegmentSet, index: int) -> _Labelled:
    """What the labels of one picture say."""
    count = len(pictures.classes)
    if isinstance(pictures, ClassMaps):
        return _of_classes(pictures, index, count)
    if isinstance(pictures, PanopticMaps):
        return _of_panoptic(pictures, index, count)
    there = pictures.annotations(index) if isinstance(pictures, ObjectSet) else None
    if isinstance(pictures, ClassMapSet):
        class_map = pictures.class_map(index)
        pixels, unlabelled = _pixels(class_map, count)
        objects = None if there is None else np.bincount(there.labels, minlength=count).astype(np.int64)
        return _Labelled(_size(class_map), pixels, unlabelled, objects, 0 if there is None else int(there.crowd.sum()), ())
    if there is None or there.masks is None:
        raise UsageError(f"{pictures.name} comes without masks. Read it with `read_segments`, or with_masks=True.")
    return _of_objects(pictures, index, count, there)


def _of_classes(pictures: ClassMaps, index: int, count: int) -> _Labelled:
    """What a label file of classes says."""
    looked = pictures.look(index)
    problems = tuple(
        Problem(
            kind="unknown class",
            file=pictures.labels.where(index),
            annotation=pictures.labelling.shown(number),
            picture=pictures.names[index],
            reason=pictures.labelling.finding(number, pixels),
        )
        for number, pixels in looked.unknown.items()
    )
    known, unlabelled = _pixels(looked.class_map, count)
    advice = tuple(map(pictures.labelling.remedy, looked.unknown))
    return _Labelled(_size(looked.class_map), known, unlabelled, None, 0, problems, advice)


def _of_panoptic(pictures: PanopticMaps, index: int, count: int) -> _Labelled:
    """What a map of segments says."""
    found = pictures.look(index)
    file, name = pictures.labels.where(index), pictures.names[index]
    problems = tuple(
        Problem(kind=kind, file=file, annotation=part, picture=name, reason=reason) for kind, part, reason in found.wrong
    )
    class_map = class_map_of(found.numbers, found.ids, found.labels, pictures.ignore)
    pixels, unlabelled = _pixels(class_map, count)
    objects = np.bincount(found.labels, minlength=count).astype(np.int64)
    return _Labelled(_size(class_map), pixels, unlabelled, objects, int(found.crowd.sum()), problems)


def _of_objects(pictures: ObjectSet, index: int, count: int, there: Annotations) -> _Labelled:
    """What the masks of objects say."""
    masks = np.zeros((0, *_told(pictures, index)), dtype=bool) if there.masks is None else there.masks
    areas = masks.sum(axis=(1, 2))
    problems = tuple(
        Problem(
            kind="empty",
            file=pictures.where(index),
            annotation=f"annotation {number}",
            picture=pictures.names[index],
            reason="Its outline covers no pixel, so there is nothing to learn from it. Correct it, or leave the object out.",
        )
        for number, area in zip(there.ids.tolist(), areas.tolist(), strict=True)
        if not area
    )
    pixels = np.bincount(there.labels, weights=areas, minlength=count).astype(np.int64)
    objects = np.bincount(there.labels, minlength=count).astype(np.int64)
    unlabelled = int((~masks.any(axis=0)).sum())
    return _Labelled((masks.shape[1], masks.shape[2]), pixels, unlabelled, objects, int(there.crowd.sum()), problems)


def _told(pictures: ObjectSet, index: int) -> tuple[int, int]:
    """The size of a picture, as its files or its pixels say it."""
    return pictures.size_of(index) or pictures.read(index).size


def _size(values: np.ndarray) -> tuple[int, int]:
    return values.shape[0], values.shape[1]


def _pixels(class_map: Integer[np.ndarray, "y x"], count: int) -> tuple[Int64[np.ndarray, " c"], int]:
    """How many pixels each class has, and how many have none."""
    counts = np.bincount(class_map.reshape(-1), minlength=count)
    pixels: Int64[np.ndarray, " c"] = counts[:count].astype(np.int64)
    return pixels, int(class_map.size - pixels.sum())


def _report(splits: SegmentSplits, seen: Mapping[str, list[_Seen]]) -> SegmentReport:
    """What all the facts come to."""
    common = in_common(splits.sets, seen)
    counts = {split: _counts(found, len(splits.classes)) for split, found in seen.items()}
    common["problems"] += tuple(
        Problem(kind="empty", file=splits.sets[split].name, annotation="", picture="", reason=_NOTHING)
        for split, one in counts.items()
        if one.total and not any(one.pixels) and split != "test"  # whose answers may be kept back
    )
    return SegmentReport(
        kind=splits.kind,
        assumes=splits.assumes,
        things=splits.things,
        counts=counts,
        advice=tuple(dict.fromkeys(advice for found in seen.values() for one in found for advice in one.advice)),
        **common,
    )


def _counts(found: list[_Seen], count: int) -> SegmentCounts:
    """How much there is in a split."""
    labelled = [one.labelled for one in found if one.labelled is not None]
    nothing = np.zeros(count, dtype=np.int64)
    objects = [one.objects for one in labelled if one.objects is not None]
    return SegmentCounts(
        pictures=len(found),
        pixels=tuple(sum((one.pixels for one in labelled), nothing).tolist()),
        unlabelled=sum(one.unlabelled for one in labelled),
        total=sum(one.size[0] * one.size[1] for one in labelled),
        objects=tuple(sum(objects, nothing).tolist()) if objects else (),
        crowds=sum(one.crowds for one in labelled),
    )
