"""A segmenter held against pictures whose pixels are known: by class, object by object, or segment by segment.

    pictures → the record's preprocessing → batches of one size → model → class map, objects or segments → scores

Scores are mean intersection over union, COCO's average precision of masks, or panoptic quality; they are those of
`tasks.segmentation.metrics` and `tasks.detection.metrics`. Pictures pass one by one, so that a set may be of any size; of
the worst ones what was said is kept, to be looked at.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from vitral.data.pictures import BadPictures
from vitral.data.segments import SegmentKind, SegmentSet
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UsageError
from vitral.models.record import Record
from vitral.models.segmentation.kinds import MapNetwork
from vitral.tasks.detection.metrics import ObjectMetric, ObjectScores
from vitral.tasks.segmentation.decode import Options, decode
from vitral.tasks.segmentation.metrics import MapMetric, MapScores, PanopticMetric, PanopticScores
from vitral.tasks.segmentation.result import Instances, Panoptic, Segmentation
from vitral.training.answers import Decoding, answers_of, check_reading
from vitral.training.naming import asked_record, places_of_classes

__all__ = ["SegmentEvaluation", "Worst", "check_fits_segments", "evaluate_segments"]

_VALUE = {"semantic": "miou", "instance": "ap", "panoptic": "pq"}
_WORST = 12  # pictures of which the answer is kept


class Worst(NamedTuple):
    """A picture of which little was right.

    Attributes:
        place: in its set.
        value: what it alone would score, in [0, 1].
        said: the answer, in the classes of the set.
    """

    place: int
    value: float
    said: Segmentation | Panoptic


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentEvaluation:
    """How good a segmenter is on pictures whose pixels are known.

    Attributes:
        data: what the set of pictures is called.
        model: what the segmenter is called.
        kind: what of the pixels was judged.
        scores: of all pictures, over the classes of the set; those of objects have the worst mistakes with them.
        worst: the pictures of which least was right, the worst first; of classes and of segments.
        skipped: why a picture was left out, one sentence each.
        seconds: how long it took, reading included.
    """

    data: str
    model: str
    kind: SegmentKind
    scores: MapScores | ObjectScores | PanopticScores
    worst: tuple[Worst, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0

    def __len__(self) -> int:
        """Pictures that were judged by."""
        return self.scores.pictures

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        told = f"{_VALUE[self.kind]} {self.value:.3f} in {len(self)} pictures{skipped}"
        return f"SegmentEvaluation({self.model} on {self.data}: {told})"

    @property
    def measure(self) -> str:
        """The name of what segmenters are ranked by: "miou", "ap" or "pq"."""
        return _VALUE[self.kind]

    @property
    def value(self) -> float:
        """What segmenters are ranked by, in [0, 1]."""
        return self.numbers[self.measure]

    @property
    def numbers(self) -> dict[str, float]:
        """All measures by name, without those of which there is nothing, such as small objects."""
        return {name: value for name, value in self.scores.numbers.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a number of nothing is None."""
        told = {"data": self.data, "model": self.model, "kind": self.kind, "skipped": list(self.skipped)}
        return {**told, "seconds": self.seconds, **self.scores.to_dict()}


