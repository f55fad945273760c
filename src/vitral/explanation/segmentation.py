"""Explanations of what a segmenter said of a picture: of its segments, of all there is of a class, of single pixels.

    for one in explain_segments(predictor, "street.jpg", method="relevance", target=["sky", (120, 80)]):
        print(one.label, one.score, one.peak)
        one.draw().save(f"{one.place}.png")

What is explained of the pixels of a class is the mean logit of the class over these pixels, and of one pixel its logit
there. Of a query that draws a mask it is the logit of its class; and of one of its pixels, that of its mask there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, SupportsIndex, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.image import PictureSource
from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import Captured, capture
from vitral.explanation.detection import ObjectMethod
from vitral.explanation.evidence import Evidence, Inquiry, found_by_gradients, plain
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.maps import fused
from vitral.explanation.object_relevance import relevance_of_queries
from vitral.explanation.prepares import Prepares
from vitral.explanation.rollout import Backwards
from vitral.explanation.segment_look import (
    Asked,
    Pixel,
    SegmentLook,
    cells_of,
    look_at_segments,
    read_at,
    segment_gaze,
    share_of_cells,
)
from vitral.explanation.segment_result import SegmentExplanation
from vitral.explanation.stages import cell_of, moved
from vitral.models.output import MapOutput, MaskOutput
from vitral.models.record import Record
from vitral.models.segmentation.fcn_vgg import FCNVGG
from vitral.models.segmentation.kinds import MapNetwork

__all__ = [
    "SEGMENT_METHODS",
    "ScoreOfSegment",
    "SegmentTarget",
    "check_segment_method",
    "chosen_segments",
    "explain_segment_look",
    "explain_segments",
    "fitting_segment_methods",
    "pixels_of",
    "usual_segment_method",
]

SegmentTarget = SupportsIndex | str | Pixel | list[Any] | None
"""What to explain: a segment by its place among those that were found, all of a class by its name, a pixel (x, y) of the
picture, a list of these, or all segments."""

ScoreOfSegment = Literal["class", "mask"]
"""What of a query is explained: the logit of its class, or the mean logit of its mask over its pixels."""


def _map_module(model: nn.Module) -> nn.Module | None:
    """What gives the map that Grad-CAM weighs by default, the coarsest; None where no map covers the picture alone."""
    if isinstance(model, FCNVGG) or getattr(model.config, "border", "zeros") != "zeros":
        return None  # its maps reach beyond the picture
    if hasattr(model, "down"):
        return cast(nn.Module, cast(Any, model).down[-1])
    for path in ("backbone", "trunk", "detr.backbone"):
        try:
            within: Any = model.get_submodule(path)
        except AttributeError:
            continue
        return cast(nn.Module, list(within.blocks)[-1])
    return cast(nn.Module, list(cast(Any, model).blocks)[-1])


SEGMENT_METHODS: dict[str, ObjectMethod] = {
    "attention": ObjectMethod(
        title="Attention",
        asks="how much the segment's query, class token or patches took from it, in one layer",
        fits=lambda model: segment_gaze(model).kind != "none",
        options=("layer", "head"),
        paper="Vaswani et al. 2017; Carion et al. 2020; Strudel et al. 2021",
    ),
    "rollout": ObjectMethod(
        title="Rollout",
        asks="how much of it attention carries through all layers to the segment's patches",
        fits=lambda model: segment_gaze(model).kind == "patches",
        paper="Abnar and Zuidema 2020",
    ),
    "relevance": ObjectMethod(
        title="Relevance",
        asks="how much of it attention carried to the segment where the score rises with that attention",
        fits=lambda model: segment_gaze(model).kind != "none",
        options=("score",),
        paper="Chefer et al. 2021",
    ),
    "grad_cam": ObjectMethod(
        title="Grad-CAM",
        asks="how much it has of the channels with which the segment's score rises",
        fits=lambda model: _map_module(model) is not None,
        options=("layer", "score"),
        paper="Selvaraju et al. 2017; for segments Vinogradova et al. 2020",
    ),
    "gradient_times_input": ObjectMethod(
        title="Gradient × input",
        asks="its own value times how steeply the segment's score rises with it",
        fits=lambda model: True,
        signed=True,
        options=("score",),
        paper="Shrikumar et al. 2017",
    ),
}
"""Name → method."""


def fitting_segment_methods(model: nn.Module) -> tuple[str, ...]:
    """The names of the methods that find in a segmenter what they look at."""
    return tuple(name for name, method in SEGMENT_METHODS.items() if method.fits(model))


def usual_segment_method(model: nn.Module) -> str:
    """The method that is used where none is named: what follows attention, else Grad-CAM, else the gradient."""
    fitting = fitting_segment_methods(model)
    return next(name for name in ("relevance", "grad_cam", "gradient_times_input") if name in fitting)


def check_segment_method(model: nn.Module, method: str | None, options: Mapping[str, Any]) -> str:
    """The method, if a segmenter has what it looks at and it has these options.

    Raises:
        UnknownNameError: no such method, option or value of one.
        UsageError: the network has nothing that the method looks at.
    """
    name = usual_segment_method(model) if method is None else method
    if name not in SEGMENT_METHODS:
        raise UnknownNameError("method for segments", name, SEGMENT_METHODS)
    for option in options:
        if option not in SEGMENT_METHODS[name].options:
            raise UnknownNameError(f"option of the {name} method", option, SEGMENT_METHODS[name].options)
    if options.get("score", "class") not in ("class", "mask"):
        raise UnknownNameError("score of a segment", options["score"], ("class", "mask"))
    if "score" in options and isinstance(model, MapNetwork):
        raise UsageError("score= is for networks whose queries draw masks; this one tells the classes of pixels.")
    if not SEGMENT_METHODS[name].fits(model):
        others = ", ".join(map(repr, fitting_segment_methods(model)))
        raise UsageError(f"The method {name!r} finds nothing to look at in a {type(model).__name__}. These work: {others}.")
    return name


def pixels_of(target: SegmentTarget) -> list[Pixel]:
    """The pixels among what is to be explained, in their order.

    Raises:
        UsageError: a tuple that is no pair of numbers.
    """
    pixels = []
    for one in target if isinstance(target, list) else [target]:
        if isinstance(one, tuple):
            if len(one) != 2 or not all(_is_number(side) for side in one):
                raise UsageError(f"A pixel is (x, y); {one!r} came. For several segments pass a list.")
            pixels.append((float(one[0]), float(one[1])))
    return pixels


def _is_number(value: Any) -> bool:
    return as_integer(value) is not None or isinstance(value, float)


def chosen_segments(look: SegmentLook, target: SegmentTarget, record: Record) -> list[int]:
    """The places of what is meant, each once; see `SegmentLook.asked`, whose pixels are those of the target.

    Raises:
        UnknownNameError: the record knows no class of that name.
        UsageError: no such segment was found.
    """
    segments = [place for place, one in enumerate(look.asked) if one.pixel is None]
    if target is None:
        return list(range(len(look)))
    pixels = iter(place for place, one in enumerate(look.asked) if one.pixel is not None)
    found: list[int] = []
    for one in target if isinstance(target, list) else [target]:
        number = as_integer(one)
        if isinstance(one, tuple):
            found.append(next(pixels))
        elif isinstance(one, str):
            asked = record.label(record.index(one))
            places = [place for place in segments if look.asked[place].label == asked]
            if not places:
                there = ", ".join(map(repr, dict.fromkeys(look.asked[place].label for place in segments))) or "nothing"
                raise UsageError(f"No {asked!r} was found in {look.seen.name}, but {there}.{look.advice}")
            found += places
        elif number is None or not -len(segments) <= number < len(segments):
            raise UsageError(
                f"There is no segment {one!r} in {look.seen.name}: {len(segments)} were found, numbered from 0. "
                "A pixel is (x, y)."
            )
        else:
            found.append(number % len(segments))
    return list(dict.fromkeys(found))


def explain_segments(
    predictor: Prepares,
    picture: PictureSource,
    *,
    method: str | None = None,
    target: SegmentTarget = None,
    threshold: float | None = None,
    subtask: str | None = None,
    top_k: int | None = None,
    **options: Any,
) -> list[SegmentExplanation]:
    """Which parts of a picture mattered for its segments, or for single pixels.

    Args:
        predictor: of a segmenter; see `pipelines.predictor.load`.
        picture: a path, address, bytes, file object, Pillow image, array or tensor.
        method: a key of `SEGMENT_METHODS`; None for `usual_segment_method`.
        target: see `SegmentTarget`.
        threshold: see `look_at_segments`, and for `subtask` and `top_k` too.
        subtask: of queries, "instance" for objects that may overlap.
        top_k: how many segments count at most, the first ones; by default all.
        **options: of the method. `layer`: for "attention" the number of a layer, by default the last; for "grad_cam" the
            name of a module that gives a map, by default the end of the backbone. `head`: for "attention" one of the heads,
            or "mean", "max". `score`: what of a query is explained, see `ScoreOfSegment`; by default its class, and where
            it is asked about a pixel, its mask.

    Returns:
        One for each segment or pixel; none where nothing was found.

    Raises:
        PictureError: the picture cannot be read.
        UnknownNameError: no such method, option or layer.
        UsageError: the model is no segmenter, has nothing that the method looks at, or no such segment was found.
    """
    chosen = check_segment_method(predictor.model, method, options)
    look = look_at_segments(predictor, picture, pixels=pixels_of(target), threshold=threshold, subtask=subtask, top_k=top_k)
    return explain_segment_look(predictor, look, (chosen,), chosen_segments(look, target, predictor.record), options)[chosen]


def explain_segment_look(
    predictor: Prepares,
    look: SegmentLook,
    methods: Sequence[str],
    places: Sequence[int],
    options: Mapping[str, Any] | None = None,
    *,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, list[SegmentExplanation]]:
    """Explanations by several methods, which share one way through the network and one way back per segment.

    Args:
        predictor: the one that looked.
        look: what it found.
        methods: keys of `SEGMENT_METHODS` that fit.
        places: of the segments and pixels.
        options: of the methods; each takes those it has.
        on_step: called with the place of each before the way back.
    """
    told = options or {}
    own = {name: {one: told[one] for one in SEGMENT_METHODS[name].options if one in told} for name in methods}
    found: dict[str, list[SegmentExplanation]] = {name: [] for name in methods}
    back = [name for name in methods if name in ("relevance", "grad_cam", "gradient_times_input")]
    reasons = _reasons(predictor, look, back, places, told, on_step) if back and places else iter(())
    rolled = iter(_rolled(predictor, look, places)) if "rollout" in methods and places else iter(())
    for place in places:
        heats: dict[str, Evidence] = next(reasons) if back else {}
        if "rollout" in methods:
            heats["rollout"] = next(rolled)
        if "attention" in methods:
            cell = look.cells[look.layer(own["attention"].get("layer", -1))]
            heats["attention"] = Evidence(look.heat(place, **own["attention"]), cell)
        for name in methods:
            found[name].append(_explained(look, place, name, heats[name], own[name]))
    return found


def _explained(look: SegmentLook, place: int, method: str, heat: Evidence, options: Mapping[str, Any]) -> SegmentExplanation:
    one, (rows, columns) = look.asked[place], heat.values.shape
    return SegmentExplanation(
        name=look.seen.name,
        method=method,
        heat=heat.values,
        cell=heat.cell,
        geometry=TokenGeometry((), (rows, columns), heat.cell, look.seen.frame),
        target=one.index,
        label=one.label,
        score=one.score,
        options=options,
        signed=SEGMENT_METHODS[method].signed,
        picture=look.seen.picture,
        place=place,
        mask=one.mask,
        query=one.query,
        pixel=one.pixel,
        look=look,
    )


# -- by gradients ------------------------------------------------------------------------------------------------------


def _reasons(
    predictor: Prepares,
    look: SegmentLook,
    methods: Sequence[str],
    places: Sequence[int],
    options: Mapping[str, Any],
    on_step: Callable[[int], None] | None,
) -> Iterator[dict[str, Evidence]]:
    """Heats by the methods that need gradients, segment by segment."""
    gaze, model = look.gaze, predictor.model

    def score_of(place: int, output: Any) -> Float[Tensor, ""]:
        if on_step is not None:
            on_step(place)
        return _score(output, look, look.asked[place], options.get("score"))

    follow = _relevance_of_query if gaze.kind == "queries" else _relevance_of_patches
    inquiry = Inquiry(
        seen=look.seen,
        methods=methods,
        scores=[partial(score_of, place) for place in places],
        what="segment",
        attentions=(*gaze.encoder, *gaze.among, *gaze.across),
        relevance=lambda number, taken, captured: follow(model, look, look.asked[places[number]], taken, captured),
        map_of=_map_module(model),
        layer=options.get("layer") if "grad_cam" in methods and isinstance(options.get("layer"), str) else None,
    )
    return found_by_gradients(predictor, inquiry)


def _score(output: Any, look: SegmentLook, one: Asked, of: ScoreOfSegment | None) -> Float[Tensor, ""]:
    """The number that is explained of a segment or a pixel."""
    if isinstance(output, MapOutput):
        values = output.logits[0, one.index].float()
    elif isinstance(output, MaskOutput):
        if (of or ("class" if one.pixel is None else "mask")) == "class":
            return output.logits[0, one.query, one.index].float()
        values = output.masks[0, one.query].float()
    else:
        raise UsageError(f"Segments are explained in outputs of the house's kinds; a {type(output).__name__} came.")
    return (values * read_at(one.mask, look.seen.frame, (values.shape[0], values.shape[1])).to(values)).sum()


def _relevance_of_query(
    model: nn.Module, look: SegmentLook, one: Asked, taken: Mapping[str, Float[Tensor, "1 n m"]], _: Captured
) -> Evidence:
    """The relevance of every cell for a query, by the rules for encoder and decoder.

    Where blocks ask maps of several sizes, these are followed side by side, and come together on the finest.
    """
    gaze, size = look.gaze, look.seen.frame.input
    counts = list(dict.fromkeys(taken[name].shape[-1] for name in gaze.across))
    starts = {count: sum(counts[:place]) for place, count in enumerate(counts)}
    pairs = []
    for among, across in zip(gaze.among, gaze.across, strict=True):
        own = taken[across][0]
        before = starts[own.shape[1]]
        behind = sum(counts) - before - own.shape[1]
        pairs.append((taken[among][0], torch.nn.functional.pad(own, (before, behind))))
    encoder = [taken[name][0] for name in gaze.encoder]
    row = relevance_of_queries(encoder, pairs, picture_first=gaze.picture_first)[cast(int, one.query)]
    grids = [cells_of(model, count, size) for count in counts]
    finest = max(grids, key=lambda grid: grid[0] * grid[1])
    heat = sum(moved(part, grid, finest) for part, grid in zip(row.split(counts), grids, strict=True))
    return Evidence(plain(cast(Tensor, heat).unflatten(0, finest)), cell_of(model, finest, size))


def _relevance_of_patches(
    model: nn.Module, look: SegmentLook, one: Asked, taken: Mapping[str, Float[Tensor, "w n m"]], captured: Captured
) -> Evidence:
    """The relevance of every cell for the tokens that a segment is read from: R ← R + Ā R (Chefer et al. 2021, equation 6).

    What a token is to itself, the identity that R begins with, is left out as in equation 8: it would outshine all else.
    """

    def go_back(way: Backwards, name: str) -> None:
        attention = captured.whole(name, taken[name][:, None])[:, 0]
        asking = way.of_asking(attention)
        way.add(torch.zeros_like(asking), attention, asking)

    followed = _followed(model, look, one, captured, go_back)
    itself = _followed(model, look, one, captured, lambda way, name: None)
    return Evidence((followed.values - itself.values).clip(min=0), followed.cell)


# -- through all layers ------------------------------------------------------------------------------------------------


@torch.no_grad()
def _rolled(predictor: Prepares, look: SegmentLook, places: Sequence[int]) -> Iterator[Evidence]:
    """What flows to each segment's tokens from every cell (Abnar and Zuidema 2020, section 3)."""
    model = predictor.model
    if look.seen.picture is None:
        raise UsageError(f"The picture of {look.seen.name} was not kept, so nothing can be computed of it again.")
    pixels, _ = predictor.prepare(look.seen.picture)
    with capture(model, look.gaze.across, whole=False, reduce=lambda maps: fused(maps, "mean")) as captured:
        model(pixels[None].to(predictor.device, predictor.dtype))

    def go_back(way: Backwards, name: str) -> None:
        way.mix(captured.whole(name, captured[name][:, None])[:, 0])

    for place in places:
        yield _followed(model, look, look.asked[place], captured, go_back)


