"""`vitral evaluate` on labelled pictures: what a classifier's evaluation leaves on the disk and on the screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.cli.show import columns, plain
from vitral.data.pictures import PictureSet
from vitral.training.evaluate import Evaluation
from vitral.training.report import MANY, evaluation_page

__all__ = ["files", "show"]

_EACH = 5  # best and worst classes, of many
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
            names = Text(" → ").join(_named(evaluation, place, longest=22) for place in (one.true, one.said))
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
    there = np.flatnonzero(found.support)
    table = columns("class", "pictures", "recall", "precision", "F1")

    def add(places: Iterable[int]) -> None:
        for place in places:
            shares = (found.recall[place], found.precision[place], found.f1[place])
            table.add_row(_named(evaluation, place), f"{found.support[place]:,}", *(f"{share:.1%}" for share in shares))

    if len(there) <= MANY:
        add(there.tolist())
        return table
    order = there[np.argsort(found.recall[there], kind="stable")].tolist()
    add(order[:_EACH])
    table.add_row(f"… {len(order) - 2 * _EACH:,} more …", style="bright_black")
    add(order[-_EACH:])
    return table


def _named(evaluation: Evaluation, place: int, *, longest: int = 40) -> Text:
    """A class, whose name may be long, or hold what rich would take for markup."""
    name = Text(plain(evaluation.classes[place]))
    name.truncate(longest, overflow="ellipsis")
    return name
