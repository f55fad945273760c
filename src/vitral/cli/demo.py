"""`vitral demo`: a transformer is trained, saved, loaded again, put to use, and a page tells of it. No network."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from rich.console import Console

from vitral import __version__
from vitral.base import page
from vitral.base.disk import staging
from vitral.checkpoints.box import BOXED
from vitral.checkpoints.save import save_model
from vitral.cli.train import Watched
from vitral.data.digits import Digits, read_digits
from vitral.errors import UsageError
from vitral.explanation.report import explanation_page
from vitral.pipelines.pipeline import pipeline
from vitral.pipelines.predictor import load
from vitral.recipes import catalogue as training
from vitral.training.loop import Trained

__all__ = ["demo"]

_ENLARGED = 16  # times, for digits that are looked at as files
_PER_DIGIT = 2  # files
_LOOKED_INTO = "8-1.png"  # the one that the second page is about
_PHOTOGRAPH = "photograph.png"
_SHOWN = 80  # tiles before the rest is folded away


def demo(out: Path, *, seed: int, threads: int, quick: bool) -> None:
    """Train, save, load, predict, look inside, and leave two pages, a checkpoint and some digits in a folder.

    Everything is made in a hidden folder first and moved in when it is whole, so that an interrupted demo leaves nothing.

    Args:
        out: the folder; made if it is not there. Files of the same names are replaced, others stay.
        seed: see the recipe.
        threads: processor cores to use. One is best: a step takes a millisecond, less than threads need to meet, and on a
            busy machine two were measured to take seven times as long.
        quick: seconds of training instead of a minute, for a trial of the whole way.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        UsageError: `out` is a file.
    """
    torch.set_num_threads(threads)
    console = Console(highlight=False)
    train, held_out = read_digits()
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder.")
    with staging(out) as room:
        console.print(f"A vision transformer learns to read from {len(train):,} handwritten digits.")
        with Watched(console) as watched:
            trained = training.train("digits", recipe="digits", quick=quick, seed=seed, watch=watched, device="cpu")
        save_model(trained.model, room / "checkpoint")
        _write_digits(held_out, room / "digits")

        classify = pipeline("image-classification", model=room / "checkpoint", top_k=1, batch_size=64)
        answers = [answer[0] for answer in classify(list(held_out.pictures))]
        said = np.array([int(answer["label"]) for answer in answers])
        right = int((said == held_out.labels).sum())
        told = _page(out, trained, (train, held_out), said, [answer["score"] for answer in answers])
        (room / "index.html").write_text(told, encoding="utf-8")
        inside = explanation_page(load(room / "checkpoint"), room / "digits" / _LOOKED_INTO, top_k=3)
        (room / "inside.html").write_text(inside, encoding="utf-8")
        boxed = _by_the_box(room / _PHOTOGRAPH)
        _move_in(room, out)

    console.print(
        f"[bold]{right / len(held_out):.1%}[/] of the {len(held_out)} digits held out are read rightly, after "
        f"{trained.seconds:.0f} seconds of training.\n",
        soft_wrap=True,
    )
    left = {"page": "index.html", "look inside": "inside.html", "checkpoint": "checkpoint", "digits": "digits"}
    for name, file in left.items():
        console.print(f"  {name:<12} {out / file}", markup=False, soft_wrap=True)
    console.print(f"\n{boxed} {out / _PHOTOGRAPH}", markup=False, soft_wrap=True)
    console.print(f"\nNext: {_next_command(out)}", markup=False, soft_wrap=True)


def _by_the_box(drawing: Path) -> str:
    """What the model that comes with the package says of a photograph, drawn below it."""
    from sklearn.datasets import load_sample_image

    predictor = load(BOXED)
    answer = predictor(load_sample_image("china.jpg"))
    answer.draw(top=3).save(drawing)
    return (
        f"The model in the box knows {len(predictor.record.labels)} things. A palace by a lake is none of them; its best "
        f"guess is {answer.labels[0]!r} ({answer.scores[0]:.0%}):"
    )


def _move_in(room: Path, out: Path) -> None:
    for file in sorted(path for path in room.rglob("*") if path.is_file()):
        target = out / file.relative_to(room)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)  # noqa: PTH105 - atomic within a file system


def _write_digits(held_out: Digits, folder: Path) -> None:
    """Some digits as files that can be looked at; shrunk again by the model's own preprocessing, not a value changes."""
    folder.mkdir()
    for digit in range(10):
        for number, place in enumerate(np.flatnonzero(held_out.labels == digit)[:_PER_DIGIT], start=1):
            pixels = held_out.pictures[place].repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)
            Image.fromarray(pixels).save(folder / f"{digit}-{number}.png")


def _next_command(out: Path) -> str:
    return shlex.join(["vitral", "predict", str(out / "digits"), "--model", str(out / "checkpoint")])


