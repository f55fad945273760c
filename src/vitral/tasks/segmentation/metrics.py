"""How good a segmenter is: of maps of classes, intersection over union; of whole pictures in parts, panoptic quality.

A metric is shown the pictures one by one and keeps counts only, so that it takes no more room for a million of them. How
well objects are drawn, average precision of masks, is for `tasks.detection.metrics.ObjectMetric` to say, `by="masks"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer
from numpy import ndarray

from vitral.base.masks import boundary_of
from vitral.base.numbers import whole_number
from vitral.data.objects import Annotations
from vitral.errors import UsageError
from vitral.tasks.segmentation.result import Panoptic

__all__ = ["MapMetric", "MapScores", "PanopticMetric", "PanopticScores", "Quality"]

_AT_ONCE = 1 << 20  # pixels that are counted together: more would take eight bytes each


# -- maps of classes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class MapScores:
    """How good maps of classes are, over all labelled pixels of all pictures together (Long et al. 2015, FCN, section 5).

    Shares are in [0, 1]. Of arrays, −1 stands for a class of which there is nothing to say; it counts in no mean.

    Attributes:
        classes: their names.
        pictures: how many were shown.
        confusion: pixels of each class (rows) by what was said of them (columns); the last column: nothing.
        edges: of each class, how many pixels near an edge are shared, and how many there are in what is true, in what was
            said, or in both; None where edges were not asked for.
    """

    classes: tuple[str, ...]
    pictures: int
    confusion: Int64[ndarray, "c c+1"]
    edges: Int64[ndarray, "c 2"] | None = None

    def __repr__(self) -> str:
        return f"MapScores(mIoU {self.miou:.3f}: {len(self.classes)} classes in {self.pictures} pictures)"

    @cached_property
    def support(self) -> Int64[ndarray, " c"]:
        """Labelled pixels of each class."""
        return self.confusion.sum(1)

    @cached_property
    def iou(self) -> Float64[ndarray, " c"]:
        """Intersection over union of each class; −1 for one that neither is nor was said anywhere."""
        right = self.confusion.diagonal()
        return _shares(right, self.support + self.confusion[:, :-1].sum(0) - right)

    @cached_property
    def accuracy(self) -> Float64[ndarray, " c"]:
        """The share of each class's pixels that are right; −1 for a class without pixels."""
        return _shares(self.confusion.diagonal(), self.support)

    @cached_property
    def edge_iou(self) -> Float64[ndarray, " c"] | None:
        """Boundary IoU of each class (Cheng et al. 2021, section 4), over all pictures; None where not asked for."""
        return None if self.edges is None else _shares(self.edges[:, 0], self.edges[:, 1])

    @property
    def miou(self) -> float:
        """The mean of `iou` over the classes that are or were said somewhere."""
        return float(self.iou[self.iou >= 0].mean())

    @property
    def pixel_accuracy(self) -> float:
        """The share of all labelled pixels that are right."""
        return float(self.confusion.diagonal().sum() / self.confusion.sum())

    @property
    def mean_accuracy(self) -> float:
        """The mean of `accuracy` over the classes with pixels."""
        return float(self.accuracy[self.accuracy >= 0].mean())

    @property
    def boundary_iou(self) -> float | None:
        """The mean of `edge_iou` over the classes that are or were said somewhere; None where edges were not asked for."""
        return None if self.edge_iou is None else float(self.edge_iou[self.edge_iou >= 0].mean())

    @property
    def numbers(self) -> dict[str, float | None]:
        """The four means by name."""
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "boundary_iou": self.boundary_iou,
        }

    def confusions(self, k: int | None = None) -> list[tuple[int, int, int]]:
        """What was taken for what, most pixels first: their class, the class said, how many; at most k of them."""
        counts = self.confusion[:, :-1].copy()
        np.fill_diagonal(counts, 0)
        rows, columns = np.nonzero(counts)
        order = np.argsort(-counts[rows, columns], kind="stable")[: None if k is None else whole_number("k", k)]
        return [(int(rows[one]), int(columns[one]), int(counts[rows[one], columns[one]])) for one in order]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        columns = {"iou": self.iou, "accuracy": self.accuracy, "boundary_iou": self.edge_iou}
        return {
            "pictures": self.pictures,
            "pixels": int(self.confusion.sum()),
            **self.numbers,
            "classes": [
                {"label": label, "pixels": int(self.support[place])}
                | {name: _told(column, place) for name, column in columns.items() if column is not None}
                for place, label in enumerate(self.classes)
            ],
            "confusions": [
                {"true": self.classes[true], "said": self.classes[said], "pixels": count}
                for true, said, count in self.confusions(100)
            ],
        }


