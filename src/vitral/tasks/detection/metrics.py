"""How good a detector is: average precision as COCO counts it, what it takes for what, and its worst mistakes.

An `ObjectMetric` is shown the pictures one by one. It matches what was found with what is there at once, and of each box
found it keeps only how that went, in `BYTES_PER_DETECTION`: 100 boxes are 3.1 kB for each picture, however many classes
there are. The rest is counts, and mistakes of which only the worst are kept. Average precision sorts all boxes of a class by
their scores, so it cannot be had from less.

Matching and averages follow the code that COCO publishes with its annotations (Lin et al. 2014; the rules are told on
cocodataset.org under "detection evaluation"), to the last digit:

- A box found may match an object of its class where their intersection over union reaches a threshold, from .50 to .95. The
  boxes of a picture choose in the order of their scores, each the object left that it fits best.
- Crowds, and objects beyond the range of areas asked about, are neither found nor missed: a box that matches one is left
  out, and so is one beyond the range that matches nothing. A crowd takes any number of boxes, each by the share of it that
  lies inside.
- Of each picture and class the 100 boxes of the highest scores count.
- Precision is read at 101 recalls from 0 to 1, at each the highest precision at that recall or above.
- Averages are over the classes that have objects.

Objects drawn pixel by pixel are judged likewise, `by="masks"`: what two of them share is then counted in pixels, and the
area of what was found is that of its mask.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64
from numpy import ndarray

from vitral.base.masks import mask_iou
from vitral.base.numbers import all_finite, real_number, whole_number
from vitral.data.objects import Annotations
from vitral.errors import UnknownNameError, UsageError
from vitral.tasks.detection.result import Detections
from vitral.tasks.segmentation.result import Instances

__all__ = [
    "AREAS",
    "BYTES_PER_DETECTION",
    "MOST",
    "OVERLAPS",
    "RECALLS",
    "JudgedBy",
    "Miss",
    "MissKind",
    "ObjectMetric",
    "ObjectScores",
    "overlaps_of",
]

OVERLAPS: Float64[ndarray, " t"] = np.linspace(0.5, 0.95, 10)
"""Intersection over union from which a box counts as found: .50, .55, … .95."""

RECALLS: Float64[ndarray, " r"] = np.linspace(0, 1, 101)
"""Where precision is read."""

AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""Ranges of areas in square pixels, both ends included."""

MOST = (1, 10, 100)
"""How many boxes of a picture and class count, at most."""

JudgedBy = Literal["boxes", "masks"]
"""What must overlap for an object to be found."""

MissKind = Literal["nothing", "twice", "misplaced", "confused", "missed"]
"""What went wrong, as in Bolya et al. 2020 (TIDE, section 2.2): a box where nothing is (background); a second one for an
object that was found already (duplicate); one beside an object of its class, IoU from .1 to .5 (localisation); one on an
object of another class (classification); an object that no box is on (missed)."""

_SOME = 0.1
"""IoU from which a box is taken to mean an object it does not fit (Bolya et al. 2020, section 2.2)."""

