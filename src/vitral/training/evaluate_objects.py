"""A detector held against pictures whose objects are known.

    pictures → the record's preprocessing → batches of one size → model → objects → an `ObjectMetric` → an `ObjectEvaluation`

Matching and averages are those of COCO, in `tasks.detection.metrics`. Pictures pass one by one: what stays of them is a few
bytes for each box found, so that a set may be of any size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from vitral.base.image import Picture
from vitral.data.objects import ObjectSet
from vitral.data.pictures import BadPictures
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UsageError
from vitral.models.record import Record
from vitral.tasks.detection.decode import decode
from vitral.tasks.detection.metrics import MOST, ObjectMetric, ObjectScores
from vitral.tasks.detection.result import Detections, Options
from vitral.training.answers import Decoding, answers_of, check_reading
from vitral.training.naming import asked_record, places_of_classes

__all__ = ["ObjectEvaluation", "check_fits_objects", "evaluate_objects", "judge_objects"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectEvaluation:
    """How good a detector is on pictures whose objects are known.

    Attributes:
        data: what the set of pictures is called.
        model: what the detector is called.
        scores: averages, curves, confusions and the worst mistakes, over the classes of the set.
        skipped: why a picture was left out, one sentence each.
        seconds: how long it took, reading included.
    """

    data: str
    model: str
    scores: ObjectScores
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0

    def __len__(self) -> int:
        """Pictures that were judged by."""
        return self.scores.pictures

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"ObjectEvaluation({self.model} on {self.data}: AP {self.ap:.3f} in {len(self)} pictures{skipped})"

    @property
    def ap(self) -> float:
        """Average precision over IoU .50 to .95, in [0, 1]: what COCO ranks detectors by."""
        return cast(float, self.scores.ap)  # there are objects, or there would be no scores

    @property
    def numbers(self) -> dict[str, float]:
        """COCO's twelve numbers, without those of which there are no objects, such as small ones."""
        return {name: value for name, value in self.scores.numbers.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a number without objects is None."""
        return {
            "data": self.data,
            "model": self.model,
            "skipped": list(self.skipped),
            "seconds": self.seconds,
            **self.scores.to_dict(),
        }


@torch.no_grad()
def evaluate_objects(
    model: nn.Module,
    objects: ObjectSet,
    *,
    batch_size: int = 8,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    workers: int = 0,
    bad_pictures: BadPictures = "refuse",
    decoding: Decoding = "fast",
    most: int | None = MOST[-1],
    threshold: float = 0.5,
    overlap: float = 0.5,
    on_progress: Callable[[int, int], None] | None = None,
) -> ObjectEvaluation:
    """Ask a detector about every picture of a set, and hold what it finds against what is there.

    Pictures are prepared as the model's record says, each at its own size. Classes are matched by their names
    (`Record.index`); those of a model without names, by their numbers. What a model finds of classes that the set does not
    have is left out: nobody says whether it is there.

    The model comes back as it was: in its mode, part by part, and on its device. The caller's random state is not touched.

    Args:
        model: a detector of Vitral's with a record.
        objects: annotated pictures.
        batch_size: how many pictures are read before the model sees them; of those, inputs of one size are computed
            together.
        device: where to compute; by default where the model is.
        dtype: "bfloat16" or "float16" computes under autocast; by default in the precision of the weights.
        workers: processes that read and prepare; 0 does it here.
        bad_pictures: "refuse" ends at a picture that cannot be read; "skip" leaves it out and says so in `skipped`.
        decoding: "fast" reads large JPEGs as a predictor does by default; "exact" always reads them whole.
        most: boxes kept of each picture, the best ones, whatever their score. None for as many as the model has queries.
        threshold: the score from which a box counts for the confusion matrix and for what is missed.
        overlap: the intersection over union from which it does.
        on_progress: called with the pictures done and their number after each batch.

    Raises:
        UsageError: the model finds no objects or its classes do not fit, nobody said how pictures are prepared for it, there
            are no objects to judge by, an answer that is not finite, or an option out of its range.
        PictureError: a picture that cannot be read, unless such are skipped.
    """
    check_reading(bad_pictures, decoding)
    options = Options(threshold=0.0, top_k=most)
    record, preprocessing, count = _checked_model(model)
    classes = _classes_of(record, count, objects)
    metric = ObjectMetric(objects.classes, threshold=threshold, overlap=overlap)
    started, skipped = time.perf_counter(), list[str]()
    for batch in answers_of(
        model,
        objects,
        preprocessing,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        workers=workers,
        bad_pictures=bad_pictures,
        decoding=decoding,
    ):
        skipped += batch.skipped
        for places, seen, output in batch.answers:
            for place, found in zip(places, decode(output, seen, record, options), strict=True):
                _add(metric, objects, place, _in_classes(found, classes))
        if on_progress is not None:
            on_progress(len(metric) + len(skipped), len(objects))
    name = record.architecture or record.source or type(model).__name__
    return _evaluation(objects, name, metric, skipped, time.perf_counter() - started)


def judge_objects(
    find: Callable[[Picture], Detections],
    objects: ObjectSet,
    *,
    model: str = "detector",
    bad_pictures: BadPictures = "refuse",
    threshold: float = 0.5,
    overlap: float = 0.5,
    on_progress: Callable[[int, int], None] | None = None,
) -> ObjectEvaluation:
    """Hold whatever finds objects in a picture against what is there: a classical detector, or another library's.

    Args:
        find: given a whole picture, the objects in it, their `indices` places in the set's classes.
        objects: annotated pictures.
        model: what the detector is called.
        bad_pictures: see `evaluate_objects`.
        threshold: likewise.
        overlap: likewise.
        on_progress: called with the pictures done and their number after each.

    Raises:
        UsageError: a class that the set does not have, or no objects to judge by.
        PictureError: a picture that cannot be read, unless such are skipped.
    """
    check_reading(bad_pictures, "exact")
    metric = ObjectMetric(objects.classes, threshold=threshold, overlap=overlap)
    started, skipped = time.perf_counter(), []
    for place in range(len(objects)):
        try:
            picture = objects.read(place)
        except PictureError as error:
            if bad_pictures == "refuse":
                raise
            skipped.append(str(error))
        else:
            _add(metric, objects, place, find(picture))
        if on_progress is not None:
            on_progress(place + 1, len(objects))
    return _evaluation(objects, model, metric, skipped, time.perf_counter() - started)


def check_fits_objects(model: nn.Module, objects: ObjectSet) -> None:
    """Refuse, before any work, a detector that cannot be judged by these pictures.

    Raises:
        UsageError: the model finds no objects or its classes do not fit, nobody said how pictures are prepared for it, or
            there are no objects to judge by.
    """
    record, _, count = _checked_model(model)
    _classes_of(record, count, objects)


def _add(metric: ObjectMetric, objects: ObjectSet, place: int, found: Detections) -> None:
    found = replace(found, name=objects.where(place))
    metric.add(found, objects.annotations(place), place=place, image_id=objects.image_id(place))


def _evaluation(objects: ObjectSet, name: str, metric: ObjectMetric, skipped: list[str], seconds: float) -> ObjectEvaluation:
    if not len(metric):
        why = f"; the first: {skipped[0]}" if skipped else "."
        raise UsageError(f"None of the {len(objects)} pictures of {objects.name} could be read{why}")
    return ObjectEvaluation(data=objects.name, model=name, scores=metric.result(), skipped=tuple(skipped), seconds=seconds)


# -- the model and its classes ----------------------------------------------------------------------------------------


def _checked_model(model: nn.Module) -> tuple[Record, Preprocessing, int]:
    """What the model's record says, and how many classes it has."""
    or_else = " Judge its masks: --segments instance." if "image-segmentation" in getattr(model, "tasks", ()) else ""
    without = f"does not say where things are, so it cannot be judged as a detector.{or_else}"
    return asked_record(model, "object-detection", without)


def _classes_of(record: Record, count: int, objects: ObjectSet) -> Int64[np.ndarray, " c"]:
    """For each class of the model, its place among the set's; −1 for one that the set does not have.

    Raises:
        UsageError: no objects, or classes that do not fit.
    """
    classes = objects.classes
    there = np.zeros(len(classes), dtype=bool)
    for place in range(len(objects)):
        there[np.asarray(objects.annotations(place).labels, dtype=np.int64)] = True
    if not there.any():
        raise UsageError(f"{objects.name} holds no objects to judge by, in {len(objects)} pictures.")
    return places_of_classes(record, count, classes, there, objects.name)


def _in_classes(found: Detections, classes: Int64[np.ndarray, " c"]) -> Detections:
    """What was found, by the classes of the set; what the set does not have is left out."""
    own = classes[found.indices]
    return replace(found[own >= 0], indices=own[own >= 0])
