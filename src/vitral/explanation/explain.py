"""An explanation from a predictor and a picture: which parts mattered for which class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex, cast, overload

import torch
from jaxtyping import Float
from torch import Tensor

from vitral.base.frame import Seen
from vitral.base.image import PictureSource
from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import LayerName
from vitral.explanation.detection import explain_objects
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.methods import DEFAULT, METHODS, check_fits
from vitral.explanation.prepares import Prepares, check_predictor
from vitral.explanation.question import Question, ScoreOf
from vitral.explanation.result import Explanation
from vitral.explanation.segment_look import Pixel
from vitral.explanation.segmentation import explain_segments
from vitral.explanation.stages import cell_of
from vitral.models.detection.detector import Detector
from vitral.models.output import EncoderOutput
from vitral.models.record import Record
from vitral.models.segmentation.kinds import MapNetwork, MaskNetwork

__all__ = ["Target", "explain", "target_class"]

_TOGETHER = 16
"""Pictures of a list that are computed at once; with gradients a DeiT-Tiny needs 40 MB for each, a ViT-B four times that."""

Target = SupportsIndex | str | ScoreOf | None
"""What to explain: a class by its place or its name, a score of one's own, or nothing: the best class."""


@overload
def explain(
    predictor: Prepares,
    picture: list[Any],
    *,
    method: str | None = ...,
    target: Target | Iterable[Target] | Pixel | list[Any] = ...,
    layer: LayerName | None = ...,
    head: SupportsIndex | str | None = ...,
    **options: Any,
) -> list[Explanation]: ...
@overload
def explain(
    predictor: Prepares,
    picture: PictureSource,
    *,
    method: str | None = ...,
    target: Target | Iterable[Target] | Pixel | list[Any] = ...,
    layer: LayerName | None = ...,
    head: SupportsIndex | str | None = ...,
    **options: Any,
) -> Explanation: ...
def explain(
    predictor: Prepares,
    picture: PictureSource | list[Any],
    *,
    method: str | None = None,
    target: Target | Iterable[Target] | Pixel | list[Any] = None,
    layer: LayerName | None = None,
    head: SupportsIndex | str | None = None,
    **options: Any,
) -> Explanation | list[Any]:
    """Which parts of a picture mattered.

    Args:
        predictor: see `pipelines.predictor.load`.
        picture: a path, address, bytes, file object, Pillow image, array or tensor; or a list of them, which is computed
            as a batch.
        method: a key of `explanation.methods.METHODS`, whose functions tell of their options; None for the usual one. Of a
            detector a key of `explanation.detection.OBJECT_METHODS`, of a segmenter one of
            `explanation.segmentation.SEGMENT_METHODS`.
        target: the class to explain, by its place or its name; by default the best one. Or a function from the model's
            output to one number per picture, for scores that are no class (not for every method; attention is followed back
            from the tokens that the model's own answer is read from). For a list of pictures also one for each of
            them; a list for one picture explains it once for each. Of a detector the objects to explain, by their places
            among those that were found (0 is the best one) or the name of their class; by default all. Of a segmenter the
            segments likewise, or a pixel (x, y) of the picture; several in a list.
        layer: for methods that look at one layer: which, by number or name.
        head: for methods that look at heads: one of them, or "mean", "max".
        **options: of the method; for a detector also `threshold` and `top_k`, which objects count, and for a segmenter
            these and `subtask`.

    Returns:
        An explanation, or a list of them for a list of pictures or targets. Of a detector always a list, with an
        `ObjectExplanation` for each object (best first), and for a list of pictures a list of such lists; of a segmenter
        likewise with a `SegmentExplanation` for each segment or pixel.

    Raises:
        PictureError: a picture cannot be read.
        UnknownNameError: no such method, option, layer or class.
        UsageError: a target outside the classes, a model without classes or without attention where they are needed; in
            the latter case it names the methods that work.
    """
    check_predictor(predictor)
    if isinstance(predictor.model, Detector | MapNetwork | MaskNetwork):
        each: Any = explain_objects if isinstance(predictor.model, Detector) else explain_segments
        asked: dict[str, Any] = {"method": method, "target": target, **options}
        asked |= {name: value for name, value in (("layer", layer), ("head", head)) if value is not None}
        if isinstance(picture, list):
            return [each(predictor, one, **asked) for one in picture]
        return cast(Any, each(predictor, picture, **asked))
    method = DEFAULT if method is None else method
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    chosen = options | {name: value for name, value in (("layer", layer), ("head", head)) if value is not None}
    METHODS[method].check(method, chosen)
    check_fits(method, predictor.model)
    own = isinstance(target, Iterable) and not isinstance(target, str) and as_integer(target) is None
    many = own or isinstance(picture, list)
    targets = list(cast(Iterable[Target], target)) if own else [cast(Target, target)]
    if isinstance(picture, list):
        targets = targets if own else targets * len(picture)
        if len(targets) != len(picture):
            raise UsageError(f"{len(targets)} targets came for {len(picture)} pictures.")
    wanted = [_checked(predictor, one, method) for one in targets]
    if isinstance(picture, list):
        prepared = [predictor.prepare(one) for one in picture]
    else:  # read once: an open file has its bytes but once, an address costs a fetch
        prepared = [predictor.prepare(picture)] * len(targets)
    groups: dict[tuple[torch.Size, Any], list[int]] = defaultdict(list)
    for place, ((pixels, _), one) in enumerate(zip(prepared, wanted, strict=True)):
        groups[pixels.shape, one if callable(one) else None].append(place)
    found: list[Any] = [None] * len(prepared)
    for places in _batches(groups.values()):
        pixels = torch.stack([prepared[place][0] for place in places])
        seen = [prepared[place][1] for place in places]
        explained = _explained(predictor, pixels, seen, [wanted[place] for place in places], method, chosen)
        for place, explanation in zip(places, explained, strict=True):
            found[place] = explanation
    return found if many else found[0]