def _page(
    out: Path,
    trained: Trained,
    sets: tuple[Digits, Digits],
    said: Int[np.ndarray, " n"],
    scores: list[float],
) -> str:
    """The page that the demo leaves."""
    train, held_out = sets
    mistakes: list[int] = np.flatnonzero(said != held_out.labels).tolist()
    counts = np.zeros((10, 10), dtype=np.int64)
    np.add.at(counts, (held_out.labels, said), 1)
    tiles = [_tile(held_out, place, int(said[place]), scores[place]) for place in range(len(held_out))]
    passed = [epoch.epoch for epoch in trained.epochs]
    accuracies = [epoch.held_out["top1"] for epoch in trained.epochs if epoch.held_out is not None]
    losses = [epoch.loss for epoch in trained.epochs]
    charts = [
        page.chart(
            "Held-out accuracy",
            [page.Series(name="", x=passed, y=accuracies)],
            across="epoch",
            low=0.0,
            high=1.0,
            form=".1%",
        ),
        page.chart("Training loss", [page.Series(name="", x=passed, y=losses)], across="epoch", low=0.0),
    ]
    return page.document(
        f"{1 - len(mistakes) / len(held_out):.1%} of unseen digits, read by a small transformer",
        page.section("How it learned", page.side_by_side(*charts)),
        page.section(
            f"{_counted(len(mistakes), 'mistake')} in {len(held_out)} digits",
            page.paragraph("What was written → what the model read, and how sure it was."),
            page.tile_grid(
                (_tile(held_out, place, int(said[place]), scores[place], large=True) for place in mistakes), large=True
            ),
        ),
        page.section(
            "What it says to digits it never saw",
            page.paragraph("Below each picture the answer and its score. Mistakes have an orange frame."),
            page.tile_grid(tiles[:_SHOWN]),
            page.details(f"The other {len(tiles) - _SHOWN}", page.tile_grid(tiles[_SHOWN:])),
        ),
        page.section(
            "What it takes for what",
            page.paragraph("Rows are the digits as written, columns the answers. Off the diagonal are the mistakes."),
            page.confusion_table(counts, [str(digit) for digit in range(10)]),
        ),
        page.section("The model", page.facts(_facts(trained, len(train)))),
        page.section("How to go on", *_advice(out)),
        lead=f"Trained in {trained.seconds:.0f} seconds on {len(train):,} handwritten digits, saved, loaded again, "
        f"and asked about {len(held_out)} others.",
        foot="The digits: Alpaydin and Kaynak 1998, UCI repository, from scikit-learn. This page fetches nothing.",
    )


def _tile(held_out: Digits, place: int, said: int, score: float, *, large: bool = False) -> page.Tile:
    digit = int(held_out.labels[place])
    return page.Tile(
        image=Image.fromarray(held_out.pictures[place]),
        said=f"{digit} → {said}" if large else str(said),
        note=f"{score:.0%}",
        description=f"A handwritten {digit}, read as {said}.",
        wrong=said != digit,
    )


def _facts(trained: Trained, pictures: int) -> list[tuple[str, str]]:
    config: Any = trained.model.config
    tokens = config.prefix + config.grid[0] * config.grid[1]
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    height, width = config.image_size
    return [
        ("Network", f"vision transformer, {parameters:,} parameters"),
        ("Input", f"{height} × {width} pixels, grey, in patches of {config.patch_size[0]} × {config.patch_size[1]}"),
        ("Tokens", f"{tokens} of {config.width} channels"),
        ("Blocks", f"{config.depth}, each with {config.heads} attention heads and a network of {config.mlp_width} channels"),
        (
            "Training",
            f"{round(trained.epochs[-1].epoch)} passes over {pictures:,} pictures, {trained.seconds:.1f} seconds",
        ),
        ("Software", f"Vitral {__version__}, PyTorch {torch.__version__}, {_counted(torch.get_num_threads(), 'thread')}"),
    ]


def _advice(out: Path) -> list[str]:
    checkpoint, files = str(out / "checkpoint"), str(out / "digits")
    return [
        page.paragraph(
            "Ask the model about files, here twenty of the digits above, from the folder the demo was started in:"
        ),
        page.commands(_next_command(out), f"{_next_command(out)} --out {shlex.quote(str(out / 'answers'))}"),
        page.paragraph("The same in Python:"),
        page.commands(
            "import vitral",
            "",
            f'read = vitral.pipeline("image-classification", model={checkpoint!r})',
            f"read({files!r})",
        ),
        page.paragraph("What it looks at in one of them, layer by layer and head by head:"),
        page.link("inside.html", "Look inside"),
        page.paragraph("A page like that for any picture and any model:"),
        page.commands(shlex.join(["vitral", "explain", f"{files}/{_LOOKED_INTO}", "--model", checkpoint])),
        page.paragraph("Any published checkpoint works alike, by its name on the Hugging Face Hub:"),
        page.commands("vitral predict photo.jpg --model facebook/deit-tiny-patch16-224", "vitral models"),
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number or 'No'} {noun}s"