def _shares(part: Int64[ndarray, " c"], whole: Int64[ndarray, " c"]) -> Float64[ndarray, " c"]:
    return np.divide(part, whole, out=np.full(len(part), -1.0), where=whole > 0)


def _told(column: Float64[ndarray, " c"], place: int) -> float | None:
    return None if column[place] < 0 else float(column[place])


class MapMetric:
    """Intersection over union and what else is worth knowing of maps of classes, from pictures shown one by one.

    Args:
        classes: their names, in the order of the numbers in the maps.
        ignore: what stands in a true map where nothing is known, and in a map that was said where nothing was said.
        edges: whether boundary IoU is counted too; it takes many times as long.
        thickness: of edges, in pixels; None: 2 % of each picture's diagonal (Cheng et al. 2021, section 5.1).

    Raises:
        UsageError: no classes, or a thickness that is none.
    """

    def __init__(
        self, classes: Sequence[str], *, ignore: int = 255, edges: bool = False, thickness: int | None = None
    ) -> None:
        if not classes:
            raise UsageError("A segmenter is judged by at least one class; none came.")
        self.classes, self.ignore = tuple(classes), whole_number("ignore", ignore, least=-(1 << 31))
        self.thickness = None if thickness is None else whole_number("thickness", thickness)
        self._confusion = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
        self._edges = np.zeros((len(classes), 2), dtype=np.int64) if edges else None
        self._pictures = 0

    def __len__(self) -> int:
        return self._pictures

    def add(
        self, said: Integer[ndarray, "y x"], truth: Integer[ndarray, "y x"], *, name: str = "the picture"
    ) -> Int64[ndarray, "c c+1"]:
        """Show a picture: the class said of every pixel, and the true one.

        Args:
            said: by the model; `ignore` where it says nothing, which is wrong wherever something is known.
            truth: of the same picture; `ignore` where nothing is known.
            name: what messages call the picture.

        Returns:
            The confusion matrix of this picture alone, as in `MapScores`.

        Raises:
            UsageError: maps of different sizes, maps that are not of whole numbers, or a number that is neither a class nor
                `ignore`. Nothing is counted then.
        """
        for what, numbers in (("what was said", said), ("the truth", truth)):
            if not np.issubdtype(numbers.dtype, np.integer):
                raise UsageError(
                    f"Of {name}, {what} is a map of {numbers.dtype}; a class map holds the number of each pixel's class, so "
                    "whole numbers. If these are classes, turn them with .astype(int)."
                )
        if said.shape != truth.shape:
            raise UsageError(
                f"Of {name}, {' × '.join(map(str, said.shape))} pixels were said, but it has "
                f"{' × '.join(map(str, truth.shape))}."
            )
        count = len(self.classes)
        table = np.zeros((count + 1) ** 2, dtype=np.int64)
        step = max(1, _AT_ONCE // max(1, truth.shape[1]))
        for top in range(0, len(truth), step):
            rows, columns = (self._numbered(one[top : top + step], name) for one in (truth, said))
            table += np.bincount((rows * (count + 1) + columns).ravel(), minlength=len(table))
        own = table.reshape(count + 1, count + 1)[:-1]
        if self._edges is not None:
            self._edges += self._edges_of(said, truth, own)
        self._confusion += own
        self._pictures += 1
        return own

    def _numbered(self, numbers: Integer[ndarray, "y x"], name: str) -> Int64[ndarray, "y x"]:
        """A part of a map, with the number behind the last class for what is ignored."""
        count = len(self.classes)
        told = np.where(numbers == self.ignore, count, numbers).astype(np.int64)
        wrong = (told < 0) | (told > count) | ((told == count) & (numbers != self.ignore))
        if wrong.any():
            raise UsageError(
                f"A pixel of {name} is of class {int(told[wrong][0])}, but there are {count} from 0, and {self.ignore} is "
                "to be ignored."
            )
        return told

    def _edges_of(
        self, said: Integer[ndarray, "y x"], truth: Integer[ndarray, "y x"], own: Int64[ndarray, "c c+1"]
    ) -> Int64[ndarray, "c 2"]:
        """Of each class, the pixels near an edge that are shared, and all of them."""
        told, labelled = np.zeros((len(self.classes), 2), dtype=np.int64), truth != self.ignore
        for place in np.flatnonzero(own.sum(1) + own[:, :-1].sum(0)):
            if place == self.ignore:
                continue
            one, other = (boundary_of(numbers == place, self.thickness) & labelled for numbers in (said, truth))
            told[place] = np.count_nonzero(one & other), np.count_nonzero(one | other)
        return told

    def result(self) -> MapScores:
        """The scores of all pictures so far; more may follow.

        Raises:
            UsageError: no pictures, or none with a labelled pixel.
        """
        if not self._confusion.any():
            shown = f"{len(self)} picture{'' if len(self) == 1 else 's'}"
            raise UsageError(
                f"{shown} without any labelled pixel came, so there is nothing to be right about."
                if len(self)
                else "There are no pictures to judge a segmenter by."
            )
        edges = None if self._edges is None else self._edges.copy()
        return MapScores(classes=self.classes, pictures=len(self), confusion=self._confusion.copy(), edges=edges)


# -- whole pictures in parts ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Panoptic quality of a class, or the mean over some (Kirillov et al. 2019, section 4.2).

    Attributes:
        pq: sq · rq; of several classes the mean of these products.
        sq: how well segments fit that were found, their mean intersection over union; 0 where none was.
        rq: how well segments are found: 2 · found / (2 · found + wrongly said + missed).
        classes: how many classes count: those with a segment, or of which one was wrongly said.
    """

    pq: float
    sq: float
    rq: float
    classes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PanopticScores:
    """How well whole pictures are taken into parts (Kirillov et al. 2019).

    Attributes:
        classes: their names.
        things: which of them can be counted; the others are stuff.
        pictures: how many were shown.
        iou: of each class, the intersections over union of what was found, added up.
        found: of each class, how many segments were found: those that fit one said by more than half.
        wrong: how many were said that fit none.
        missed: how many were not found.
    """

    classes: tuple[str, ...]
    things: tuple[bool, ...]
    pictures: int
    iou: Float64[ndarray, " c"]
    found: Int64[ndarray, " c"]
    wrong: Int64[ndarray, " c"]
    missed: Int64[ndarray, " c"]

    def __repr__(self) -> str:
        return f"PanopticScores(PQ {self.pq:.3f}: {len(self.classes)} classes in {self.pictures} pictures)"

    def of(self, chosen: Bool[ndarray, " c"] | None = None) -> Quality | None:
        """The mean over some of the classes, by default all; None where none of them counts."""
        counted = self.found + self.wrong + self.missed > 0
        counted &= True if chosen is None else chosen
        if not counted.any():
            return None
        found, iou = self.found[counted], self.iou[counted]
        rq = found / (found + (self.wrong[counted] + self.missed[counted]) / 2)
        sq = np.divide(iou, found, out=np.zeros(len(found)), where=found > 0)
        return Quality(
            pq=float((sq * rq).mean()), sq=float(sq.mean()), rq=float(rq.mean()), classes=int(np.count_nonzero(counted))
        )

    @property
    def all(self) -> Quality | None:
        """Of all classes."""
        return self.of()

    @property
    def of_things(self) -> Quality | None:
        """Of the classes that can be counted; None where none of them counts."""
        return self.of(np.array(self.things))

    @property
    def of_stuff(self) -> Quality | None:
        """Of the others; None where none of them counts."""
        return self.of(~np.array(self.things))

    def of_class(self, index: int) -> Quality | None:
        """Of one class; None where there is none of it and none was wrongly said."""
        return self.of(np.arange(len(self.classes)) == index)

    @property
    def pq(self) -> float:
        """Panoptic quality of all classes."""
        return 0.0 if self.all is None else self.all.pq

    @property
    def numbers(self) -> dict[str, float | None]:
        """PQ, SQ and RQ of all classes, of things and of stuff, by name; None where there are none."""
        kinds = {"": self.all, "_things": self.of_things, "_stuff": self.of_stuff}
        return {
            f"{name}{kind}": None if told is None else getattr(told, name)
            for kind, told in kinds.items()
            for name in ("pq", "sq", "rq")
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        rows = []
        for place, label in enumerate(self.classes):
            told = self.of_class(place)
            counts = {name: int(getattr(self, name)[place]) for name in ("found", "wrong", "missed")}
            shares = {name: None if told is None else getattr(told, name) for name in ("pq", "sq", "rq")}
            rows.append({"label": label, "thing": self.things[place], **counts, **shares})
        return {"pictures": self.pictures, **self.numbers, "classes": rows}


class PanopticMetric:
    """Panoptic quality, from pictures shown one by one; counted as the code that COCO publishes counts it.

    - A segment said finds one of its class where intersection over union is above .5; there can be one only. Pixels of no
      true segment are left out of the union.
    - Crowds are neither found nor missed.
    - What was said in vain is wrong, unless more than half of it lies on pixels of no segment or on a crowd of its class; of
      several crowds of one class in a picture on the last, the one that the published code remembers.

    Args:
        classes: their names, in the order of `Annotations.labels`.
        things: which of them can be counted.

    Raises:
        UsageError: no classes, or not one word about each.
    """

    def __init__(self, classes: Sequence[str], things: Sequence[bool]) -> None:
        if not classes or len(things) != len(classes):
            raise UsageError(
                f"Panoptic quality needs classes, and of each whether it is a thing; {len(classes)} classes and "
                f"{len(things)} things came."
            )
        self.classes, self.things = tuple(classes), tuple(map(bool, things))
        self._iou = np.zeros(len(classes))
        self._found, self._wrong, self._missed = np.zeros((3, len(classes)), dtype=np.int64)
        self._pictures = 0

    def __len__(self) -> int:
        return self._pictures

    def add(self, said: Panoptic, annotations: Annotations) -> None:
        """Show a picture: the segments said, and those there are.

        Args:
            said: by the model; the `index` of its segments are places in `classes`.
            annotations: of the same picture, with masks that do not overlap; pixels of none are those of which nothing is
                known.

        Raises:
            UsageError: a class that is none; masks that are missing, overlap, or are not of the picture's size. Nothing is
                counted then.
        """
        truth, crowd = self._drawn(said, annotations), annotations.crowd
        classes = np.array([segment.index for segment in said.segments], dtype=np.int64)
        labels = np.asarray(annotations.labels, dtype=np.int64)
        for numbers in (classes, labels):
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self.classes):
                raise UsageError(
                    f"The classes of {said.name} are from {numbers.min()} to {numbers.max()}, and there are "
                    f"{len(self.classes)} from 0. Say what was found in the numbers of the set's classes."
                )
        shared = _shared(truth, len(labels), said)
        unknown, inside = shared[0, 1:], shared[1:, 1:]
        own, areas = shared[1:].sum(1), shared[:, 1:].sum(0)
        same = labels[:, None] == classes
        union = own[:, None] + areas - inside - unknown
        fits = same & ~crowd[:, None] & (2 * inside > union)
        rows, columns = np.nonzero(fits)
        np.add.at(self._iou, labels[rows], inside[rows, columns] / union[rows, columns])
        np.add.at(self._found, labels[rows], 1)
        np.add.at(self._missed, labels[~fits.any(1) & ~crowd], 1)
        remembered = list({label: place for place, label in enumerate(labels.tolist()) if crowd[place]}.values())
        excused = unknown + (inside * same)[remembered].sum(0)
        np.add.at(self._wrong, classes[~fits.any(0) & (2 * excused <= areas)], 1)
        self._pictures += 1

    def _drawn(self, said: Panoptic, annotations: Annotations) -> Integer[ndarray, "y x"]:
        """The true segments as a map, numbered from 1; 0 where there is none."""
        masks = annotations.masks
        if masks is None:
            raise UsageError(f"What is there in {said.name} has no masks to be judged by.")
        if masks.shape[1:] != said.segment_map.shape:
            raise UsageError(
                f"The masks there are in {said.name} are {masks.shape[1]} × {masks.shape[2]} pixels large, and what was "
                f"said {said.segment_map.shape[0]} × {said.segment_map.shape[1]}."
            )
        truth = np.zeros(masks.shape[1:], dtype=np.int32)
        for place, mask in enumerate(masks, start=1):
            other = int(truth[mask].max(initial=0))
            if other:
                raise UsageError(
                    f"Segments {other - 1} and {place - 1} there are in {said.name} overlap; of a picture taken into parts "
                    "no pixel is in two."
                )
            truth[mask] = place
        return truth

    def result(self) -> PanopticScores:
        """The scores of all pictures so far; more may follow.

        Raises:
            UsageError: no pictures, or none with a segment.
        """
        if not (self._found + self._wrong + self._missed).any():
            shown = f"{len(self)} picture{'' if len(self) == 1 else 's'}"
            raise UsageError(
                f"{shown} without any segment came, so there is nothing to be found."
                if len(self)
                else "There are no pictures to judge a segmenter by."
            )
        return PanopticScores(
            classes=self.classes,
            things=self.things,
            pictures=len(self),
            iou=self._iou.copy(),
            found=self._found.copy(),
            wrong=self._wrong.copy(),
            missed=self._missed.copy(),
        )


def _shared(truth: Integer[ndarray, "y x"], count: int, said: Panoptic) -> Int64[ndarray, "m n"]:
    """How many pixels each true segment shares with each that was said; in front, those of none."""
    ids = np.array([0, *(segment.id for segment in said.segments)], dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    columns = len(ids)
    table = np.zeros((count + 1) * columns, dtype=np.int64)
    step = max(1, _AT_ONCE // max(1, truth.shape[1]))
    for top in range(0, len(truth), step):
        part = order[np.searchsorted(ids[order], said.segment_map[top : top + step])]
        table += np.bincount((truth[top : top + step] * np.int64(columns) + part).ravel(), minlength=len(table))
    return table.reshape(count + 1, columns)
