"""Networks that learn the same pictures for the same time, and what each has come to then.

    python benchmarks/budget.py bccd bccd-voc.tar --out runs --minutes 19 rtdetr retinanet
    python benchmarks/budget.py camvid camvid-train.tar --out runs --minutes 20 --backbone deit_tiny_patch16_224

How many epochs fit into the minutes is measured first. A training that is there already is not repeated; weights are those
of the last step, so that the pictures judged by had no say in them, unless there is a split for that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from vitral.checkpoints.load import load_model
from vitral.models.catalogue import CATALOGUE
from vitral.recipes.catalogue import Opened, begun, opened
from vitral.recipes.detection import bccd
from vitral.recipes.segmentation import camvid
from vitral.training.detection import annotated_split, usual_object_loss
from vitral.training.evaluate_objects import evaluate_objects
from vitral.training.evaluate_segments import evaluate_segments
from vitral.training.journal import read
from vitral.training.loop import Epoch, Step, fit
from vitral.training.recipe import Recipe

_STEPS = 12  # of which the first two are not counted


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is learned, by whom.

    Attributes:
        recipe: what all have in common.
        rivals: by name, what each has of its own.
        judge: from a model and the source to what is told of it.
        held_out: what the training is judged by, where the source has no split for it.
        weights: "best" where there is a third split to judge by, else "last".
        measure: what the curves show, by its name in the journal.
    """

    recipe: Recipe
    rivals: dict[str, dict[str, Any]]
    judge: Callable[[Any, str, Opened], dict[str, Any]]
    held_out: float | None
    weights: str
    measure: str


def _cells(model: Any, source: str, data: Opened) -> dict[str, Any]:
    test = annotated_split(source, "test")
    found = evaluate_objects(model, test)
    each = {name: found.scores.of_class(place)["ap50"] for place, name in enumerate(test.classes)}
    return {"pictures": len(test), **found.numbers, "ap50_of": each}


def _roads(model: Any, source: str, data: Any) -> dict[str, Any]:
    found: Any = evaluate_segments(model, data.held_out)
    each = dict(zip(data.classes, map(float, found.scores.iou), strict=True))
    return {"pictures": len(data.held_out), **found.numbers, "iou_of": each}


_PYRAMID = {"pyramid_width": 64, "anchor_sides": (16, 32, 64, 128, 256)}
_NARROW = {name: value for name, value in bccd().network.items() if name.startswith("backbone.")}
_DEIT_TINY = {"backbone.width": 192, "backbone.depth": 12, "backbone.heads": 3, "backbone.mlp_width": 768}
_NOTHING = {"backbone": None, "backbone_rate": 1.0}


def _detector(name: str, **network: Any) -> dict[str, Any]:
    return {"model": name, "network": _NARROW | _PYRAMID | network, "objective": usual_object_loss(CATALOGUE[name].build)}


_CONTESTS = {
    "bccd": Contest(
        recipe=bccd(),
        rivals={
            "rtdetr": {},
            "retinanet": _detector("retinanet_r50_fpn_v2"),
            "fasterrcnn": _detector("fasterrcnn_r50_fpn_v2", head_width=128),
        },
        judge=_cells,
        held_out=None,
        weights="best",
        measure="ap50",
    ),
    "camvid": Contest(
        recipe=camvid(),
        rivals={
            "segmenter": {},
            "setr": {"model": "setr_pup_b16", "network": _DEIT_TINY | {"levels": (2, 5, 8, 11), "decoder_width": 64}},
            "segformer": {"model": "segformer_b0", **_NOTHING},
            "unet": {"model": "unet", "network": {"stage_channels": (16, 32, 64, 128, 256)}, **_NOTHING},
        },
        judge=_roads,
        held_out=0.2,
        weights="last",
        measure="miou",
    ),
}


class _EnoughError(Exception):
    """The time of a step is known."""


def seconds_of(data: Opened, recipe: Recipe) -> float:
    """The median time of a step."""
    seconds: list[float] = []

    def watch(event: Step | Epoch) -> None:
        if isinstance(event, Step):
            seconds.append(event.seconds)
            if len(seconds) == _STEPS:
                raise _EnoughError

    with suppress(_EnoughError):
        fit(*begun(data, recipe), recipe, watch=watch)
    return statistics.median(after - before for before, after in itertools.pairwise(seconds[1:]))


def trained(name: str, recipe: Recipe, data: Opened, out: Path, minutes: float) -> None:
    """Train one rival for so many minutes, unless that was done before."""
    if (out / "run" / "last").is_dir():
        return
    if (out / "epochs.json").exists():
        epochs = json.loads((out / "epochs.json").read_text())
    else:
        steps_each = len(data.train) / recipe.batch_size
        epochs = max(5, round(minutes * 60 / (steps_each * seconds_of(data, recipe))))
        out.mkdir(parents=True, exist_ok=True)
        (out / "epochs.json").write_text(json.dumps(epochs))
    recipe = replace(recipe, epochs=epochs)
    model, subject = begun(data, recipe)
    print(f"{name}: {sum(one.numel() for one in model.parameters()):,} parameters, {epochs} epochs", flush=True)
    fit(model, subject, recipe, out=out / "run", watch=lambda e: print(e.line, flush=True) if isinstance(e, Epoch) else None)


def main() -> None:
    """Train, judge, and draw the curves."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("contest", choices=list(_CONTESTS))
    asked.add_argument("data")
    asked.add_argument("rivals", nargs="*")
    asked.add_argument("--out", type=Path, default=Path("runs"))
    asked.add_argument("--minutes", type=float, default=19)
    asked.add_argument("--backbone", help="what the backbone of the recipe begins with, instead of the published weights")
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--workers", type=int, default=1)
    asked.add_argument("--train-only", action="store_true")
    told = asked.parse_intermixed_args()
    torch.set_num_threads(told.threads)
    contest = _CONTESTS[told.contest]
    base = replace(contest.recipe, workers=told.workers, evaluate_every=5, save_every=5)
    if told.backbone:
        base = replace(base, backbone=told.backbone)
    data = opened(told.data, contest.held_out, task=base.task, segments=base.segments)
    names = told.rivals or list(contest.rivals)
    for name in names:
        trained(name, replace(base, **contest.rivals[name]), data, told.out / name, told.minutes)
    if told.train_only:
        return
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    rows = []
    for name in names:
        model: Any = load_model(told.out / name / "run" / contest.weights)
        started = time.perf_counter()
        found = contest.judge(model, told.data, data)
        took = 1000 * (time.perf_counter() - started) / found["pictures"]
        looks = [row for row in read(told.out / name / "run" / "journal.jsonl") if row["event"] == "epoch"]
        values = [100 * row["held_out"][contest.measure] for row in looks]
        axes.plot([row["seconds"] / 60 for row in looks], values, "o-", label=name)
        parameters = sum(one.numel() for one in model.parameters())
        spent = {"minutes": looks[-1]["seconds"] / 60, "epochs": looks[-1]["epoch"], "parameters": parameters, "ms": took}
        rows.append({"name": name, **spent, **found})
        print(json.dumps(rows[-1], indent=1), flush=True)
    axes.set(xlabel="minutes of training", ylabel=f"{contest.measure} on pictures held out, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(told.out / f"{told.contest}.png", dpi=110)
    (told.out / f"{told.contest}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
