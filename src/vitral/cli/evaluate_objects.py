"""`vitral evaluate` on annotated pictures: how good a detector is, on the screen, as JSON, and as a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.base.disk import exchange, staging
from vitral.checkpoints.load import load_model
from vitral.cli.show import json_line, picture_bar, plain
from vitral.data.objects import ObjectSet
from vitral.training.detection import annotated_split
from vitral.training.evaluate_objects import ObjectEvaluation, evaluate_objects
from vitral.training.object_page import object_page
from vitral.training.report import MANY

__all__ = ["judge_detector"]

_EACH = 5  # best and worst classes, of many
_FILES = ("evaluation.html", "evaluation.json")
_NUMBERS = (
    ("AP", "ap"),
    ("AP at IoU .50", "ap50"),
    ("AP at IoU .75", "ap75"),
    ("AP, small objects", "ap_small"),
    ("AP, medium objects", "ap_medium"),
    ("AP, large objects", "ap_large"),
    ("recall of 100 boxes (AR)", "ar100"),
)


def judge_detector(
    data: str,
    model: str,
    *,
    split: str | None,
    batch_size: int,
    device: Any,
    dtype: str | None,
    workers: int,
    bad_pictures: Any,
    decoding: Any,
    architecture: str | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Ask a detector about every picture of a set, and say how good its answers are.

    Args:
        data: annotated pictures; see `data.objects.read_objects`.
        model: a checkpoint; see `checkpoints.load.load_model`.
        split: which part of the data; None where it has only one.
        batch_size: pictures that are read before the model sees them.
        device: where to compute.
        dtype: see `training.evaluate_objects.evaluate_objects`.
        workers: processes that read.
        bad_pictures: "refuse" or "skip"; annotations that something is wrong with are left out too.
        decoding: "fast" or "exact".
        architecture: the network, where a bare weights file does not say.
        as_json: whether stdout receives one JSON object and nothing else.
        out: a folder for the page and the numbers; None for none. Both files are written, or none.

    Raises:
        UsageError: data that make no sense, or classes that do not fit.
        PictureError: a picture that cannot be read, unless such are skipped.
    """
    objects = annotated_split(data, split, bad_pictures=bad_pictures)
    errors = Console(stderr=True, highlight=False)
    with errors.status("loading the model"):
        network = load_model(model, architecture)
    with picture_bar(errors) as progress:
        bar = progress.add_task("pictures", total=len(objects))
        evaluation = evaluate_objects(
            network,
            objects,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            workers=workers,
            bad_pictures=bad_pictures,
            decoding=decoding,
            on_progress=lambda done, _: progress.update(bar, completed=done),
        )
    if out is not None:
        _write(out, evaluation, objects)
    for sentence in evaluation.skipped:
        errors.print(Text(plain(f"Left out: {sentence}"), "red"), soft_wrap=True)
    if as_json:
        sys.stdout.write(json_line(evaluation.to_dict()) + "\n")
        return
    _show(evaluation)
    if out is not None:
        errors.print(Text(plain(f"The page lies in {out / _FILES[0]}; any browser opens it.")), soft_wrap=True)


def _write(out: Path, evaluation: ObjectEvaluation, objects: ObjectSet) -> None:
    """The page and the numbers: both of them, or nothing."""
    contents = (
        object_page(evaluation, objects).encode(),
        (json.dumps(evaluation.to_dict(), indent=1) + "\n").encode(),
    )
    with staging(out) as room:
        for name, content in zip(_FILES, contents, strict=True):
            (room / name).write_bytes(content)
        exchange(room, _FILES)


def _show(evaluation: ObjectEvaluation) -> None:
    """The numbers as tables, narrow enough for a terminal of 80 columns."""
    console = Console(highlight=False)
    speed = (len(evaluation) + len(evaluation.skipped)) / max(evaluation.seconds, 1e-9)
    skipped = f", {len(evaluation.skipped)} left out" if evaluation.skipped else ""
    console.print(
        Text.assemble(
            (plain(evaluation.data), "bold"),
            f"  {len(evaluation):,} pictures{skipped}",
            (f"  {plain(evaluation.model)}, {speed:,.1f} pictures a second", "bright_black"),
        ),
        soft_wrap=True,
    )
    numbers = _columns("", "of 100")
    for name, key in _NUMBERS:
        if key in evaluation.numbers:
            numbers.add_row(name, Text(f"{100 * evaluation.numbers[key]:.1f}", "bold"))
    console.print(numbers)
    console.print()
    console.print(_classes(evaluation))


def _classes(evaluation: ObjectEvaluation) -> Table:
    """Every class in the order of the set, or of many the worst and the best by average precision."""
    scores = evaluation.scores
    support = scores.support[:, 0]
    there = np.flatnonzero(support).tolist()
    table = _columns("class", "objects", "AP", "AP50")
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


def _columns(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black")
    table.add_column(Text(first), overflow="ellipsis", no_wrap=True)
    for name in others:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table
