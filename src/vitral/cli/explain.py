"""`vitral explain`: what a model looks at in one picture, as a page to play with or as a plain picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image
from rich.console import Console
from rich.text import Text

from vitral.base.disk import write_whole
from vitral.base.image import PictureSource, read_picture
from vitral.cli.folder import safe_stem
from vitral.cli.predict import options_of_masks
from vitral.cli.show import plain
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.detection import OBJECT_METHODS, explain_objects
from vitral.explanation.explain import explain as explain_picture
from vitral.explanation.explain import target_class
from vitral.explanation.methods import DEFAULT, METHODS
from vitral.explanation.object_report import object_explanation_page
from vitral.explanation.object_result import draw_objects
from vitral.explanation.report import explanation_page
from vitral.explanation.result import Explanation
from vitral.explanation.segment_report import segment_explanation_page
from vitral.explanation.segmentation import SEGMENT_METHODS, explain_segments
from vitral.models.detection.detector import Detector
from vitral.models.segmentation.kinds import MapNetwork, MaskNetwork
from vitral.pipelines.predictor import Predictor, load
from vitral.tasks.ranked import check_threshold

__all__ = ["explain"]


def explain(
    picture: str,
    model: str,
    *,
    out: Path | None,
    png: Path | None,
    method: str | None,
    target: str | None,
    layer: str | None,
    head: str | None,
    top_k: int,
    threshold: float | None = None,
    mask_threshold: float | None = None,
    overlap_threshold: float | None = None,
    **loading: Any,
) -> None:
    """Look at a picture and leave a page, a drawing of one method's heat, or both.

    Args:
        picture: a path or an address.
        model: a checkpoint; see `checkpoints.load.load_model`.
        out: the page's file. None: `<picture>.explained.html` in the working folder, or no page where a drawing is wanted.
        png: the drawing's file; None for none.
        method: a key of `explanation.methods.METHODS`, or for a detector of `explanation.detection.OBJECT_METHODS`, for a
            segmenter of `explanation.segmentation.SEGMENT_METHODS`; None for the usual one.
        target: the class to explain, by its name or its number; None for the best. Of a detector the objects to explain: all
            of a class by its name, or one by its number, 0 for the best; None for all. Of a segmenter the segments likewise,
            or a pixel, "120,80" for the one 120 pixels from the left and 80 from the top.
        layer: for methods that look at one layer: its number or name.
        head: for methods that look at heads: one's number, or "mean", "max".
        top_k: how many of the best classes, or of the best objects or segments, the page explains.
        threshold: of a detector or a segmenter: what counts has a score above this; None for the usual one.
        mask_threshold: of a segmenter that draws masks: see `cli.predict.predict`.
        overlap_threshold: likewise.
        **loading: see `pipelines.predictor.load`.

    Raises:
        UsageError: a file that must not be written, before anything is loaded.
    """
    if out is None and png is None:
        out = Path(f"{safe_stem(picture)}.explained.html")
    _check_files(picture, out, png)
    if png is None and out is not None and out.suffix.lower() == ".png":
        out, png = None, out
    places = {"layer": layer, "head": head}
    options: dict[str, Any] = {name: _number(given) for name, given in places.items() if given is not None}
    if method is not None:
        _check_method(method, target, options)
    if threshold is not None:
        check_threshold(threshold)
    if "://" not in picture and not _is_file(picture):
        read_picture(picture)  # it says why not, sooner than a model is loaded
    console = Console(stderr=True, highlight=False)
    with console.status("loading the model") as status:
        predictor = load(model, **loading)
        if of_masks := options_of_masks(predictor, mask_threshold, overlap_threshold):
            predictor.options = replace(predictor.options, **of_masks)
        work = _work_of(predictor)
        written = work(predictor, picture, out, png, method, target, top_k, threshold, options, _saying(status.update))
        for _, path, content in written:
            write_whole(path, content)
    answers = Console(highlight=False)
    for kind, path, content in written:
        hint = "; any browser opens it" if kind == "page" else ""
        answers.print(Text(plain(f"The {kind} lies in {path} ({_size(len(content))}){hint}.")), soft_wrap=True)


_Written = tuple[str, Path, bytes]
"""What was made: what it is, its file, and what is to be written into it."""


def _work_of(predictor: Predictor) -> Callable[..., list[_Written]]:
    """What makes the files, by what the model says of a picture."""
    if isinstance(predictor.model, Detector):
        return partial(_of_found, (_number, explain_objects, object_explanation_page))
    if isinstance(predictor.model, MapNetwork | MaskNetwork):
        return partial(_of_found, (_segment, explain_segments, segment_explanation_page))
    return _of_classes


def _of_classes(
    predictor: Predictor,
    picture: str,
    out: Path | None,
    png: Path | None,
    method: str | None,
    target: str | None,
    top_k: int,
    threshold: float | None,
    options: dict[str, Any],
    step: Callable[[str], None],
) -> list[_Written]:
    """The files about a classifier's answer."""
    name = method or DEFAULT
    _check_of_classes(name, target, threshold, options)
    chosen = _target(predictor, target)
    written: list[_Written] = []
    source: PictureSource = picture
    if png is not None:
        step(name)
        explanation = explain_picture(predictor, picture, method=name, target=chosen, **options)
        source = cast(PictureSource, explanation.picture)  # an address is fetched once
        written.append(("drawing", png, _as_png(explanation.draw())))
    if out is not None:
        told = explanation_page(predictor, source, top_k=top_k, method=name, target=chosen, on_step=step, **options)
        written.append(("page", out, told.encode()))
    return written


