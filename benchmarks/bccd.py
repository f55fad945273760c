"""Blood cells (BCCD) by detectors that begin with nothing and have the same time: RT-DETR, RetinaNet and Faster R-CNN.

    python benchmarks/bccd.py bccd-voc.tar --out runs --minutes 19 rtdetr retinanet

All have the residual network of the recipe `bccd`, about a million parameters, its augmentation and its optimiser. How many
epochs fit into the minutes is measured first. A training that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from vitral.checkpoints.load import load_model
from vitral.models.catalogue import CATALOGUE
from vitral.recipes.detection import bccd
from vitral.training.detection import Annotated, Detection, annotated_split, read_annotated, usual_loss
from vitral.training.evaluate_objects import evaluate_objects
from vitral.training.journal import read
from vitral.training.loop import Epoch, Step, fit
from vitral.training.recipe import Recipe
from vitral.training.start import model_for

_PYRAMID = {"pyramid_width": 64, "anchor_sides": (16, 32, 64, 128, 256)}
_RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtdetr": ("rtdetr_r18", {}),
    "retinanet": ("retinanet_r50_fpn_v2", _PYRAMID),
    "fasterrcnn": ("fasterrcnn_r50_fpn_v2", _PYRAMID | {"head_width": 128}),
}
_STEPS = 12  # of which the first two are not counted


def recipe_of(name: str) -> Recipe:
    """The recipe `bccd` for a rival, with the same backbone."""
    recipe = bccd()
    model, own = _RIVALS[name]
    if model == recipe.model:
        return recipe
    backbone = {field: value for field, value in recipe.network.items() if field.startswith("backbone.")}
    return replace(recipe, model=model, network=backbone | own, objective=usual_loss(CATALOGUE[model].build))


class _EnoughError(Exception):
    """The time of a step is known."""


def seconds_of(data: Annotated, recipe: Recipe) -> float:
    """The median time of a step."""
    seconds: list[float] = []

    def watch(event: Step | Epoch) -> None:
        if isinstance(event, Step):
            seconds.append(event.seconds)
            if len(seconds) == _STEPS:
                raise _EnoughError

    with suppress(_EnoughError):
        fit(model_for(recipe, data.classes), Detection(data.train, recipe), recipe, watch=watch)
    return statistics.median(after - before for before, after in itertools.pairwise(seconds[1:]))


def trained(name: str, data: Annotated, out: Path, minutes: float, workers: int) -> None:
    """Train one rival for so many minutes, unless that was done before."""
    if (out / "run" / "last").is_dir():
        return
    recipe = replace(recipe_of(name), workers=workers, evaluate_every=5, save_every=5)
    if (out / "config.json").exists():
        recipe = replace(recipe, epochs=json.loads((out / "config.json").read_text())["epochs"])
    elif minutes:
        steps_each = max(1, len(data.train) // recipe.batch_size)
        recipe = replace(recipe, epochs=max(5, round(minutes * 60 / (steps_each * seconds_of(data, recipe)))))
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps({"epochs": recipe.epochs}))
    model = model_for(recipe, data.classes)
    parameters = sum(one.numel() for one in model.parameters())
    print(f"{name}: {parameters:,} parameters, {recipe.epochs:g} epochs", flush=True)
    subject = Detection(data.train, recipe, data.held_out)
    fit(model, subject, recipe, out=out / "run", watch=lambda e: print(e.line, flush=True) if isinstance(e, Epoch) else None)


def main() -> None:
    """Train, judge by the test split, and draw the curves."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("data")
    asked.add_argument("rivals", nargs="+", choices=list(_RIVALS))
    asked.add_argument("--out", type=Path, default=Path("runs"))
    asked.add_argument("--minutes", type=float, default=19)
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--workers", type=int, default=1)
    told = asked.parse_args()
    torch.set_num_threads(told.threads)
    data, test = read_annotated(told.data), annotated_split(told.data, "test")
    for name in told.rivals:
        trained(name, data, told.out / name, told.minutes, told.workers)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    rows = []
    for name in told.rivals:
        model: Any = load_model(told.out / name / "run" / "best")
        started = time.perf_counter()
        found = evaluate_objects(model, test)
        took = 1000 * (time.perf_counter() - started) / len(test)
        looks = [row for row in read(told.out / name / "run" / "journal.jsonl") if row["event"] == "epoch"]
        axes.plot([row["seconds"] / 60 for row in looks], [100 * row["held_out"]["ap50"] for row in looks], "o-", label=name)
        each = {kind: found.scores.of_class(place)["ap50"] for place, kind in enumerate(test.classes)}
        rows.append({"name": name, "minutes": looks[-1]["seconds"] / 60, "epochs": looks[-1]["epoch"], **found.numbers,
                     "ap50_of": each, "parameters": sum(p.numel() for p in model.parameters()), "ms": took})  # fmt: skip
        print(json.dumps(rows[-1], indent=1), flush=True)
    axes.set(xlabel="minutes of training", ylabel="AP50 on the split val, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(told.out / "bccd.png", dpi=110)
    (told.out / "bccd.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