def _batches(groups: Iterable[list[int]]) -> Iterator[list[int]]:
    """Pictures that are computed together: of one size, and not more than memory is likely to hold."""
    for group in groups:
        for start in range(0, len(group), _TOGETHER):
            yield group[start : start + _TOGETHER]


def target_class(record: Record, classes: int, target: SupportsIndex | str) -> int:
    """The place of a class among the model's logits.

    Raises:
        UsageError: there is no such place, or several classes are called so.
        UnknownNameError: no class is called so.
    """
    if isinstance(target, str):
        target = record.index(target)
    place = as_integer(target)
    if place is None:
        raise UsageError(f"A target is a class's place or name, or a function of the model's output; {target!r} came.")
    if not 0 <= place < classes:
        raise UsageError(f"There is no class {place}: the model has {classes}, numbered 0 to {classes - 1}.")
    return place


def _checked(predictor: Prepares, target: Target, method: str) -> int | ScoreOf | None:
    """The target as a class's place, a function, or None for the best class (or none at all)."""
    classes: int = cast(Any, predictor.model).config.num_classes
    if target is not None and not METHODS[method].needs_target:
        raise UsageError(f"The method {method!r} knows no target; leave it out.")
    if callable(target):
        return target
    if not classes:
        if target is not None or METHODS[method].needs_target:
            free = ", ".join(repr(name) for name, one in METHODS.items() if not one.needs_target)
            raise UsageError(
                f"The model has no classes, and {method!r} explains one. Use {free}, which know no class, or pass a "
                "function of the model's output as target."
            )
        return None
    return None if target is None else target_class(predictor.record, classes, target)


def _explained(
    predictor: Prepares,
    pixels: Float[Tensor, "b c y x"],
    seen: Sequence[Seen],
    targets: Sequence[int | ScoreOf | None],
    method: str,
    options: dict[str, Any],
) -> list[Explanation]:
    """Explanations of pictures whose inputs are of one size."""
    # A caller's inference mode would forbid the gradients.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = pixels.clone().to(predictor.device, predictor.dtype)
        with torch.no_grad():
            output: EncoderOutput = predictor.model(pixels)
        target, patch_size = _target(output, targets), cast(Any, predictor.model).config.patch_size
        question = Question(
            model=predictor.model,
            pixels=pixels,
            grid=output.grid,
            patch_size=patch_size,
            prefix=output.prefix,
            target=target,
            record=predictor.record,
            black=predictor.preprocessing.black.to(pixels),
        )
        heat = METHODS[method].find(question, **options)
        classes = target.tolist() if METHODS[method].needs_target and isinstance(target, Tensor) else None
        scores = question.probability(output).tolist() if classes is not None else None
    values = heat.values.detach().float().cpu()
    grid, size = (values.shape[1], values.shape[2]), (pixels.shape[2], pixels.shape[3])
    per_pixel = grid == size and grid != output.grid
    cell = (1, 1) if per_pixel else cell_of(predictor.model, grid, size)
    return [
        Explanation(
            name=one.name,
            method=method,
            heat=values[place].numpy(),
            cell=cell,
            geometry=TokenGeometry.of(predictor.model, output.grid if per_pixel else grid, one.frame),
            target=None if classes is None else classes[place],
            label=None if classes is None else predictor.record.label(classes[place]),
            score=None if scores is None else scores[place],
            signed=METHODS[method].signed,
            picture=one.picture,
            options=options,
            notes={name: float(numbers[place]) for name, numbers in heat.notes.items()},
        )
        for place, one in enumerate(seen)
    ]


def _target(output: EncoderOutput, targets: Sequence[int | ScoreOf | None]) -> Tensor | ScoreOf | None:
    """The class of each picture, the best where none was named; or the one function that all of them share."""
    if callable(targets[0]):
        return targets[0]
    if output.logits is None:
        return None
    best = output.logits.float().argmax(1).tolist()
    classes = [found if wanted is None else wanted for found, wanted in zip(best, targets, strict=True)]
    return torch.tensor(classes, device=output.logits.device)
