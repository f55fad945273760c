"""`vitral train`: progress to watch, a line for every epoch, and a page at the end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitral.base.device import resolve_device
from vitral.base.disk import write_whole
from vitral.base.processors import default_workers
from vitral.checkpoints.load import load_model
from vitral.cli.folder import check_apart
from vitral.errors import UnknownNameError, UsageError
from vitral.recipes.catalogue import RECIPES, Opened, begun, opened, out_folder, recipe_for, subject_of, task_of
from vitral.training.board import Board
from vitral.training.evaluate import Evaluation
from vitral.training.journal import read
from vitral.training.loop import Epoch, Step, Trained, fit
from vitral.training.object_page import object_evaluation_page
from vitral.training.plan import Plan
from vitral.training.processes import Processes
from vitral.training.recipe import Recipe, TaskName, options_of
from vitral.training.report import training_page
from vitral.training.segment_page import segment_evaluation_page
from vitral.training.subject import Judgement

__all__ = ["Watched", "line_of", "list_recipes", "options_from", "train"]

_PATIENCE = 30  # seconds
_PAGES: dict[str, Callable[[Any, Any], str]] = {"detection": object_evaluation_page, "segmentation": segment_evaluation_page}
"""By task, the page about what came of a training. That of a classifier is part of the page about the training."""


@contextmanager
def _in_one_voice() -> Iterator[None]:
    """What goes wrong in several processes at once, one of each machine tells.

    A launcher ends all processes when one has ended; so the others wait, and speak only if the first one lives on.
    """
    try:
        yield
    except Exception:
        if not Processes.first_here():
            time.sleep(_PATIENCE)
        raise


@_in_one_voice()
def train(
    data: str,
    recipe: str | None,
    model: str | None,
    out: str | Path,
    *,
    held_out: str | None,
    quick: bool,
    device: str | int | None,
    threads: int | None,
    tensorboard: bool,
    extra: Sequence[str],
    task: str | None = None,
    source: str | None = None,
    **meaning: Any,
) -> int:
    """Train, show how it goes, leave a page.

    Of several processes one speaks.

    Args:
        data: the pictures; where `source` gives them, the name of a task or of a recipe.
        recipe: a recipe's name; None for the usual one.
        model: what to start from.
        out: folder for all that is written.
        held_out: what to judge by.
        quick: whether the recipe's quick form is taken.
        device: where to compute.
        threads: processor cores to compute on.
        tensorboard: whether TensorBoard is told too.
        extra: options of the recipe.
        task: what is trained for; None for what the recipe or the pictures say.
        source: the pictures.
        **meaning: what label files mean (`void`, `offset`, `labels`); see `data.segments.read_segments`. Where neither task
            nor recipe is named, they ask for segmentation.

    Returns:
        The exit code: 0, or that of the signal that asked it to stop.
    """
    if data.startswith("--"):
        raise UsageError("The pictures come first: vitral train photos/ --epochs 10")
    if source is not None:
        data, task, recipe = source, *_meant(data, task, recipe)
    if threads is not None:
        torch.set_num_threads(threads)
    out, first = out_folder(out), Processes.first_of_all()
    check_apart(out, data)
    console = Console(highlight=False, markup=False, quiet=not first)
    known: Any = task or (None if recipe is not None else "segmentation" if meaning else task_of(data))
    if known is not None and known not in get_args(TaskName):
        raise UnknownNameError("task", known, get_args(TaskName))
    chosen = recipe_for(recipe, model=model, task=known, quick=quick, **options_from(extra))
    reading: dict[str, Any] = {"segments": chosen.segments, "bad_pictures": chosen.bad_pictures, **meaning}
    splits = opened(data, held_out, task=chosen.task, **reading)
    network, subject = begun(splits, chosen)
    console.print(_told(chosen, splits, out), soft_wrap=True)
    with Watched(console) as watched, Board(out / "tensorboard") if tensorboard and first else nullcontext() as board:
        trained = fit(network, subject, chosen, out=out, device=device, watch=_both(watched, board))
    if trained.stopped:
        console.print(
            f"Stopped by {trained.stopped} after step {trained.steps:,}; everything is saved. The same command goes on.",
            soft_wrap=True,
        )
        return 128 + signal.Signals[trained.stopped] if trained.stopped in signal.Signals.__members__ else 1
    if first:
        _finish(console, out, chosen, splits, trained, device)
    return 0


def _meant(word: str, task: str | None, recipe: str | None) -> tuple[str | None, str | None]:
    """Task and recipe, where the first word names one of them and the pictures are an option.

    Raises:
        UnknownNameError: it names neither.
        UsageError: it was said twice.
    """
    kind = "task" if word in get_args(TaskName) else "recipe"
    if kind == "recipe" and word not in RECIPES:
        raise UnknownNameError("task or recipe", word, (*get_args(TaskName), *RECIPES))
    if (task if kind == "task" else recipe) not in (None, word):
        raise UsageError(f"{word!r} is one {kind}, --{kind} names another. Say it once.")
    return (word, recipe) if kind == "task" else (task, word)


def _told(recipe: Recipe, splits: Opened, out: Path) -> str:
    """What is about to happen, in a sentence or two."""
    judged = f", judged by {len(splits.held_out):,} others" if splits.held_out is not None else ""
    begins = "" if recipe.backbone is None else f", whose backbone begins with {recipe.backbone},"
    told = (
        f"{recipe.model}{begins} learns {len(splits.train.classes)} classes from {len(splits.train):,} pictures{judged} "
        f"(recipe {recipe.name}). Everything goes to {out}."
    )
    meant = getattr(splits, "assumes", "")  # what label files are taken to mean is not guessed in silence
    return " ".join(filter(None, (told, meant, Plan.of(recipe, len(splits.train)).advice)))


def _finish(console: Console, out: Path, recipe: Recipe, splits: Opened, trained: Trained, device: str | int | None) -> None:
    """The pages, and what to do next."""
    kept = "best" if (out / "best/model.safetensors").is_file() else "last"  # users move things
    workers = default_workers(computing=1) if recipe.workers is None else recipe.workers
    model: Any = load_model(out / kept)
    judgement = subject_of(splits, recipe).judge(model, device=resolve_device(device), workers=workers)
    found = None if judgement is None else judgement.details
    beside = _PAGES.get(recipe.task)
    shown: tuple[Any, Any] = (None, None) if beside else (found, splits.held_out)
    write_whole(out / "training.html", training_page(read(out / "journal.jsonl"), *shown, options_of(recipe)).encode())
    told = f"The curves:  {out / 'training.html'}\n"
    if beside and found is not None:
        write_whole(out / "evaluation.html", beside(found, splits.held_out).encode())
        told += f"What it finds, and what not:  {out / 'evaluation.html'}\n"
    if not trained.epochs:
        console.print("This training had been finished before; there was nothing left to do.", soft_wrap=True)
    if judgement is not None:
        took = f"after {trained.seconds / 60:.1f} minutes of training."
        console.print(f"The {kept} model {_reached(judgement)}, {took}", soft_wrap=True)
    console.print(f"{told}The model:   vitral predict photo.jpg --model {out / kept}", soft_wrap=True)


def _reached(judgement: Judgement) -> str:
    """How good a model is, as the second half of a sentence."""
    found = judgement.details
    if isinstance(found, Evaluation):
        low, high = found.intervals()["top1"]
        return f"names {found.top1:.1%} of the pictures held out rightly (95 % interval {low:.1%} to {high:.1%})"
    return f"reaches {' '.join(judgement.line.split())} on the pictures held out"


def options_from(extra: Sequence[str]) -> dict[str, str]:
    """Options of a recipe out of what the command line did not know: `--name value`, `--name=value`, or `--name` for yes.

    Raises:
        UsageError: a word without an option before it, or an option given twice.
    """
    options: dict[str, str] = {}
    name: str | None = None
    for word in extra:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in options:
                raise UsageError(f"--{name.replace('_', '-')} was given twice.")
            options[name] = value if equals else "yes"
            name = None if equals else name
        elif name is not None:
            options[name], name = word, None
        else:
            raise UsageError(f"{word!r} stands alone; options of a training are given as --name value.")
    return options


class Watched:
    """A progress bar, and a line for every epoch above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("loss {task.fields[loss]:.3f}  rate {task.fields[rate]:.1e}  {task.fields[speed]:,.0f} pictures/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
        )
        self.bar: TaskID | None = None

    def __enter__(self) -> Watched:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, event: Step | Epoch) -> None:
        """Show a step on the bar, an epoch in a line."""
        if isinstance(event, Epoch):
            self.console.print(line_of(event), soft_wrap=True)
            return
        if self.bar is None:
            self.bar = self.progress.add_task("", total=event.steps, completed=event.step - 1, loss=0.0, rate=0.0, speed=0.0)
        self.progress.update(
            self.bar,
            completed=event.step,
            description=f"step {event.step:,} of {event.steps:,}",
            loss=event.loss,
            rate=event.learning_rate,
            speed=event.pictures_per_second,
        )