_RANGES = np.array(list(AREAS.values()))
_FLAGS = 2 * len(AREAS) * len(OVERLAPS)
_ROW = np.dtype(
    [("score", "f8"), ("picture", "i8"), ("class", "i4"), ("rank", "u1"), ("flags", "u1", (_FLAGS // 8,))]
)  # flags: hit and ignored, for each range of areas and each overlap

BYTES_PER_DETECTION = _ROW.itemsize
"""What is kept of a box: its score, class, picture, rank there, and how it matched."""


@dataclass(frozen=True, kw_only=True)
class Miss:
    """One mistake.

    Attributes:
        kind: what went wrong.
        place: where the picture stands among those shown.
        picture: what it is called.
        box: xyxy in its pixels: what was found, or for a missed object the object.
        label: the class that was said; of a missed object, what it is.
        score: of what was found; 0 for a missed object.
        truth: the class of the object that it is on, or beside; None where there is none.
        object: that object's box.
    """

    kind: MissKind
    place: int
    picture: str
    box: tuple[float, float, float, float]
    label: int
    score: float = 0.0
    truth: int | None = None
    object: tuple[float, float, float, float] | None = None

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def overlaps_of(
    found: Float[ndarray, "n 4"], there: Float[ndarray, "m 4"], crowd: Bool[ndarray, " m"]
) -> Float64[ndarray, "n m"]:
    """Intersection over union of boxes xyxy; with a crowd, the share of the box found that lies in it. 0 for empty ones."""
    found, there = found.astype(np.float64), there.astype(np.float64)
    low, high = np.maximum(found[:, None, :2], there[None, :, :2]), np.minimum(found[:, None, 2:], there[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    own = _areas(found)[:, None]
    whole = np.where(crowd[None], own, own + _areas(there)[None] - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _areas(boxes: Float[ndarray, "n 4"]) -> Float[ndarray, " n"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# -- what came of it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectScores:
    """How good a detector is.

    Averages are in [0, 1], or None where there are no objects to be found, such as no small ones.

    Attributes:
        classes: their names.
        pictures: how many were shown.
        support: objects of each class that are no crowds, in each range of `AREAS`.
        said: boxes of each class that counted.
        precision: at each of `OVERLAPS` and `RECALLS`, of each class in each range of `AREAS`; −1 without objects.
        confidence: the score of the box at which that recall is reached, all areas; 0 where it never is, −1 without objects.
        recall: at each of `OVERLAPS`, of each class in each range of `AREAS` for each of `MOST`; −1 without objects.
        confusion: objects of each class (rows) by what was found there (columns), at `threshold` and `overlap`; the last row
            is what was found where nothing is, the last column what was missed.
        threshold: the score from which a box counts for `confusion` and for what is missed.
        overlap: the intersection over union from which it does.
        false: the boxes of the highest scores that match no object at IoU .5, the highest first, without those that are
        confused: likewise, those on an object of another class.
        missed: the largest objects that no box is on, the largest first.
        by: what was held against each other; where it is masks, read so for boxes here.
    """

    classes: tuple[str, ...]
    pictures: int
    support: Int64[ndarray, "c a"]
    said: Int64[ndarray, " c"]
    precision: Float64[ndarray, "t r c a"]
    confidence: Float64[ndarray, "t r c"]
    recall: Float64[ndarray, "t c a k"]
    confusion: Int64[ndarray, "c+1 c+1"]
    threshold: float
    overlap: float
    false: tuple[Miss, ...] = ()
    confused: tuple[Miss, ...] = ()
    missed: tuple[Miss, ...] = ()
    by: JudgedBy = "boxes"

    def __repr__(self) -> str:
        objects, shown = int(self.support[:, 0].sum()), "none" if self.ap is None else f"{self.ap:.3f}"
        return f"ObjectScores(AP {shown}: {objects} objects of {len(self.classes)} classes in {self.pictures} pictures)"

    def average_precision(self, *, overlap: float | None = None, area: str = "all") -> float | None:
        """The mean precision over recalls, classes and, by default, overlaps.

        Args:
            overlap: one of `OVERLAPS`; None for the mean over all ten.
            area: one of `AREAS`.

        Raises:
            UsageError: no such overlap or area.
        """
        values = self.precision[_overlap(overlap), :, :, _area(area)]
        return _mean(values)

    def average_recall(self, *, most: int = 100, area: str = "all") -> float | None:
        """The mean over classes and overlaps of the recall with so many boxes for each picture and class.

        Args:
            most: one of `MOST`.
            area: one of `AREAS`.

        Raises:
            UsageError: no such number or area.
        """
        if most not in MOST:
            raise UsageError(f"Recall was counted for at most {', '.join(map(str, MOST))} boxes; {most!r} came.")
        return _mean(self.recall[:, :, _area(area), MOST.index(most)])

    @property
    def ap(self) -> float | None:
        """Average precision over IoU .50 to .95: COCO's first number."""
        return self.average_precision()

    @property
    def ap50(self) -> float | None:
        """Average precision at IoU .50: that of Pascal VOC, but for the number of recalls."""
        return self.average_precision(overlap=0.5)

    @property
    def ap75(self) -> float | None:
        """Average precision at IoU .75."""
        return self.average_precision(overlap=0.75)

    @cached_property
    def numbers(self) -> dict[str, float | None]:
        """COCO's twelve, in its order: AP, at .50, at .75, of small, medium and large objects; AR with 1, 10 and 100 boxes,
        and of small, medium and large objects.
        """
        sizes = ("small", "medium", "large")
        return {
            "ap": self.ap,
            "ap50": self.ap50,
            "ap75": self.ap75,
            **{f"ap_{area}": self.average_precision(area=area) for area in sizes},
            **{f"ar{most}": self.average_recall(most=most) for most in MOST},
            **{f"ar_{area}": self.average_recall(area=area) for area in sizes},
        }

    def of_class(self, index: int) -> dict[str, float | None]:
        """AP, AP at .50 and at .75, and recall with 100 boxes, of one class; None where it has no objects."""
        one = self.precision[:, :, index, 0]
        return {
            "ap": _mean(one),
            "ap50": _mean(one[_overlap(0.5)]),
            "ap75": _mean(one[_overlap(0.75)]),
            "ar100": _mean(self.recall[:, index, 0, -1]),
        }

    def curve(self, index: int | None = None, *, overlap: float = 0.5) -> Float64[ndarray, " r"] | None:
        """Precision at each of `RECALLS`, of one class or the mean over those with objects; None without objects.

        Raises:
            UsageError: no such overlap.
        """
        there = self.support[:, 0] > 0
        if index is not None:
            return self.precision[_overlap(overlap), :, index, 0][0] if there[index] else None
        return self.precision[_overlap(overlap)][0][:, there, 0].mean(1) if there.any() else None

    def confusions(self, k: int | None = None) -> list[tuple[int, int, int]]:
        """What was taken for what, most frequent first: the object's class, the class said, how often; at most k of them."""
        counts = self.confusion[:-1, :-1].copy()
        np.fill_diagonal(counts, 0)
        rows, columns = np.nonzero(counts)
        order = np.argsort(-counts[rows, columns], kind="stable")[: None if k is None else whole_number("k", k)]
        return [(int(rows[one]), int(columns[one]), int(counts[rows[one], columns[one]])) for one in order]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "pictures": self.pictures,
            "objects": int(self.support[:, 0].sum()),
            **self.numbers,
            "classes": [
                {
                    "label": label,
                    "objects": int(self.support[place, 0]),
                    "found": int(self.confusion[place, place]),
                    "said": int(self.said[place]),
                    **self.of_class(place),
                }
                for place, label in enumerate(self.classes)
            ],
            "threshold": self.threshold,
            "overlap": self.overlap,
            "confusions": [
                {"true": self.classes[true], "said": self.classes[said], "count": count}
                for true, said, count in self.confusions(100)
            ],
        }


def _overlap(overlap: float | None) -> slice:
    """Where an overlap stands among all."""
    if overlap is None:
        return slice(None)
    near = np.flatnonzero(np.isclose(OVERLAPS, overlap))
    if not len(near):
        raise UsageError(f"Boxes were matched at IoU .50, .55, … .95; {overlap!r} came.")
    return slice(int(near[0]), int(near[0]) + 1)


def _area(area: str) -> int:
    if area not in AREAS:
        raise UsageError(f"Areas are {', '.join(AREAS)}; {area!r} came.")
    return list(AREAS).index(area)


def _mean(values: Float[ndarray, "*n"]) -> float | None:
    there = values[values > -1]
    return float(there.mean()) if there.size else None


# -- picture by picture -----------------------------------------------------------------------------------------------


class ObjectMetric:
    """Average precision and what else is worth knowing of a detector, from pictures shown one by one.

    Args:
        classes: their names, in the order of `Annotations.labels`.
        by: what must overlap.
        threshold: the score from which a box counts for the confusion matrix and for what is missed.
        overlap: the intersection over union from which it does.
        kept: how many of the worst mistakes of each kind are kept.

    Raises:
        UnknownNameError: something else than boxes or masks to overlap.
        UsageError: no classes, or a number beyond its range.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        by: JudgedBy = "boxes",
        threshold: float = 0.5,
        overlap: float = 0.5,
        kept: int = 24,
    ) -> None:
        if by not in get_args(JudgedBy):
            raise UnknownNameError("value of by", by, get_args(JudgedBy))
        self.by = by
        if not classes:
            raise UsageError("A detector is judged by at least one class of objects; none came.")
        for name, number in (("threshold", threshold), ("overlap", overlap)):
            if not 0 <= real_number(name, number) <= 1:
                raise UsageError(f"{name} must be from 0 to 1; {number!r} came.")
        self.classes, self.threshold, self.overlap = tuple(classes), float(threshold), float(overlap)
        self.kept = whole_number("kept", kept, least=0)
        self._rows: list[ndarray] = []
        self._support = np.zeros((len(classes), len(AREAS)), dtype=np.int64)
        self._confusion = np.zeros((len(classes) + 1, len(classes) + 1), dtype=np.int64)
        self._worst: dict[str, list[tuple[tuple[float, int, int], Miss]]] = {"false": [], "confused": [], "missed": []}
        self._places: set[int] = set()

    def __len__(self) -> int:
        """Pictures shown."""
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """What is kept of the boxes shown, in bytes; all else is bounded by the number of classes and of `kept`."""
        return sum(rows.nbytes for rows in self._rows)

    def add(
        self,
        detections: Detections | Instances,
        annotations: Annotations,
        *,
        place: int | None = None,
        image_id: int | None = None,
    ) -> None:
        """Show a picture: what was found in it, and what is there.

        Args:
            detections: their `indices` are places in `classes`. Only `Instances` can be judged by masks.
            annotations: of the same picture; with masks, where these are judged.
            place: where the picture stands in its set; by default behind the last one.
            image_id: the picture's number; by default its place. Boxes of one score count in the order of these numbers, as
                in the published code, in whichever order the pictures are shown.

        Raises:
            UsageError: a class that is none, a score or a box that is not finite, masks that are missing or do not fit, or a
                picture that was shown already. Nothing is counted then.
        """
        place = max(self._places, default=-1) + 1 if place is None else whole_number("place", place, least=0)
        if place in self._places:
            raise UsageError(f"Picture {place} ({detections.name}) was shown already.")
        found, scores, said = _checked(detections, len(self.classes))
        there, labels, crowd, sizes = _annotated(annotations, detections.name, len(self.classes))
        order = np.argsort(-scores, kind="stable")
        if self.by == "masks":
            overlaps, areas = _masks_compared(detections, annotations)
        else:
            overlaps, areas = overlaps_of(found, there, crowd), _areas(found)
        found, scores, said, overlaps = found[order], scores[order], said[order], overlaps[order]
        rank = _ranks(said)
        beyond = _outside(areas[order])
        left_out = _outside(sizes) | crowd[:, None]  # of the objects
        hit, ignored = _matched(overlaps, said, labels, rank < MOST[-1], crowd, left_out, beyond)
        self._keep(place if image_id is None else image_id, scores, said, rank, hit, ignored)
        np.add.at(self._support, labels, ~left_out)
        wrong = ~hit[:, 0, 0] & ~ignored[:, 0, 0] & (rank < MOST[-1])
        self._places.add(place)
        self._note_false(place, detections.name, found, scores, said, overlaps, there, labels, crowd, wrong)
        self._note_confusion(place, detections.name, scores, said, overlaps, there, labels, crowd)

    def _keep(
        self,
        picture: int,
        scores: Float[ndarray, " n"],
        said: Int[ndarray, " n"],
        rank: Int[ndarray, " n"],
        hit: Bool[ndarray, "n a t"],
        ignored: Bool[ndarray, "n a t"],
    ) -> None:
        counted = rank < MOST[-1]
        rows = np.empty(int(counted.sum()), dtype=_ROW)
        rows["score"], rows["class"], rows["rank"], rows["picture"] = scores[counted], said[counted], rank[counted], picture
        flags = np.stack([hit, ignored], axis=1)[counted].reshape(len(rows), _FLAGS)
        rows["flags"] = np.packbits(flags, axis=1)
        self._rows.append(rows)
        if len(self._rows) >= 1024:  # an array has 100 bytes of its own
            self._rows = [np.concatenate(self._rows)]

    def _note(self, kind: str, weight: float, number: int, miss: Miss) -> None:
        """Keep a mistake among the worst of its kind; of equal ones the first."""
        worst = self._worst[kind]
        entry = ((weight, -miss.place, -number), miss)
        if len(worst) < self.kept:
            heapq.heappush(worst, entry)
        elif worst and entry[0] > worst[0][0]:
            heapq.heapreplace(worst, entry)

    def _would_be_kept(self, kind: str, weight: float) -> bool:
        worst = self._worst[kind]
        return len(worst) < self.kept or bool(worst and weight >= worst[0][0][0])

    def _note_false(
        self,
        place: int,
        name: str,
        found: Float[ndarray, "n 4"],
        scores: Float[ndarray, " n"],
        said: Int[ndarray, " n"],
        overlaps: Float[ndarray, "n m"],
        there: Float[ndarray, "m 4"],
        labels: Int[ndarray, " m"],
        crowd: Bool[ndarray, " m"],
        wrong: Bool[ndarray, " n"],
    ) -> None:
        """The boxes that match no object at IoU .5, with what they may have meant."""
        real = np.where(crowd, 0.0, overlaps)
        own = np.where(labels == said[:, None], real, 0.0).max(1, initial=0.0) >= OVERLAPS[0]
        other = ~own & (real.max(1, initial=0.0) >= OVERLAPS[0])
        for one in np.flatnonzero(wrong):
            score = float(scores[one])
            if not self._would_be_kept("confused" if other[one] else "false", score):
                continue
            kind, meant = _meant(real[one], labels == said[one])
            miss = Miss(
                kind=kind,
                place=place,
                picture=name,
                box=_four(found[one]),
                label=int(said[one]),
                score=score,
                truth=None if meant is None else int(labels[meant]),
                object=None if meant is None else _four(there[meant]),
            )
            self._note("confused" if other[one] else "false", score, int(one), miss)

    def _note_confusion(
        self,
        place: int,
        name: str,
        scores: Float[ndarray, " n"],
        said: Int[ndarray, " n"],
        overlaps: Float[ndarray, "n m"],
        there: Float[ndarray, "m 4"],
        labels: Int[ndarray, " m"],
        crowd: Bool[ndarray, " m"],
    ) -> None:
        """Objects by what was found there: first the boxes of their own class choose, then those of others."""
        by = np.full(len(labels), -1)
        free = np.ones(len(said), dtype=bool)
        sure, on = scores >= self.threshold, overlaps >= self.overlap
        same, real = labels == said[:, None], on & ~crowd
        for own in (True, False):
            fits = real & (same == own)
            for one in np.flatnonzero(sure & free & fits.any(1)):
                left = fits[one] & (by < 0)
                if left.any():
                    by[np.where(left, overlaps[one], -1.0).argmax()] = one
                    free[one] = False
        nothing = len(self.classes)
        for number in np.flatnonzero(~crowd):
            self._confusion[labels[number], said[by[number]] if by[number] >= 0 else nothing] += 1
            if by[number] < 0:
                box = _four(there[number])
                miss = Miss(kind="missed", place=place, picture=name, box=box, label=int(labels[number]))
                self._note("missed", miss.area, int(number), miss)
        in_crowd = (on & same & crowd).any(1)
        np.add.at(self._confusion[nothing], said[sure & free & ~in_crowd], 1)

    def result(self) -> ObjectScores:
        """The averages over all pictures so far; more may follow.

        Raises:
            UsageError: no pictures, or no objects in them.
        """
        if not self._support[:, 0].any():
            shown = f"{len(self)} picture{'' if len(self) == 1 else 's'}"
            raise UsageError(
                f"{shown} without any object came, so there is nothing to be found."
                if len(self)
                else "There are no pictures to judge a detector by."
            )
        self._rows = [np.concatenate(self._rows)]
        rows = self._rows[0]
        count = len(self.classes)
        precision = np.full((len(OVERLAPS), len(RECALLS), count, len(AREAS)), -1.0)
        recall = np.full((len(OVERLAPS), count, len(AREAS), len(MOST)), -1.0)
        confidence = np.full((len(OVERLAPS), len(RECALLS), count), -1.0)
        order = np.lexsort((rows["rank"], rows["picture"], -rows["score"], rows["class"]))
        ends = np.searchsorted(rows["class"][order], np.arange(count + 1))
        for place in range(count):
            own = rows[order[ends[place] : ends[place + 1]]]
            flags = np.unpackbits(own["flags"], axis=1).reshape(len(own), 2, len(AREAS), len(OVERLAPS)).astype(bool)
            for area, objects in enumerate(self._support[place].tolist()):
                if not objects:
                    continue
                hit, ignored = flags[:, 0, area], flags[:, 1, area]
                read, where = _read_precision(hit, ignored, objects)
                precision[:, :, place, area] = read
                if area == 0:
                    reached = where < len(own)
                    confidence[:, :, place] = np.where(reached, np.append(own["score"], 0.0)[where], 0.0)
                for number, most in enumerate(MOST):
                    recall[:, place, area, number] = hit[own["rank"] < most].sum(0) / objects
        return ObjectScores(
            classes=self.classes,
            pictures=len(self),
            support=self._support.copy(),
            said=np.diff(ends),
            precision=precision,
            confidence=confidence,
            recall=recall,
            confusion=self._confusion.copy(),
            threshold=self.threshold,
            overlap=self.overlap,
            by=self.by,
            **{kind: tuple(miss for _, miss in sorted(found, key=_weight)) for kind, found in self._worst.items()},
        )


def _weight(entry: tuple[tuple[float, int, int], Miss]) -> tuple[float, int, int]:
    weight, place, number = entry[0]
    return -weight, -place, -number


def _four(box: Float[ndarray, " _"]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box.tolist()
    return left, top, right, bottom


def _masks_compared(
    detections: Detections | Instances, annotations: Annotations
) -> tuple[Float64[ndarray, "n m"], Float64[ndarray, " n"]]:
    """How much masks overlap, a crowd by the share of what was found that lies in it; and how many pixels were found."""
    found = detections.masks if isinstance(detections, Instances) else None
    there, name = annotations.masks, detections.name
    if found is None or there is None:
        came = "What was found in" if found is None else "What is there in"
        raise UsageError(f"{came} {name} has no masks to be judged by. Judge it by='boxes'.")
    if len(found) and len(there) and found.shape[1:] != there.shape[1:]:
        sizes = " and ".join(f"{one.shape[1]} × {one.shape[2]}" for one in (found, there))
        raise UsageError(f"The masks of {name} are {sizes} pixels large; what was found and what is there must be as large.")
    areas = np.array([np.count_nonzero(mask) for mask in found], dtype=np.float64)
    if not len(found) or not len(there):
        return np.zeros((len(found), len(there))), areas
    return mask_iou(found, there, annotations.crowd), areas


def _checked(
    detections: Detections | Instances, classes: int
) -> tuple[Float64[ndarray, "n 4"], Float64[ndarray, " n"], Int64[ndarray, " n"]]:
    """Boxes, scores and classes of what was found."""
    boxes = np.asarray(detections.boxes, dtype=np.float64).reshape(-1, 4)
    scores, said = np.asarray(detections.scores, dtype=np.float64), np.asarray(detections.indices, dtype=np.int64)
    if not len(boxes) == len(scores) == len(said):
        raise UsageError(
            f"{len(boxes)} boxes, {len(scores)} scores and {len(said)} classes came for {detections.name}; "
            "there must be as many of each."
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise UsageError(f"What was found in {detections.name} has a box or a score that is NaN or infinite.")
    _check_classes(said, detections.name, classes)
    return boxes, scores, said


def _annotated(
    annotations: Annotations, name: str, classes: int
) -> tuple[Float64[ndarray, "m 4"], Int64[ndarray, " m"], Bool[ndarray, " m"], Float64[ndarray, " m"]]:
    """Boxes, classes, crowds and areas of what is there."""
    boxes = np.asarray(annotations.boxes, dtype=np.float64).reshape(-1, 4)
    labels, crowd = np.asarray(annotations.labels, dtype=np.int64), np.asarray(annotations.crowd, dtype=bool)
    sizes = np.asarray(annotations.areas, dtype=np.float64)
    all_finite(f"annotations of {name}", boxes, sizes)
    _check_classes(labels, name, classes)
    return boxes, labels, crowd, sizes


def _check_classes(numbers: Int64[ndarray, " n"], name: str, classes: int) -> None:
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
        raise UsageError(
            f"The classes of {name} are from {numbers.min()} to {numbers.max()}, and there are {classes} from 0. "
            "Say what was found in the numbers of the set's classes."
        )


def _outside(areas: Float[ndarray, " n"]) -> Bool[ndarray, "n a"]:
    """Beyond which ranges areas lie."""
    return (areas[:, None] < _RANGES[:, 0]) | (areas[:, None] > _RANGES[:, 1])


def _ranks(said: Int64[ndarray, " n"]) -> Int64[ndarray, " n"]:
    """Where each box stands among those of its class, from 0; they come in the order of their scores."""
    order = np.argsort(said, kind="stable")
    starts = np.searchsorted(said[order], said[order])
    ranks = np.empty(len(said), dtype=np.int64)
    ranks[order] = np.arange(len(said)) - starts
    return ranks


def _meant(overlaps: Float[ndarray, " m"], own: Bool[ndarray, " m"]) -> tuple[MissKind, int | None]:
    """What is wrong with a box that matches no object, and which object it is on or beside."""
    found: tuple[tuple[MissKind, Bool[ndarray, " m"], float], ...] = (
        ("twice", own, OVERLAPS[0]),
        ("confused", ~own, OVERLAPS[0]),
        ("misplaced", own, _SOME),
    )
    for kind, among, least in found:
        fits = np.where(among, overlaps, 0.0)
        if len(fits) and fits.max() >= least:
            return kind, int(fits.argmax())
    return "nothing", None


def _matched(
    overlaps: Float64[ndarray, "n m"],
    said: Int64[ndarray, " n"],
    labels: Int64[ndarray, " m"],
    counted: Bool[ndarray, " n"],
    crowd: Bool[ndarray, " m"],
    left_out: Bool[ndarray, "m a"],
    beyond: Bool[ndarray, "n a"],
) -> tuple[Bool[ndarray, "n a t"], Bool[ndarray, "n a t"]]:
    """Which boxes of a picture find an object, and which are left out, in each range of areas at each overlap.

    Boxes come in the order of their scores. An object that counts goes before those that are left out; of several that fit
    equally well, the last one is taken, as the published code does.
    """
    shape = (len(said), len(AREAS), len(OVERLAPS))
    hit, ignored = np.zeros(shape, dtype=bool), np.repeat(beyond[:, :, None], len(OVERLAPS), axis=2)
    taken = np.zeros((*shape[1:], len(labels)), dtype=bool)
    same = labels[None] == said[:, None]
    near = np.flatnonzero(counted & (np.where(same, overlaps, 0.0).max(1, initial=0.0) >= OVERLAPS[0]))
    for one in near:
        own = np.flatnonzero(same[one])
        fit = overlaps[one, own]
        free = (fit >= OVERLAPS[:, None])[None] & (~taken[:, :, own] | crowd[own])
        regular = free & ~left_out[own].T[:, None]
        finds = regular.any(-1)
        among = np.where(finds[..., None], regular, free)
        matches = among.any(-1)
        best = len(own) - 1 - np.where(among, fit, -1.0)[..., ::-1].argmax(-1)
        area, overlap = np.nonzero(matches)
        taken[area, overlap, own[best[area, overlap]]] = True
        hit[one] = finds
        ignored[one] = np.where(matches, ~finds, ignored[one])
    return hit, ignored


def _read_precision(
    hit: Bool[ndarray, "n t"], ignored: Bool[ndarray, "n t"], objects: int
) -> tuple[Float64[ndarray, "t r"], Int64[ndarray, "t r"]]:
    """The highest precision at each recall or above, and the box at which the recall is reached: n where it never is."""
    right = np.cumsum(hit & ~ignored, axis=0, dtype=np.float64)
    wrong = np.cumsum(~hit & ~ignored, axis=0, dtype=np.float64)
    # The smallest number keeps 0 / 0 away, and the last digit that of the published code.
    precision = right / (wrong + right + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    where = np.stack([np.searchsorted(column, RECALLS, side="left") for column in (right / objects).T])
    padded = np.concatenate([precision, np.zeros((1, precision.shape[1]))])
    return np.take_along_axis(padded.T, where, axis=1), where