@torch.no_grad()
def evaluate_segments(
    model: nn.Module,
    pictures: SegmentSet,
    kind: SegmentKind = "semantic",
    *,
    batch_size: int = 8,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    workers: int = 0,
    bad_pictures: BadPictures = "refuse",
    decoding: Decoding = "fast",
    options: Options | None = None,
    edges: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> SegmentEvaluation:
    """Ask a segmenter about every picture of a set, and hold what it says against what is there.

    Pictures are prepared as the model's record says, and judged at their own size. Classes are matched by their names, see
    `training.naming`. A pixel of a class that the set does not have counts as one of which nothing was said; an object or a
    segment of such a class is left out. The model comes back as it was.

    Args:
        model: a segmenter of Vitral's with a record.
        pictures: segmented pictures of this kind.
        kind: what of the pixels is judged.
        batch_size: how many pictures are read before the model sees them; of those, inputs of one size are computed
            together.
        device: where to compute; by default where the model is.
        dtype: "bfloat16" or "float16" computes under autocast; by default in the precision of the weights.
        workers: processes that read and prepare; 0 does it here.
        bad_pictures: "refuse" ends at a picture that cannot be read; "skip" leaves it out and says so in `skipped`.
        decoding: "fast" reads large JPEGs as a predictor does by default; "exact" always reads them whole.
        options: how what the model says becomes an answer; None for the usual ones, and every object whatever its score,
            as average precision needs them. The subtask is that of `kind`.
        edges: whether classes are judged near their edges too (boundary IoU), which takes long.
        on_progress: called with the pictures done and their number after each batch.

    Raises:
        UsageError: the model does not say such things, or its classes do not fit; nobody said how pictures are prepared for
            it; there is nothing to judge by; an answer that is not finite.
        PictureError: a picture or its labels that cannot be read, unless such are skipped.
    """
    check_reading(bad_pictures, decoding)
    record, preprocessing, places = _checked(model, pictures, kind)
    if edges and kind != "semantic":
        raise UsageError(f"Edges are those of classes; {kind} was to be judged. Leave edges out, or judge kind='semantic'.")
    judge = _Classes(pictures, places, edges=edges) if kind == "semantic" else _JUDGES[kind](pictures, places)
    chosen = judge.options(options)
    worst: list[tuple[float, int, Worst]] = []  # a heap: on top the one that would leave first
    started, skipped, done = time.perf_counter(), list[str](), 0
    for batch in answers_of(
        model,
        pictures,
        preprocessing,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        workers=workers,
        bad_pictures=bad_pictures,
        decoding=decoding,
    ):
        skipped += batch.skipped
        for of_set, seen, output in batch.answers:
            for place, said in zip(of_set, decode(output, seen, record, chosen), strict=True):
                try:
                    one = judge.add(place, said)
                except PictureError as error:  # its labels
                    if bad_pictures == "refuse":
                        raise
                    skipped.append(str(error))
                    continue
                done += 1
                if one is not None:
                    _keep(worst, one)
        if on_progress is not None:
            on_progress(done + len(skipped), len(pictures))
    if not done:
        why = f"; the first: {skipped[0]}" if skipped else "."
        raise UsageError(f"None of the {len(pictures)} pictures of {pictures.name} could be read{why}")
    return SegmentEvaluation(
        data=pictures.name,
        model=record.architecture or record.source or type(model).__name__,
        kind=kind,
        scores=judge.result(),
        worst=tuple(one for _, _, one in sorted(worst, reverse=True)),
        skipped=tuple(skipped),
        seconds=time.perf_counter() - started,
    )


def check_fits_segments(model: nn.Module, pictures: SegmentSet, kind: SegmentKind) -> None:
    """Refuse, before any work, a segmenter that cannot be judged by these pictures.

    Raises:
        UsageError: the sentence says what does not fit.
    """
    _checked(model, pictures, kind)


def _keep(worst: list[tuple[float, int, Worst]], one: Worst) -> None:
    """Put a picture among the worst, if it is one of them; of two with one value the earlier one is."""
    (heapq.heappush if len(worst) < _WORST else heapq.heappushpop)(worst, (-one.value, -one.place, one))


def _checked(
    model: nn.Module, pictures: SegmentSet, kind: SegmentKind
) -> tuple[Record, Preprocessing, Int64[np.ndarray, " c"]]:
    """What the model's record says, and the places of its classes in the set."""
    without = "says nothing of pixels, so it cannot be judged as a segmenter."
    record, preprocessing, count = asked_record(model, "image-segmentation", without)
    if kind != "semantic" and isinstance(model, MapNetwork):
        raise UsageError(
            f"A {type(model).__name__} says the class of every pixel and tells no objects apart, as {pictures.name} asks. "
            "Take a network of masks, such as mask2former_r50, or judge classes: kind='semantic' (--segments semantic)."
        )
    there = np.ones(len(pictures.classes), dtype=bool)
    return record, preprocessing, places_of_classes(record, count, pictures.classes, there, pictures.name)


# -- three kinds of judges ----------------------------------------------------------------------------------------------


class _Judge(Protocol):
    """Holds the answer to one picture after the other against what is there."""

    def __init__(self, pictures: Any, places: Int64[np.ndarray, " c"]) -> None: ...

    def options(self, given: Options | None) -> Options:
        """How what the model says becomes the answer that is judged."""

    def add(self, place: int, said: Any) -> Worst | None:
        """One picture; and how it looks alone, if that is kept."""

    def result(self) -> Any:
        """The scores of all."""


class _Classes(_Judge):
    """The class of every pixel."""

    def __init__(self, pictures: Any, places: Int64[np.ndarray, " c"], *, edges: bool = False) -> None:
        self.pictures, self.ignore = pictures, int(pictures.ignore)
        self.metric = MapMetric(pictures.classes, ignore=self.ignore, edges=edges)
        self.table = np.where(places < 0, self.ignore, places).astype(np.int32)

    def options(self, given: Options | None) -> Options:
        """See `_Judge`."""
        return replace(given or Options(), subtask="semantic", fused=())

    def add(self, place: int, said: Segmentation) -> Worst | None:
        """See `_Judge`."""
        truth = self.pictures.class_map(place)
        known = said.class_map != said.ignore
        class_map = np.where(known, self.table[np.where(known, said.class_map, 0)], self.ignore).astype(np.int32)
        own = self.metric.add(class_map, truth, name=self.pictures.where(place))
        if not own.any():
            return None  # nothing is known of it
        alone = MapScores(classes=self.metric.classes, pictures=1, confusion=own)
        answer = replace(
            said, name=self.pictures.where(place), class_map=class_map, labels=self.metric.classes, ignore=self.ignore,
            scores=None,
        )  # fmt: skip
        return Worst(place, alone.miou, answer)

    def result(self) -> MapScores:
        """See `_Judge`."""
        return self.metric.result()


class _Objects(_Judge):
    """Objects, one by one; the metric keeps the worst mistakes itself."""

    def __init__(self, pictures: Any, places: Int64[np.ndarray, " c"]) -> None:
        self.pictures, self.places = pictures, places
        self.metric = ObjectMetric(pictures.classes, by="masks")

    def options(self, given: Options | None) -> Options:
        """See `_Judge`. Average precision needs every object, whatever its score."""
        return replace(given or Options(threshold=0.0), subtask="instance", fused=())

    def add(self, place: int, said: Instances) -> Worst | None:
        """See `_Judge`."""
        own = self.places[said.indices]
        found = replace(said[own >= 0], indices=own[own >= 0], name=self.pictures.where(place))
        self.metric.add(found, self.pictures.annotations(place), place=place, image_id=self.pictures.image_id(place))
        return None

    def result(self) -> ObjectScores:
        """See `_Judge`."""
        return self.metric.result()


class _Segments(_Judge):
    """Things and stuff."""

    def __init__(self, pictures: Any, places: Int64[np.ndarray, " c"]) -> None:
        self.pictures, self.places = pictures, places
        self.metric = PanopticMetric(pictures.classes, pictures.things)

    def options(self, given: Options | None) -> Options:
        """See `_Judge`. All that a picture shows of a kind of stuff is one segment."""
        stuff = ~np.array(self.pictures.things, dtype=bool)
        fused = np.flatnonzero(stuff[self.places] & (self.places >= 0)).tolist()
        return replace(given or Options(), subtask="panoptic", fused=tuple(fused))

    def add(self, place: int, said: Panoptic) -> Worst | None:
        """See `_Judge`."""
        segments = tuple(
            replace(one, index=int(self.places[one.index]), label=self.pictures.classes[self.places[one.index]])
            for one in said.segments
            if self.places[one.index] >= 0
        )
        kept = np.isin(said.segment_map, [one.id for one in segments])
        segment_map = np.where(kept, said.segment_map, 0).astype(said.segment_map.dtype)
        answer = replace(said, name=self.pictures.where(place), segment_map=segment_map, segments=segments)
        there = self.pictures.annotations(place)
        self.metric.add(answer, there)
        alone = PanopticMetric(self.pictures.classes, self.pictures.things)
        alone.add(answer, there)
        with suppress(UsageError):
            return Worst(place, alone.result().pq, answer)
        return None  # nothing is there and nothing was said, or only what excuses it

    def result(self) -> PanopticScores:
        """See `_Judge`."""
        return self.metric.result()


_JUDGES: dict[SegmentKind, type[_Judge]] = {"semantic": _Classes, "instance": _Objects, "panoptic": _Segments}
