"""`vitral evaluate`: how good a classifier, a detector or a segmenter is, on the screen, as JSON, and as a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from vitral.base.device import resolve_device, resolve_dtype
from vitral.base.disk import exchange, staging
from vitral.checkpoints.load import load_model
from vitral.cli import evaluate_objects, evaluate_pictures, evaluate_segments
from vitral.cli.folder import check_apart
from vitral.cli.show import json_line, picture_bar, plain
from vitral.data.splits import read_pictures
from vitral.errors import UsageError
from vitral.recipes.catalogue import opened, task_of
from vitral.training.answers import check_reading
from vitral.training.detection import annotated_split
from vitral.training.evaluate import evaluate as judge_classifier
from vitral.training.evaluate_objects import evaluate_objects as judge_detector
from vitral.training.evaluate_segments import evaluate_segments as judge_segmenter
from vitral.training.recipe import TaskName
from vitral.training.segmentation import Segmented, segmented_split

__all__ = ["evaluate"]


@dataclass(frozen=True)
class _Kind:
    """What judging networks of one task is made of.

    Attributes:
        read: path, split, what is done about bad pictures; and of segmented ones what is read of pixels and what label files
            mean → a set, and what `judge` must be told of it.
        judge: model and set → an evaluation.
        files: evaluation and set → what is written beside the numbers, by name.
        show: puts an evaluation on a console, below the heading.
        speed: the format of pictures a second.
    """

    read: Callable[..., tuple[Any, dict[str, Any]]]
    judge: Callable[..., Any]
    files: Callable[[Any, Any], dict[str, bytes]]
    show: Callable[[Any, Console], None]
    speed: str


def _segmented(data: str, split: str | None, bad: Any, segments: Any = None, **meaning: Any) -> tuple[Any, dict[str, Any]]:
    """Segmented pictures, and what is known of their pixels."""
    pictures, kind = segmented_split(data, split, kind=segments, bad_pictures=bad, **meaning)
    return pictures, {"kind": kind}


def _held_out(
    data: str, share: float, task: TaskName, bad: Any, segments: Any, meaning: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The pictures that a training with this share to hold out is judged by."""
    found = opened(data, share, task=task, segments=segments, bad_pictures=bad, **meaning)
    return found.held_out, {"kind": found.kind} if isinstance(found, Segmented) else {}


_KINDS = {
    "classification": _Kind(
        lambda data, split, *_: (read_pictures(data, split), {}),
        judge_classifier,
        evaluate_pictures.files,
        evaluate_pictures.show,
        ",.0f",
    ),
    "detection": _Kind(
        lambda data, split, bad: (annotated_split(data, split, bad_pictures=bad), {}),
        judge_detector,
        evaluate_objects.files,
        evaluate_objects.show,
        ",.1f",
    ),
    "segmentation": _Kind(
        _segmented,
        judge_segmenter,
        evaluate_segments.files,
        evaluate_segments.show,
        ",.1f",
    ),
}


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
    segments: Any = None,
    held_out: float | None = None,
    edges: bool = False,
    **meaning: Any,
) -> None:
    """Ask a model about every picture of a set, and say how good its answers are.

    Args:
        data: labelled pictures, see `data.splits.read_pictures`; annotated ones, see `data.objects.read_objects`; or
            segmented ones, see `data.segments.read_segments`.
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
        out: a folder for the page, the numbers and, of a classifier, every answer; None for none. All are written, or none.
        segments: of a segmenter, what of the pixels is judged: "semantic", "instance" or "panoptic". None for what the
            pictures are there to teach.
        held_out: judge by this share of the training pictures: those that a training with the same share sets apart.
        edges: of a segmenter, whether classes are judged near their edges too, which takes long.
        **meaning: what label files mean (`void`, `offset`, `labels`); see `data.segments.read_segments`.

    Raises:
        UsageError: data or options that make no sense, before the model is loaded; classes that do not fit.
        PictureError: a picture that cannot be read, unless such are skipped.
    """
    check_reading(bad_pictures, decoding)
    check_apart(out, data)
    there = resolve_device(device)
    resolve_dtype(dtype)
    if held_out is not None and split is not None:
        raise UsageError("--held-out is a share of the split train; leave --split out.")
    asked = edges or segments is not None or bool(meaning)
    task: TaskName = "segmentation" if asked else task_of(data)
    kind = _KINDS[task]
    if held_out is not None:
        pictures, told = _held_out(data, held_out, task, bad_pictures, segments, meaning)
    else:
        only: dict[str, Any] = {"segments": segments, **meaning} if task == "segmentation" else {}
        pictures, told = kind.read(data, split, bad_pictures, **only)
    if edges:
        if told["kind"] != "semantic":
            raise UsageError(
                f"--edges is for the classes of pixels, and {pictures.name} would be judged as {told['kind']}. Leave it "
                "out, or say --segments semantic."
            )
        told["edges"] = True
    errors = Console(stderr=True, highlight=False)
    with errors.status("loading the model"):
        network = load_model(model, architecture)
    with picture_bar(errors) as progress:
        bar = progress.add_task("pictures", total=len(pictures))
        evaluation = kind.judge(
            network,
            pictures,
            batch_size=batch_size,
            device=there,
            dtype=dtype,
            workers=workers,
            bad_pictures=bad_pictures,
            decoding=decoding,
            on_progress=lambda done, _: progress.update(bar, completed=done),
            **told,
        )
    if out is not None:
        numbers = (json.dumps(evaluation.to_dict(), indent=1) + "\n").encode()
        _write(out, kind.files(evaluation, pictures) | {"evaluation.json": numbers})
    for sentence in evaluation.skipped:
        errors.print(Text(plain(f"Left out: {sentence}"), "red"), soft_wrap=True)
    if as_json:
        sys.stdout.write(json_line(evaluation.to_dict()) + "\n")
        return
    _show(evaluation, kind)
    if out is not None:
        errors.print(Text(plain(f"The page lies in {out / 'evaluation.html'}; any browser opens it.")), soft_wrap=True)


def _write(out: Path, contents: dict[str, bytes]) -> None:
    """All of the files, or nothing."""
    with staging(out) as room:
        for name, content in contents.items():
            (room / name).write_bytes(content)
        exchange(room, tuple(contents))


def _show(evaluation: Any, kind: _Kind) -> None:
    """What was judged, by what and how fast; and how well it did."""
    console = Console(highlight=False)
    speed = (len(evaluation) + len(evaluation.skipped)) / max(evaluation.seconds, 1e-9)
    skipped = f", {len(evaluation.skipped)} left out" if evaluation.skipped else ""
    console.print(
        Text.assemble(
            (plain(evaluation.data), "bold"),
            f"  {len(evaluation):,} pictures{skipped}",
            (f"  {plain(evaluation.model)}, {speed:{kind.speed}} pictures a second", "bright_black"),
        ),
        soft_wrap=True,
    )
    kind.show(evaluation, console)
