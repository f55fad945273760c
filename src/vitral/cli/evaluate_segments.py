"""`vitral evaluate` on segmented pictures: what a segmenter's evaluation leaves on the disk and on the screen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.cli import evaluate_objects
from vitral.cli.class_table import class_rows
from vitral.cli.show import columns
from vitral.data.segments import SegmentSet
from vitral.tasks.detection.metrics import ObjectScores
from vitral.tasks.segmentation.metrics import MapScores, PanopticScores
from vitral.training.evaluate_segments import SegmentEvaluation
from vitral.training.segment_page import segment_evaluation_page

__all__ = ["files", "show"]

_NUMBERS = (
    ("mean IoU", "miou"),
    ("pixels that are right", "pixel_accuracy"),
    ("likewise, mean over classes", "mean_accuracy"),
    ("mean IoU near edges", "boundary_iou"),
)


def files(evaluation: SegmentEvaluation, pictures: SegmentSet) -> dict[str, bytes]:
    """The page, by the name of its file."""
    return {"evaluation.html": segment_evaluation_page(evaluation, pictures).encode()}


def show(evaluation: SegmentEvaluation, console: Console) -> None:
    """The numbers and the classes as tables, narrow enough for a terminal of 80 columns."""
    if isinstance(evaluation.scores, ObjectScores):
        evaluate_objects.show(evaluation, console)
        return
    semantic = isinstance(evaluation.scores, MapScores)
    console.print(_means(evaluation.numbers) if semantic else _qualities(evaluation.numbers))
    console.print()
    console.print(_classes(evaluation.scores))


def _means(found: dict[str, float]) -> Table:
    table = columns("", "of 100")
    for name, key in _NUMBERS:
        if key in found:
            table.add_row(name, Text(f"{100 * found[key]:.1f}", "bold"))
    return table


def _qualities(found: dict[str, float]) -> Table:
    table = columns("", "PQ", "SQ", "RQ")
    for name, kind in (("all classes", ""), ("things", "_things"), ("stuff", "_stuff")):
        if f"pq{kind}" in found:
            first, *others = (f"{100 * found[f'{key}{kind}']:.1f}" for key in ("pq", "sq", "rq"))
            table.add_row(name, Text(first, "bold"), *others)
    return table


def _classes(scores: MapScores | PanopticScores) -> Table:
    """Every class in the order of the set, or of many the worst and the best."""
    if isinstance(scores, MapScores):
        table, value = columns("class", "of all pixels", "found", "IoU"), scores.iou
    else:
        table = columns("class", "found", "missed", "in vain", "PQ")
        each = [scores.of_class(place) for place in range(len(scores.classes))]
        value = np.array([-1.0 if one is None else one.pq for one in each])
    there = np.flatnonzero(value >= 0).tolist()
    return class_rows(
        table,
        scores.classes,
        there,
        lambda place: float(value[place]),
        lambda place: (*_counts(scores, place), f"{100 * value[place]:.1f}"),
    )


def _counts(scores: MapScores | PanopticScores, place: int) -> Iterator[str]:
    """What is told of a class beside its value."""
    if isinstance(scores, MapScores):
        share, found = scores.support[place] / scores.support.sum(), float(scores.accuracy[place])
        yield from (f"{share:.1%}", "–" if found < 0 else f"{found:.1%}")
    else:
        yield from (f"{int(counts[place]):,}" for counts in (scores.found, scores.missed, scores.wrong))
