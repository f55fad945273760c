"""`vitral evaluate` on annotated pictures: what a detector's evaluation leaves on the disk and on the screen."""

from __future__ import annotations

from typing import cast

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.cli.show import columns, plain
from vitral.data.objects import ObjectSet
from vitral.tasks.detection.metrics import ObjectScores
from vitral.training.evaluate_objects import ObjectEvaluation
from vitral.training.evaluate_segments import SegmentEvaluation
from vitral.training.object_page import object_evaluation_page
from vitral.training.report import MANY

__all__ = ["files", "show"]

_EACH = 5  # best and worst classes, of many
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
    """Every class in the order of the set, or of many the worst and the best by average precision."""
    support = scores.support[:, 0]
    there = np.flatnonzero(support).tolist()
    table = columns("class", "objects", "AP", "AP50")
    if len(there) > MANY:
        order = sorted(there, key=lambda place: scores.of_class(place)["ap"] or 0.0)
        chosen: list[int | None] = [*order[:_EACH], None, *order[-_EACH:]]
    else:
        chosen = [*there]
    for place in chosen:
        if place is None:
            table.add_row(f"… {len(there) - 2 * _EACH:,} more …", style="bright_black")
            continue
        name = Text(plain(scores.classes[place]))
        name.truncate(40, overflow="ellipsis")
        own = [scores.of_class(place)[key] for key in ("ap", "ap50")]
        table.add_row(name, f"{support[place]:,}", *("–" if one is None else f"{100 * one:.1f}" for one in own))
    return table