def _check_method(method: str, target: str | None, options: dict[str, Any]) -> None:
    """Refuse what is wrong whatever the model is, before it is loaded."""
    known = {**METHODS, **OBJECT_METHODS, **SEGMENT_METHODS}
    if method not in known:
        raise UnknownNameError("method", method, known)
    if method not in OBJECT_METHODS and method not in SEGMENT_METHODS:
        _check_of_classes(method, target, None, options)
        return
    # Methods of one name may have an option for objects that they do not have for classes.
    taken = {
        one for methods in (OBJECT_METHODS, SEGMENT_METHODS, METHODS) if method in methods for one in methods[method].options
    }
    for option in options:
        if option not in taken:
            raise UnknownNameError(f"option of the {method} method", option, taken)


def _check_of_classes(method: str, target: str | None, threshold: float | None, options: dict[str, Any]) -> None:
    """Refuse what only detectors know, and what a method does not."""
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    METHODS[method].check(method, options)
    if target is not None and not METHODS[method].needs_target:
        raise UsageError(f"The method {method!r} knows no class; leave --target out.")
    if threshold is not None:
        raise UsageError("--threshold is for detectors and segmenters, and this model finds no objects; leave it out.")


def _of_found(
    kind: tuple[Callable[[str], Any], Callable[..., Sequence[Explanation]], Callable[..., str]],
    predictor: Predictor,
    picture: str,
    out: Path | None,
    png: Path | None,
    method: str | None,
    target: str | None,
    top_k: int,
    threshold: float | None,
    options: dict[str, Any],
    step: Callable[[str], None],
) -> list[_Written]:
    """The files about the objects, or the segments, that were found in a picture.

    `kind` is how a target is read that is no label, what explains each of them, and what makes the page.
    """
    meant, explain_each, page = kind
    chosen = None if target is None else target if target in predictor.record.labels else meant(target)
    asked: dict[str, Any] = {"method": method, "target": chosen, "threshold": threshold, "top_k": top_k, **options}
    written: list[_Written] = []
    source = read_picture(picture) if "://" in picture and png is not None and out is not None else picture
    if png is not None:
        step("looking")
        explained = explain_each(predictor, source, **asked)
        if not explained:
            least = getattr(predictor.options, "threshold", 0.0) if threshold is None else threshold
            more = " A lower threshold finds more." if least > 0 and not isinstance(predictor.model, MapNetwork) else ""
            raise UsageError(f"There is nothing to draw: nothing was found to be explained.{more}")
        written.append(("drawing", png, _as_png(draw_objects(explained))))
    if out is not None:
        written.append(("page", out, page(predictor, source, on_step=step, **asked).encode()))
    return written


def _as_png(image: Image.Image) -> bytes:
    memory = io.BytesIO()
    image.save(memory, "PNG", optimize=True)
    return memory.getvalue()


def _saying(update: Callable[[Text], None]) -> Callable[[str], None]:
    """A label may hold what a terminal would take for a command, or rich for markup."""
    return lambda words: update(Text(plain(words)))


def _check_files(picture: str, out: Path | None, png: Path | None) -> None:
    """Refuse files that must not be written."""
    for option, path in (("--out", out), ("--png", png)):
        if path is None:
            continue
        if path.is_dir():
            raise UsageError(f"{option} {path} is a folder; give a file in it.")
        if not path.parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}. Make it first.")
        if path.exists() and not path.is_file():  # a device or a pipe, which the finished file would replace
            raise UsageError(f"{option} {path} is no plain file; give another one.")
        if path.exists() and _is_file(picture) and path.samefile(Path(picture).expanduser()):
            raise UsageError(f"{option} {path} is the picture itself; give another file.")
    if out is not None and png is not None and out.resolve() == png.resolve():
        raise UsageError(f"--out and --png both name {out}; give two files.")
    if png is not None and png.suffix.lower() != ".png":
        raise UsageError(f"--png {png}: the drawing is a PNG file; give a name that ends in .png.")


def _is_file(picture: str) -> bool:
    """Whether a picture is named by a path; an address, a data URI or a stranger's home is none."""
    try:
        return Path(picture).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def _number(given: str) -> int | str:
    """A number where one was typed, else the name."""
    return int(given) if given.removeprefix("-").isdecimal() else given


def _segment(given: str) -> int | str | tuple[float, float]:
    """A pixel where two numbers were typed, "120,80", else a segment's number or its class."""
    sides = given.split(",")
    try:
        x, y = (float(side) for side in sides)
    except ValueError:
        return _number(given)
    return x, y


def _target(predictor: Predictor, given: str | None) -> int | str | None:
    """A class as typed: a name where there is one of that name, else a number; refused here if there is none."""
    classes: int = cast(Any, predictor.model).config.num_classes
    if given is None or not classes:
        return given
    return target_class(predictor.record, classes, given if given in predictor.record.labels else _number(given))


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"
