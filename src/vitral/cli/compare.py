"""`vitral compare`: networks held against each other, on the screen, as JSON, and as a page with pictures."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.base.device import resolve_device
from vitral.base.disk import exchange, staging, write_whole
from vitral.base.numbers import real_number, whole_number
from vitral.cli.folder import check_apart
from vitral.cli.show import json_line, plain
from vitral.cli.train import Watched
from vitral.data.augment.chain import Augmentation
from vitral.data.splits import Splits, read_splits
from vitral.errors import UsageError
from vitral.models.catalogue import CATALOGUE
from vitral.recipes.catalogue import opened
from vitral.recipes.usual import scratch
from vitral.training.compare import (
    Comparison,
    Contender,
    Failed,
    Learned,
    contenders_of,
    learn,
    machine,
    measure,
)
from vitral.training.compare_page import COLUMNS, comparison_page, growth_figure, pareto_figure, shown
from vitral.training.recipe import Recipe, options_of

__all__ = ["common_recipe", "compare"]

_USUAL = (224, 224)
_SMALL = 64  # pixels: pictures that are no larger are moved by a few pixels, not cut
_HELD_OUT = 0.1
_NAME = 24  # signs of a name in a table
_EPOCHS = 10.0
_FILES = ("compare.html", "compare.json", "pareto.png", "growth.png")


def compare(
    names: Sequence[str],
    *,
    sizes: Sequence[int],
    batches: Sequence[int],
    rounds: int,
    data: str | None,
    held_out: str | None,
    epochs: float | None,
    minutes: float | None,
    out: Path | None,
    as_json: bool,
    device: str | int | None,
    threads: int | None,
) -> bool:
    """Say what networks cost, how fast they answer, and what they learn within one budget.

    Args:
        names: networks of the catalogue, also with fields of their own ("vit_ti16:patch_size=4"), or checkpoints.
        sizes: of square pictures in pixels; none: the networks' own, where all have the same, else 224.
        batches: pictures at once; none: 1 and 8.
        rounds: turns that each network gets when they are timed.
        data: pictures to train on, at the first size; None for no training.
        held_out: what to judge by, see `recipes.catalogue.opened`; by default the split that the data bring, else a tenth.
        epochs: how often each network sees the pictures; 10 where neither this nor minutes came.
        minutes: how long each may train instead.
        out: a folder for the page, the numbers and the pictures; None for none. Of a training that is interrupted, the
            numbers up to then are there.
        as_json: whether stdout receives one JSON object and nothing else.
        device: see `base.device.resolve_device`.
        threads: processor cores to compute on; None for all.

    Returns:
        Whether every network did all that it was asked.

    Raises:
        UsageError: names, data or options that make no sense, before any work is done.
    """
    contenders = contenders_of(names)
    if threads is not None:
        torch.set_num_threads(whole_number("threads", threads))
    whole_number("rounds", rounds)
    chosen = _sizes(contenders, sizes)
    counts = tuple(dict.fromkeys(whole_number("batch", batch) for batch in batches)) or (1, 8)
    there = resolve_device(device)
    recipe, splits = _lesson(data, held_out, epochs, minutes, chosen[0])
    if data is not None:
        check_apart(out, data)
    elif out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder.")

    errors = Console(stderr=True, highlight=False)
    with errors.status("") as status:
        models = measure(
            contenders,
            chosen,
            counts,
            rounds=rounds,
            device=there,
            watch=lambda told: status.update(Text(plain(told))),
        )
    comparison = Comparison(models=models, sizes=chosen, batches=counts, machine=machine(there))
    if recipe is not None and splits is not None:
        comparison = replace(comparison, training=_told(recipe, splits, minutes))
        for one in contenders:
            if out is not None:  # hours of training may follow, which somebody may interrupt
                out.mkdir(parents=True, exist_ok=True)
                write_whole(out / "compare.json", _numbers(comparison))
            comparison = _taught(comparison, one, splits, recipe, minutes, there, errors)
    if out is not None:
        _write(out, comparison)
    if as_json:
        sys.stdout.write(json_line(comparison.to_dict()) + "\n")
    else:
        _show(comparison)
    for model in comparison.models:
        for failed in model.failed:
            errors.print(Text(plain(f"{model.name}: {failed}"), "red"), soft_wrap=True)
    if out is not None:
        errors.print(Text(plain(f"The page lies in {out / _FILES[0]}; any browser opens it.")), soft_wrap=True)
    return not any(model.failed for model in comparison.models)


def common_recipe(size: tuple[int, int], epochs: float | None = None) -> Recipe:
    """What all networks are trained by: one recipe, so that they differ in nothing but themselves.

    The usual recipe for training from nothing, with what suits short trainings of any kind of network: AdamW at 1e-3 with
    a warm-up of a tenth, mild augmentation, no averaged weights, and each network's own dropout and stochastic depth.

    Args:
        size: (height, width) of the pictures in pixels; small ones are moved by an eighth of their side instead of cut.
        epochs: how often each network sees the pictures; 10 where nobody said.
    """
    epochs = _EPOCHS if epochs is None else epochs
    small = max(size) <= _SMALL
    moved = Augmentation(crop="padded", padding=max(1, min(size) // 8))
    return replace(
        scratch(),
        name="compare",
        epochs=epochs,
        warmup_epochs=epochs / 10,
        learning_rate=1e-3,
        drop_path=None,
        ema=None,
        augment=moved if small else Augmentation(crop_scale=(0.25, 1.0)),
    )


def _sizes(contenders: Sequence[Contender], asked: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if asked:
        return tuple(dict.fromkeys((side, side) for side in (whole_number("size", one) for one in asked)))
    own = {CATALOGUE[one.model].config.image_size for one in contenders if one.fresh}
    return (own.pop(),) if len(own) == 1 else (_USUAL,)


def _lesson(
    data: str | None, held_out: str | None, epochs: float | None, minutes: float | None, size: tuple[int, int]
) -> tuple[Recipe | None, Splits | None]:
    """The recipe and the pictures of a training, if there is to be one.

    Raises:
        UsageError: a budget without pictures, or two of them.
    """
    if data is None:
        for option, given in (("--epochs", epochs), ("--minutes", minutes), ("--held-out", held_out)):
            if given is not None:
                raise UsageError(f"{option} is for training; say on which pictures: --data FOLDER.")
        return None, None
    if epochs is not None and minutes is not None:
        raise UsageError("--epochs makes the pictures seen equal, --minutes the time; give one of them.")
    if minutes is not None and real_number("--minutes", minutes) <= 0:
        raise UsageError(f"--minutes must be more than 0; {minutes:g} came.")
    splits = opened(data, held_out)
    if splits.held_out is None:
        splits = read_splits(data, _HELD_OUT)
    if not splits.held_out or len(set(splits.train.labels.tolist())) < 2:
        raise UsageError(f"{data} needs pictures of two classes or more, and enough of them to keep some for judging.")
    return common_recipe(size, epochs), splits


def _told(recipe: Recipe, splits: Splits, minutes: float | None) -> dict[str, Any]:
    """What is the same for all networks in training."""
    judged = splits.held_out
    if judged is None:  # `_lesson` has seen to it
        raise UsageError("No pictures are held out to judge by.")
    equal = f"{recipe.epochs:g} epochs each, in the same order" if minutes is None else f"{60 * minutes:g} seconds each"
    return {
        "told": f"All learn {len(splits.classes)} classes from the {len(splits.train):,} pictures of {splits.train.name} by "
        f"one recipe, {equal}, and are judged by {len(judged):,} others. One recipe is fair, but no network's best: tuned "
        "for each, and trained for longer, they may stand in another order.",
        "data": splits.train.name,
        "pictures": len(splits.train),
        "judged": len(judged),
        "budget": "steps" if minutes is None else "seconds",
        "seconds": None if minutes is None else 60 * minutes,
        "recipe": {name: value for name, value in options_of(recipe).items() if name not in ("model", "image_size")},
    }


def _taught(
    comparison: Comparison,
    one: Contender,
    splits: Splits,
    recipe: Recipe,
    minutes: float | None,
    device: torch.device,
    errors: Console,
) -> Comparison:
    """The comparison with what one more network learnt."""
    size = comparison.sizes[0]
    errors.print(Text(plain(f"{one.name} learns"), "bold"), soft_wrap=True)
    learned: Learned | None = None
    failed: tuple[Failed, ...] = ()
    try:
        with Watched(errors) as watched:
            learned = learn(
                one,
                splits,
                recipe,
                size,
                budget="steps" if minutes is None else "seconds",
                seconds=None if minutes is None else 60 * minutes,
                device=device,
                watch=watched,
            )
    except Exception as error:  # this network's own; the others go on
        failed = (Failed.of("training", size, None, error),)
    models = tuple(
        replace(model, learned=learned, failed=(*model.failed, *failed)) if model.name == one.name else model
        for model in comparison.models
    )
    return replace(comparison, models=models)


# -- on disk ----------------------------------------------------------------------------------------------------------


def _numbers(comparison: Comparison) -> bytes:
    return (json.dumps(comparison.to_dict(), indent=1) + "\n").encode()


def _write(out: Path, comparison: Comparison) -> None:
    """The page, the numbers and the pictures: all of them, or nothing."""
    contents: dict[str, bytes] = {
        "compare.html": comparison_page(comparison).encode(),
        "compare.json": _numbers(comparison),
    }
    for name, drawn in (("pareto.png", pareto_figure), ("growth.png", growth_figure)):
        memory = io.BytesIO()
        try:
            drawn(comparison).savefig(memory, format="png")
        except UsageError:  # nothing to draw, which the page says
            continue
        contents[name] = memory.getvalue()
    with staging(out) as room:
        for name, content in contents.items():
            (room / name).write_bytes(content)
        exchange(room, tuple(contents), away=tuple(name for name in _FILES if name not in contents))


# -- on the screen ----------------------------------------------------------------------------------------------------


def _show(comparison: Comparison) -> None:
    """The numbers as tables: one for each size, and one of what was learnt."""
    console = Console(highlight=False)
    for size in comparison.sizes:
        console.print(Text(f"{size[0]} × {size[1]} pixels", "bold"))
        console.print(_costs(comparison, size))
        console.print()
    if comparison.training is not None:
        console.print(Text(plain(comparison.training["told"])), soft_wrap=True)
        console.print(_lessons(comparison))
        console.print()
    trained = comparison.training is not None
    front = comparison.front("multiply_adds", "top1") if trained else comparison.front("pictures_per_second", "parameters")
    if front:
        what = "top-1 and GMACs" if trained else "parameters and pictures per second"
        console.print(Text(plain(f"Not beaten in {what}: {', '.join(front)}")), soft_wrap=True)
    console.print(
        Text(
            "GMACs: 10⁹ multiply-adds for a picture, as papers count FLOPs. MB: at most, weights included.", "bright_black"
        ),
        soft_wrap=True,
    )


def _costs(comparison: Comparison, size: tuple[int, int]) -> Table:
    batches = comparison.batches
    most = max(batches)
    speeds = [f"{COLUMNS['pictures_per_second']} ×{batch}" for batch in batches]
    counts = [COLUMNS[one] for one in ("parameters", "multiply_adds", "activations")]
    table = _columns("", *counts, *speeds, f"{COLUMNS['memory']} ×{most}")
    for model in comparison.models:
        cost, speed = model.cost(size), model.speed(size, most)
        failed = any(one.size == size and one.what != "training" for one in model.failed)
        lacking = Text("failed", "red") if failed else Text("–")
        cells: list[Text] = [lacking] * 3
        if cost is not None:
            marked = "" if cost.agrees else "?"
            cells = [
                Text(shown(cost.parameters / 1e6)),
                Text(shown(cost.multiply_adds / 1e9) + marked),
                Text(shown(cost.activations / 1e6)),
            ]
        for batch in batches:
            one = model.speed(size, batch)
            cells.append(lacking if one is None else Text(shown(one.pictures_per_second), "bold"))
        cells.append(lacking if speed is None or speed.memory is None else Text(shown(speed.memory / 1e6)))
        table.add_row(_named(model.name), *cells)
    return table


def _lessons(comparison: Comparison) -> Table:
    table = _columns("", "top-1", "95 % of draws", "steps", "epochs", "min:s")
    for model in comparison.models:
        one = model.learned
        if one is None:
            table.add_row(_named(model.name), Text("failed", "red"))
            continue
        within = f"{one.low:.1%} to {one.high:.1%}"
        took = f"{one.seconds // 60:.0f}:{one.seconds % 60:02.0f}"
        table.add_row(
            _named(model.name), Text(f"{one.top1:.1%}", "bold"), within, f"{one.steps:,}", f"{one.epochs:.1f}", took
        )
    return table


def _named(name: str) -> Text:
    text = Text(plain(name))
    text.truncate(_NAME, overflow="ellipsis")
    return text


def _columns(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bright_black")
    table.add_column(Text(first), no_wrap=True)
    for name in others:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table
