"""`vitral evaluate` on annotated pictures: what a detector's evaluation leaves on the disk and on the screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.cli.class_table import class_rows
from vitral.cli.show import columns
from vitral.data.objects import ObjectSet
from vitral.tasks.detection.metrics import ObjectScores
from vitral.training.evaluate_objects import ObjectEvaluation
from vitral.training.evaluate_segments import SegmentEvaluation
from vitral.training.object_page import object_evaluation_page

__all__ = ["files", "show"]

_NUMBERS = (
    ("AP", "ap"),
    ("AP at IoU .50", "ap50"),
    ("AP at IoU .75", "ap75"),
    ("AP, small objects", "ap_small"),
    ("AP, medium objects", "ap_medium"),
    ("AP, large objects", "ap_large"),
    ("recall, 100 in a picture (AR)", "ar100"),
)


def files(evaluation: ObjectEvaluation, objects: ObjectSet) -> dict[str, bytes]:
    """The page, by the name of its file."""
    return {"evaluation.html": object_evaluation_page(evaluation, objects).encode()}


def show(evaluation: ObjectEvaluation | SegmentEvaluation, console: Console) -> None:
    """The numbers of boxes or of masks, and the classes, as tables narrow enough for a terminal of 80 columns."""
    numbers = columns("", "of 100")
    for name, key in _NUMBERS:
        if key in evaluation.numbers:
            numbers.add_row(name, Text(f"{100 * evaluation.numbers[key]:.1f}", "bold"))
    console.print(numbers)
    console.print()
    console.print(_classes(cast(ObjectScores, evaluation.scores)))


def _classes(scores: ObjectScores) -> Table:
    """Average precision by class."""
    support = scores.support[:, 0]

    def row(place: int) -> Iterator[str]:
        yield f"{support[place]:,}"
        for one in (scores.of_class(place)[key] for key in ("ap", "ap50")):
            yield "–" if one is None else f"{100 * one:.1f}"

    table = columns("class", "objects", "AP", "AP50")
    there = np.flatnonzero(support).tolist()
    return class_rows(table, scores.classes, there, lambda place: scores.of_class(place)["ap"] or 0.0, row)
