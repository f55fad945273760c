"""`vitral evaluate`: how good a classifier is on labelled pictures, on the screen, as JSON, and as a page."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.base.device import resolve_device, resolve_dtype
from vitral.base.disk import exchange, staging
from vitral.checkpoints.load import load_model
from vitral.cli.evaluate_objects import judge_detector
from vitral.cli.folder import check_apart
from vitral.cli.show import json_line, picture_bar, plain
from vitral.data.pictures import PictureSet
from vitral.data.splits import read_pictures
from vitral.recipes.catalogue import task_of
from vitral.training.answers import check_reading
from vitral.training.evaluate import Evaluation
from vitral.training.evaluate import evaluate as evaluate_model
from vitral.training.report import MANY, evaluation_page

__all__ = ["evaluate"]

_EACH = 5  # best and worst classes, of many
_CONFUSIONS = 5
_FILES = ("evaluation.html", "evaluation.json", "predictions.csv")


def evaluate(
    data: str,
    model: str,
    *,
    split: str | None,
    batch_size: int,
    device: str | int | None,
    dtype: str | None,
    workers: int,
    bad_pictures: Any,
    decoding: Any,
    architecture: str | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Ask a model about every picture of a set, and say how good its answers are.

    Args:
        data: labelled pictures, see `data.splits.read_pictures`; of annotated ones see `cli.evaluate_objects`.
        model: a checkpoint; see `checkpoints.load.load_model`.
        split: which part of the data; None where it has only one.
        batch_size: how many pictures the model sees at once.
        device: see `base.device.resolve_device`.
        dtype: see `training.evaluate.evaluate`.
        workers: processes that read.
        bad_pictures: "refuse" or "skip"; see `training.evaluate.evaluate`.
        decoding: "fast" or "exact".
        architecture: the network, where a bare weights file does not say.
        as_json: whether stdout receives one JSON object and nothing else.
        out: a folder for the page, the numbers and every answer; None for none. All three files are written, or none.

    Raises:
        UsageError: data or options that make no sense, before the model is loaded; classes that do not fit.
        PictureError: a picture that cannot be read, unless such are skipped.
    """
    check_reading(bad_pictures, decoding)
    check_apart(out, data)
    there = resolve_device(device)
    resolve_dtype(dtype)
    if task_of(data) == "detection":
        judge_detector(
            data,
            model,
            split=split,
            batch_size=batch_size,
            device=there,
            dtype=dtype,
            workers=workers,
            bad_pictures=bad_pictures,
            decoding=decoding,
            architecture=architecture,
            as_json=as_json,
            out=out,
        )
        return
    pictures = read_pictures(data, split)
    errors = Console(stderr=True, highlight=False)
    with errors.status("loading the model"):
        network = load_model(model, architecture)
    with picture_bar(errors) as progress:
        bar = progress.add_task("pictures", total=len(pictures))
        evaluation = evaluate_model(
            network,
            pictures,
            batch_size=batch_size,
            device=there,
            dtype=dtype,
            workers=workers,
            bad_pictures=bad_pictures,
            decoding=decoding,
            on_progress=lambda done, _: progress.update(bar, completed=done),
        )
    if out is not None:
        _write(out, evaluation, pictures)
    for sentence in evaluation.skipped:
        errors.print(Text(plain(f"Left out: {sentence}"), "red"), soft_wrap=True)
    if as_json:
        sys.stdout.write(json_line(evaluation.to_dict()) + "\n")
        return
    _show(evaluation)
    if out is not None:
        errors.print(Text(plain(f"The page lies in {out / _FILES[0]}; any browser opens it.")), soft_wrap=True)


# -- on disk ----------------------------------------------------------------------------------------------------------


def _write(out: Path, evaluation: Evaluation, pictures: PictureSet) -> None:
    """The page, the numbers and every answer: all of them, or nothing."""
    contents = (
        evaluation_page(evaluation, pictures).encode(),
        (json.dumps(evaluation.to_dict(), indent=1) + "\n").encode(),
        _table_of(evaluation).encode("utf-8", "backslashreplace"),
    )
    with staging(out) as room:
        for name, content in zip(_FILES, contents, strict=True):
            (room / name).write_bytes(content)
        exchange(room, _FILES)


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


# -- on the screen ----------------------------------------------------------------------------------------------------


def _show(evaluation: Evaluation) -> None:
    """The numbers as tables, narrow enough for a terminal of 80 columns."""
    console = Console(highlight=False)
    speed = (len(evaluation) + len(evaluation.skipped)) / max(evaluation.seconds, 1e-9)
    skipped = f", {len(evaluation.skipped)} left out" if evaluation.skipped else ""
    console.print(
        Text.assemble(
            (plain(evaluation.data), "bold"),
            f"  {len(evaluation):,} pictures{skipped}",
            (f"  {plain(evaluation.model)}, {speed:,.0f} pictures a second", "bright_black"),
        ),
        soft_wrap=True,
    )
    console.print(_numbers(evaluation))
    console.print()
    console.print(_classes(evaluation))
    pairs = evaluation.confusions(_CONFUSIONS)
    if pairs:
        table = _columns("commonest mistakes", "times", "of")
        for one in pairs:
            names = Text(" → ").join(_named(evaluation, place, longest=22) for place in (one.true, one.said))
            table.add_row(names, f"{one.count:,}", f"{evaluation.per_class.support[one.true]:,}")
        console.print()
        console.print(table)


def _numbers(evaluation: Evaluation) -> Table:
    ends = evaluation.intervals()
    table = _columns("", "value", "95 % of draws")
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
    table = _columns("class", "pictures", "recall", "precision", "F1")

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


def _columns(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black")
    table.add_column(Text(first), overflow="ellipsis", no_wrap=True)
    for name in others:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table
