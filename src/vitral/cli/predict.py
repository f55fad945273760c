"""`vitral predict`: from the names a user typed to answers on the screen and in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vitral.checkpoints.box import BOXED
from vitral.cli.folder import ResultFolder, check_folder
from vitral.cli.show import Screen
from vitral.errors import PictureError, UsageError
from vitral.models.segmentation.kinds import MaskNetwork
from vitral.pipelines.predictor import Failure, Predictor, load
from vitral.pipelines.sources import sources_of
from vitral.pipelines.tiles import segment_in_windows
from vitral.tasks.segmentation.result import Segmentation

__all__ = ["options_of_masks", "predict"]

_CLASSES = 5  # of a picture that are shown unless told otherwise
_MANY_WINDOWS = 1_000  # through one picture: more may be a number mistyped, and are told beforehand


def predict(
    files: Sequence[str],
    model: str | None,
    *,
    top_k: int | None,
    as_json: bool,
    out: Path | None,
    batch_size: int,
    workers: int | None,
    threshold: float | None = None,
    subtask: str | None = None,
    window: int | None = None,
    overlap: float | None = None,
    mask_threshold: float | None = None,
    overlap_threshold: float | None = None,
    class_names: Path | None = None,
    **loading: Any,
) -> int:
    """Answer for every picture, in order.

    Args:
        files: paths, folders, patterns, addresses.
        model: a checkpoint; see `checkpoints.load.load_model`. None for the one in the box.
        top_k: how many classes, or objects, of each picture to show and keep; None for 5 classes, or all objects.
        as_json: whether stdout receives JSON lines.
        out: a folder for drawings or features and the list of predictions; None for none.
        batch_size: how many pictures the model sees at once.
        workers: threads that read; see `pipelines.stream.overlapped`.
        threshold: for a detector, or a segmenter that draws masks: only objects whose score is above it; None for 0.5.
        subtask: for a segmenter: "semantic", "instance" or "panoptic"; None for what it can do, panoptic first.
        window: for a segmenter: go through each picture, at its own size, with windows of so many pixels; None to see it
            whole, at the network's size.
        overlap: the part of a window that it shares with the next one; None for a quarter.
        mask_threshold: for a segmenter that draws masks: from which probability a pixel counts as a segment's own; None for
            0.5.
        overlap_threshold: likewise: a segment goes if others took more of its pixels than leaves it this share; None for
            0.8.
        class_names: a text file with the name of a class on each line, in the model's order; None for those of its record.
        **loading: see `pipelines.predictor.load`.

    Returns:
        How many pictures could not be read.

    Raises:
        UsageError: an option that the model has no use for.
    """
    pictures = _pictures(files)
    readable = [picture for picture in pictures if not isinstance(picture, Failure)]
    if out is not None:
        check_folder(out, readable)
    if class_names is not None:
        loading["class_names"] = _names_in(class_names)
    predictor = load(BOXED if model is None else model, **loading)
    options = _options(predictor, top_k, threshold, subtask) | options_of_masks(predictor, mask_threshold, overlap_threshold)
    if overlap is not None and window is None:
        raise UsageError("--overlap is for windows; give their size with --window too.")
    if window is not None and predictor.task != "image-segmentation":
        raise UsageError("--window is for models that segment; this one does not.")
    failed = 0
    with ExitStack() as stack:
        labels = _labels(predictor)
        screen = stack.enter_context(Screen(len(pictures), as_json=as_json, labels=labels, windows=window is not None))
        if window is None:
            results = predictor.stream(
                readable,
                batch_size=batch_size,
                workers=workers,
                keep_pictures=out is not None and predictor.task != "image-feature-extraction",
                **options,
            )
        else:
            options |= {"window": window} | ({} if overlap is None else {"overlap": overlap})
            results = _through_windows(predictor, readable, screen, options)
        if model is None:
            screen.say(f"Asked the model in the box, which knows {', '.join(predictor.record.labels)}. For others: --model.")
        folder = stack.enter_context(ResultFolder(out)) if out is not None else None
        for picture in pictures:
            result = picture if isinstance(picture, Failure) else next(results)
            failed += isinstance(result, Failure)
            if folder is not None:
                folder.add(result)
            screen.show(result)
    if failed and len(pictures) > 1:
        screen.say(f"{failed} of {len(pictures)} could not be read.", "red")
    if out is not None and not as_json:
        screen.say(f"The results lie in {out}.")
    return failed


def _names_in(path: Path) -> list[str]:
    """The lines of a file of class names."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").strip().splitlines()]
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {str(path)!r} of class names.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The class names in {str(path)!r} cannot be read ({error}). It is a text, a name on each line."
        ) from error


def _options(predictor: Predictor, top_k: int | None, threshold: float | None, subtask: str | None) -> dict[str, Any]:
    """What of the command's options the task has a use for."""
    segments = predictor.task == "image-segmentation"
    if subtask is not None and not segments:
        raise UsageError("--subtask is for models that segment; this one does not.")
    told = {} if threshold is None else {"threshold": threshold}
    if predictor.task == "object-detection":
        return {"top_k": top_k} | told
    if segments and top_k is not None:
        raise UsageError("--top-k is for models that classify or find objects; this one segments, and shows all it finds.")
    if threshold is not None and not isinstance(predictor.model, MaskNetwork):
        other = "" if segments else " For its best classes: --top-k."
        raise UsageError(f"--threshold is for models that find objects; this one does not.{other}")
    if segments:
        return told | ({} if subtask is None else {"subtask": subtask})
    return {"top_k": _CLASSES if top_k is None else top_k} if predictor.task == "image-classification" else {}


def options_of_masks(
    predictor: Predictor, mask_threshold: float | None, overlap_threshold: float | None
) -> dict[str, float]:
    """What of the command's options is about masks; what was not said is not there.

    Raises:
        UsageError: the model draws none.
    """
    names = {"mask_threshold": mask_threshold, "overlap_mask_area_threshold": overlap_threshold}
    told = {name: value for name, value in names.items() if value is not None}
    if told and (predictor.task != "image-segmentation" or not isinstance(predictor.model, MaskNetwork)):
        raise UsageError("--mask-threshold and --overlap-threshold are for segmenters that draw masks; this one does not.")
    return told


def _through_windows(
    predictor: Predictor, pictures: list[Any], screen: Screen, options: dict[str, Any]
) -> Iterator[Segmentation | Failure]:
    """Large pictures, one after another."""

    def count(done: int, total: int) -> None:
        if len(pictures) == 1:  # a bar that stays at 0 of 1 picture meanwhile would say nothing
            screen.progress.update(screen.bar, visible=False)
        if done == 1 and total >= _MANY_WINDOWS:
            screen.say(f"{total:,} windows, one after another. Larger ones are fewer: --window.", "yellow")
        screen.windows(done, total)

    for picture in pictures:
        try:
            yield segment_in_windows(predictor, picture, progress=count, **options)
        except PictureError as error:
            yield Failure(error.name, error.reason)


def _pictures(files: Sequence[str]) -> list[Any]:
    """Every picture that the names stand for; a name that stands for none fails in its place."""
    if not all(files):
        raise UsageError("One of the names of pictures is empty. Is a variable of your shell not set?")

    def found() -> Iterator[Any]:
        for name in files:
            try:
                yield from sources_of(name).pictures
            except PictureError as error:
                yield Failure(error.name, error.reason)

    return list(found())


def _labels(predictor: Predictor) -> tuple[str, ...]:
    """What the bars of all pictures may be labelled with."""
    labels: tuple[str, ...] = predictor.record.labels
    return labels or ("LABEL_0000",)
