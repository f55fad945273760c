"""`vitral evaluate` on labelled pictures: what a classifier's evaluation leaves on the disk and on the screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.cli.class_table import class_name, class_rows
from vitral.cli.show import columns
from vitral.data.pictures import PictureSet
from vitral.training.evaluate import Evaluation
from vitral.training.report import evaluation_page

__all__ = ["files", "show"]

_CONFUSIONS = 5


def files(evaluation: Evaluation, pictures: PictureSet) -> dict[str, bytes]:
    """The page and every answer, by the names of their files."""
    return {
        "evaluation.html": evaluation_page(evaluation, pictures).encode(),
        "predictions.csv": _table_of(evaluation).encode("utf-8", "backslashreplace"),
    }


def _table_of(evaluation: Evaluation) -> str:
    """A line for each picture: its name, its class, the answer, the probabilities of both, and the rank of the class."""
    memory = io.StringIO()
    lines = csv.writer(memory, lineterminator="\n")
    lines.writerow(("name", "label", "answer", "score", "score_of_label", "rank_of_label"))
    rows = np.arange(len(evaluation))
    scores = evaluation.scores[rows, evaluation.answers], evaluation.scores[rows, evaluation.labels]
    for name, label, answer, score, own, rank in zip(
        evaluation.names,
        evaluation.labels.tolist(),
        evaluation.answers.tolist(),
        *(part.tolist() for part in scores),
        (evaluation.ranks + 1).tolist(),
        strict=True,
    ):
        classes = evaluation.classes
        lines.writerow((name, classes[label], classes[answer], f"{score:.6g}", f"{own:.6g}", rank))
    return memory.getvalue()


def show(evaluation: Evaluation, console: Console) -> None:
    """The numbers, the classes and the commonest mistakes as tables, narrow enough for a terminal of 80 columns."""
    console.print(_numbers(evaluation))
    console.print()
    console.print(_classes(evaluation))
    pairs = evaluation.confusions(_CONFUSIONS)
    if pairs:
        table = columns("commonest mistakes", "times", "of")
        for one in pairs:
            names = Text(" → ").join(class_name(evaluation.classes[place], longest=22) for place in (one.true, one.said))
            table.add_row(names, f"{one.count:,}", f"{evaluation.per_class.support[one.true]:,}")
        console.print()
        console.print(table)


def _numbers(evaluation: Evaluation) -> Table:
    ends = evaluation.intervals()
    table = columns("", "value", "95 % of draws")
    for name, key, value, form in (
        ("top-1", "top1", evaluation.top1, ".1%"),
        ("top-5", "top5", evaluation.top5, ".1%"),
        ("cross-entropy (NLL)", "nll", evaluation.nll, ".3f"),
        ("calibration error (ECE)", "", evaluation.ece, ".1%"),
    ):
        if key == "top5" and len(evaluation.classes) <= 5:  # always 100 %
            continue
        within = f"{ends[key][0]:{form}} to {ends[key][1]:{form}}" if key else ""
        table.add_row(name, Text(f"{value:{form}}", "bold"), within)
    return table


def _classes(evaluation: Evaluation) -> Table:
    """Every class in the order of the model, or of many the worst and the best by recall."""
    found = evaluation.per_class
    there = np.flatnonzero(found.support).tolist()
    table = columns("class", "pictures", "recall", "precision", "F1")

    def row(place: int) -> Iterator[str]:
        yield f"{found.support[place]:,}"
        yield from (f"{share:.1%}" for share in (found.recall[place], found.precision[place], found.f1[place]))

    return class_rows(table, evaluation.classes, there, lambda place: float(found.recall[place]), row)
