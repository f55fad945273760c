"""`vitral probe`: how good the features of a frozen model are for pictures it was not trained on."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float32
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.base.device import resolve_device
from vitral.base.numbers import whole_number
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.cli.folder import check_apart
from vitral.cli.show import json_line, picture_bar, plain
from vitral.data.pictures import PictureSet
from vitral.data.splits import read_splits
from vitral.errors import UnknownNameError, UsageError
from vitral.training.features import Feature, features_of
from vitral.training.probe import KnnResult, ProbeResult, head_config, knn, linear_probe, with_linear_head

__all__ = ["probe"]

_HELD_OUT = 0.2  # of every class, where the data have no splits


def probe(
    data: str,
    model: str,
    *,
    feature: Any,
    neighbours: bool,
    k: int,
    cache: Path | None,
    batch_size: int,
    device: str | int | None,
    workers: int | None,
    architecture: str | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Take a frozen model's features of labelled pictures, fit a linear classifier to them, and say how good it is.

    It learns from the split train and is judged by test, else by val; where there are no splits, by a fifth of each class.

    Args:
        data: labelled pictures; see `data.splits.read_splits`.
        model: a checkpoint; see `checkpoints.load.load_model`.
        feature: which vector of a picture; see `training.features.Feature`.
        neighbours: whether the nearest neighbours are asked as well.
        k: how many of them.
        cache: a folder that keeps the features; None keeps nothing.
        batch_size: how many pictures the model sees at once.
        device: see `base.device.resolve_device`.
        workers: threads that read.
        architecture: the network, where a bare weights file does not say.
        as_json: whether stdout receives one JSON object and nothing else.
        out: a folder for the model with the probe as its classifier; None for none.

    Raises:
        UsageError: data or options that make no sense, before any picture is read.
        PictureError: a picture that cannot be read.
    """
    if feature not in get_args(Feature):
        raise UnknownNameError("feature", feature, get_args(Feature))
    whole_number("k", k)
    check_apart(out, data)
    check_apart(cache, data, "--cache")
    there = resolve_device(device)
    train, test = _sets(data)
    if neighbours and k > len(train):
        raise UsageError(
            f"{k} neighbours are to vote, but there are only {len(train)} pictures to learn from. Give -k {len(train)}, or "
            "fewer."
        )
    errors = Console(stderr=True, highlight=False)
    with errors.status("loading the model"):
        network: Any = load_model(model, architecture)
    if out is not None:
        head_config(network.config, feature, len(train.classes))  # says now what it would say after an hour
    began = time.perf_counter()
    reading: dict[str, Any] = {"feature": feature, "cache": cache, "batch_size": batch_size, "device": there}
    with picture_bar(errors) as progress:
        bar = progress.add_task("pictures", total=len(train) + len(test))

        def features(pictures: PictureSet, before: int) -> Float32[np.ndarray, "n d"]:
            def told(done: int, _: int) -> None:
                progress.update(bar, completed=before + done)

            return features_of(network, pictures, workers=workers, on_progress=told, **reading)

        rows = [features(train, 0), features(test, len(train))]
    with errors.status("fitting the probe") as status:
        told = _judged(train, test, rows, lambda words: status.update(words), k if neighbours else None)
    answers = _Answers(
        data=data,
        model=network.record.architecture or type(network).__name__,
        feature=feature,
        width=rows[0].shape[1],
        train=len(train),
        test=len(test),
        linear=told[0],
        knn=told[1],
        seconds=time.perf_counter() - began,
    )
    if out is not None:
        save_model(with_linear_head(network, answers.linear, feature=feature, labels=train.classes), out)
    if as_json:
        sys.stdout.write(json_line(answers.to_dict()) + "\n")
    else:
        answers.show()
    if out is not None and not as_json:
        errors.print(Text(plain(f"The model with the probe as its classifier lies in {out}.")), soft_wrap=True)


def _judged(
    train: PictureSet, test: PictureSet, rows: list[Float32[np.ndarray, "_ d"]], say: Any, k: int | None
) -> tuple[ProbeResult, KnnResult | None]:
    """What the probe and, where k is given, the neighbours come to."""
    classes = len(train.classes)
    fitted = linear_probe(
        rows[0],
        train.labels,
        rows[1],
        test.labels,
        classes=classes,
        on_strength=lambda strength, accuracy: say(f"fitting the probe: strength {strength:.1g}, held out {accuracy:.1%}"),
    )
    if k is None:
        return fitted, None
    say("asking the neighbours")
    return fitted, knn(rows[0], train.labels, rows[1], test.labels, k=k, classes=classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    """Everything there is to say."""

    data: str
    model: str
    feature: str
    width: int
    train: int
    test: int
    linear: ProbeResult
    knn: KnnResult | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        linear = {name: getattr(self.linear, name) for name in ("accuracy", "top5", "strength", "curve")}
        told = {name: getattr(self, name) for name in ("data", "model", "feature", "width", "train", "test")}
        told |= {"linear": linear, "seconds": round(self.seconds, 3)}
        if self.knn is not None:
            told["knn"] = {name: getattr(self.knn, name) for name in ("accuracy", "top5", "k", "temperature")}
        return told

    def show(self) -> None:
        """A heading and a table, narrow enough for a terminal of 80 columns."""
        console = Console(highlight=False)
        about = f"  {self.train:,} pictures to learn from, {self.test:,} to judge by"
        console.print(Text.assemble((plain(self.data), "bold"), about), soft_wrap=True)
        facts = f"{plain(self.model)}, {self.feature} of {self.width} numbers, {self.seconds:.1f} s"
        console.print(Text(facts, "bright_black"), soft_wrap=True)
        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bright_black")
        table.add_column("")
        for name in ("top-1", "top-5", "strength"):
            table.add_column(name, justify="right", no_wrap=True)
        strength = f"{self.linear.strength:.2g}"
        table.add_row("linear probe", Text(f"{self.linear.accuracy:.1%}", "bold"), f"{self.linear.top5:.1%}", strength)
        if self.knn is not None:
            name = f"{self.knn.k} nearest neighbours"
            table.add_row(name, Text(f"{self.knn.accuracy:.1%}", "bold"), f"{self.knn.top5:.1%}", "")
        console.print(table)


def _sets(data: str) -> tuple[PictureSet, PictureSet]:
    """Pictures to learn from, and to judge by."""
    splits = read_splits(data)
    judge = splits.test or splits.held_out
    if judge is None:
        splits = read_splits(data, _HELD_OUT)
        judge = splits.held_out
    if not judge:
        raise UsageError(f"{data} has too few pictures to keep any for judging: one of a class at most. Add some.")
    return splits.train, judge