def line_of(epoch: Epoch) -> str:
    """An epoch in a line."""
    found = "" if epoch.line is None else f"  held out: {epoch.line}"
    skipped = f"  {epoch.skipped} unreadable pictures left out" if epoch.skipped else ""
    best = "  best so far" if epoch.best else ""
    minutes, seconds = divmod(round(epoch.seconds), 60)
    return f"epoch {epoch.epoch:6.1f}  {minutes:3d}:{seconds:02d}  loss {epoch.loss:.3f}{found}{best}{skipped}"


def _both(watched: Watched, board: Board | None) -> Callable[[Step | Epoch], None]:
    if board is None:
        return watched

    def told(event: Step | Epoch) -> None:
        watched(event)
        board(event)

    return told


def list_recipes(name: str | None) -> None:
    """All recipes with the first line of their story, or one with every option."""
    console = Console(highlight=False, soft_wrap=True)
    if name is None:
        for one, function in RECIPES.items():
            console.print(f"{one:<18} {(function.__doc__ or '').strip().splitlines()[0]}", markup=False)
        return
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    story = (RECIPES[name].__doc__ or "").split("Args:")[0].strip()
    console.print("\n".join(line.strip() for line in story.splitlines()), markup=False)
    console.print("\nOptions, each to be changed by --name value:")
    for option, value in options_of(RECIPES[name]()).items():
        console.print(f"  {option:<22} {value}", markup=False)