def _followed(
    model: nn.Module, look: SegmentLook, one: Asked, captured: Captured, go_back: Callable[[Backwards, str], None]
) -> Evidence:
    """What the tokens that a segment is read from took from each cell, followed back from the last layer to the first.

    It is read from the tokens of its patches; by Segmenter's mask decoder in equal parts from these and from the token of
    its class, as their product is the answer. Heads that read a map of every stage read each in equal parts too.
    """
    gaze, frame = look.gaze, look.seen.frame

    def read(name: str) -> Float[Tensor, "1 n"]:
        """What is read from the tokens of a layer's grid."""
        grid = captured.grid(name)
        share = share_of_cells(one.mask, frame, grid, cell_of(model, grid, frame.input))
        return share.flatten()[None].to(next(model.parameters()).device)

    *_, last = gaze.across
    row, prefix = read(last), captured.prefix(last)
    row = torch.nn.functional.pad(row, (prefix, 0))
    if last in gaze.classes:
        row[:, one.index] = 1.0
        row = row / 2
    way, joined = Backwards(captured, row, captured.grid(last), prefix), 1
    for name in reversed(gaze.across):
        if last in gaze.classes and name not in gaze.classes:
            way.leave_behind()
        way.to(name)
        if captured.grid(name) != captured.grid(last):
            way.join(read(name))
            joined += 1
        go_back(way, name)
        last = name
    heat = way.heat().values[0] / joined
    grid = (heat.shape[0], heat.shape[1])
    return Evidence(plain(heat), cell_of(model, grid, frame.input))
