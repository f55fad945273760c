"""One page about one picture and its segments: choose one, or a place, and see what it rests on.

The page is one file that fetches nothing. What each segment's query, class token or patches took from the picture travels in
it as eight-bit numbers, layer by layer, with the masks on their way, what each method says, and, where patches look at each
other, what every patch took; `segment_report.js` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from html import escape
from pathlib import PurePath
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitral.base import page
from vitral.base.image import PictureSource
from vitral.base.numbers import whole_number
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.explanation.packing import Rows, Store, block_sizes, gathered
from vitral.explanation.page_parts import (
    blocks_summed,
    colours_told,
    corners,
    eight_bits,
    method_buttons,
    method_told,
    methods_section,
    picture_told,
    resource,
    shown_score,
    tint,
)
from vitral.explanation.prepares import Prepares
from vitral.explanation.report import called
from vitral.explanation.segment_look import SegmentLook, look_at_segments
from vitral.explanation.segmentation import (
    SEGMENT_METHODS,
    SegmentTarget,
    check_segment_method,
    chosen_segments,
    explain_segment_look,
    fitting_segment_methods,
    pixels_of,
)
from vitral.explanation.stages import cell_of, moved

__all__ = ["segment_explanation_page"]

_LONGEST_MASK = 480  # pixels of the map of segments on the page
_FINEST = 96  # cells along the longer side of a map on the page
_LARGEST = 4096  # cells of a layer whose every patch can be pointed at


def segment_explanation_page(
    predictor: Prepares,
    picture: PictureSource,
    *,
    method: str | None = None,
    target: SegmentTarget = None,
    threshold: float | None = None,
    subtask: str | None = None,
    top_k: int = 10,
    budget: int = 8_000_000,
    on_step: Callable[[str], None] | None = None,
    **options: Any,
) -> str:
    """A page, one HTML file that needs no network, about what a segmenter said of a picture, and why.

    Args:
        predictor: of a segmenter; see `pipelines.predictor.load`.
        picture: a path, address, bytes, file object, Pillow image, array or tensor.
        method: what is shown first; a key of `explanation.segmentation.SEGMENT_METHODS`. The others that fit are there too.
        target: what is explained, see `SegmentTarget`; all segments by default.
        threshold: see `look_at_segments`.
        subtask: of queries, "instance" for objects that may overlap.
        top_k: how many segments at most, the first ones; each costs a way back through the network.
        budget: how many numbers of attention the page may hold, a byte each before they are packed. Where heads alone would
            be more, their mean is there without them.
        on_step: called with a few words before each part of the work.
        **options: of the method.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        PictureError: the picture cannot be read.
        UnknownNameError: no such method or option.
        UsageError: the model is no segmenter, a number out of its range, or no such segment was found.
    """
    model, step = predictor.model, on_step or (lambda _: None)
    first = check_segment_method(model, method, options)
    whole_number("budget", budget)
    step("looking")
    look = look_at_segments(predictor, picture, pixels=pixels_of(target), threshold=threshold, subtask=subtask, top_k=top_k)
    if look.seen.picture is None:
        raise UsageError("The predictor did not keep the picture, which the page shows.")
    places = chosen_segments(look, target, predictor.record)
    if first == "attention" and options and places:
        explain_segment_look(predictor, look, [first], places[:1], options)  # it refuses layers and heads that are not there
    names = list(dict.fromkeys((first, *fitting_segment_methods(model)))) if places else []
    reasons = explain_segment_look(
        predictor,
        look,
        [name for name in names if name != "attention"],
        places,
        options,
        on_step=lambda place: step(f"{look.labels[place]} ({place + 1} of {len(look)})"),
    )
    step("writing")
    store = Store()
    told = {
        "picture": picture_told(look.seen),
        "segments": _segments(look, places),
        "owners": store.add(_owners(look, places)),
        "methods": [method_told(name, SEGMENT_METHODS, reasons.get(name), store) for name in names],
        "first": _first(names, options),
        "kind": look.gaze.kind,
        "attention": _attention(look, places, budget, store) if places else [],
        "masks": _masks(look, places, store) if places else [],
        "patches": _patches(predictor, look, budget, store) if places and look.gaze.kind == "patches" else [],
        "colours": colours_told(store),
    }
    return page.document(
        f"{called(look.seen.name)}: its segments, and why",
        '<noscript><p class="asleep">All this is drawn by a script inside this page; please allow it.</p></noscript>',
        '<p class="asleep" id="asleep"></p>',
        _explorer(told),
        _strip(told),
        methods_section(names, SEGMENT_METHODS, *_beyond_methods(told)),
        _footer(look),
        page.data_block("told", told),
        f'<script type="application/octet-stream" id="packed">{store.packed()}</script>',
        lead=_lead(predictor, look, len(places)),
        style=resource("report.css") + resource("object_report.css") + resource("segment_report.css"),
        script=resource("drawing.js") + resource("segment_report.js"),
    )


# -- what the script is told -------------------------------------------------------------------------------------------


def _segments(look: SegmentLook, places: Sequence[int]) -> list[dict[str, Any]]:
    """The segments, then the pixels; where there are several of a class they are numbered, and each has its colour."""
    told = []
    for number, place in enumerate(places):
        one = look.asked[place]
        alike = [other for other in places if look.asked[other].label == one.label and look.asked[other].pixel is None]
        name = one.label if len(alike) < 2 or one.pixel else f"{one.label} {alike.index(place) + 1}"
        told.append(
            {
                "name": name if one.pixel is None else f"{one.label} at ({one.pixel[0]:g}, {one.pixel[1]:g})",
                "score": one.score,
                "share": one.area / one.mask.size,
                "box": [round(side, 2) for side in one.box],
                "pixel": one.pixel,
                "tint": tint(number),
            }
        )
    return told


def _owners(look: SegmentLook, places: Sequence[int]) -> UInt8[np.ndarray, "y x"]:
    """Whose each pixel is, at the page's size: a segment's number from 1, the first's where they overlap; 0: nobody's."""
    height, width = look.seen.frame.picture
    scale = min(1.0, _LONGEST_MASK / max(height, width))
    rows, columns = (
        ((np.arange(max(1, round(side * scale))) + 0.5) * side / max(1, round(side * scale))).astype(np.int64)
        for side in (height, width)
    )
    owners = np.zeros((len(rows), len(columns)), dtype=np.uint8)
    for number in reversed(range(min(len(places), 255))):
        if look.asked[places[number]].pixel is None:
            owners[look.asked[places[number]].mask[np.ix_(rows, columns)]] = number + 1
    return owners


def _attention(look: SegmentLook, places: Sequence[int], budget: int, store: Store) -> list[dict[str, Any]]:
    """What each segment took from where, layer by layer: the mean of heads, then, if they fit, each head."""
    rows = list(places)
    each = sum((one.shape[1] + 1) * len(rows) * one.shape[2] * one.shape[3] for one in look.across) <= budget
    told = []
    for number, maps in enumerate(look.across):
        side = -(-max(maps.shape[2:]) // _FINEST)
        shown = blocks_summed(np.concatenate([maps.mean(1, keepdims=True), *([maps] if each else [])], axis=1)[rows], side)
        levels, peaks = eight_bits(shown)
        cell = look.cells[number][0] * side, look.cells[number][1] * side
        others = None
        if look.among[number] is not None:
            others = store.add(np.array([cast(np.ndarray, look.others(place, number))[rows] for place in rows], np.float32))
        told.append(
            {
                "heads": maps.shape[1] if each else 0,
                "levels": store.add(levels),
                "peaks": store.add(peaks),
                "sums": store.add(shown.sum((-2, -1))),
                "over": corners(look.seen.frame, (shown.shape[2], shown.shape[3]), cell),
                "others": others,
                "classes": look.gaze.across[number] in look.gaze.classes,
            }
        )
    return told


def _masks(look: SegmentLook, places: Sequence[int], store: Store) -> list[dict[str, Any]]:
    """How likely each cell was each segment's own, every time the network drew, and what it took the segment for."""
    told = []
    for time, maps in enumerate(look.masks):
        rows, columns = maps.shape[1:]
        side = -(-max(rows, columns) // _FINEST)
        counts = blocks_summed(np.ones((rows, columns), dtype=np.float32), side)
        shown = blocks_summed(maps[list(places)], side) / counts
        high, wide = look.seen.frame.input
        # A map covers the whole input, whatever its size.
        ends = shown.shape[1] * side * high / rows, shown.shape[2] * side * wide / columns
        low, far = look.seen.frame.to_picture(np.array([[0.0, 0.0], [ends[1], ends[0]]])).tolist()
        told.append(
            {
                "levels": store.add(np.rint(255 * shown).astype(np.uint8)),
                "over": [*low, *far],
                "said": [look.said(place, time) for place in places],
            }
        )
    return told


@torch.no_grad()
def _patches(predictor: Prepares, look: SegmentLook, budget: int, store: Store) -> list[dict[str, Any]]:
    """What every patch took from every other one, layer by layer, the mean of heads; without layers too fine for that."""
    model, frame = predictor.model, look.seen.frame
    pixels, _ = predictor.prepare(cast(Any, look.seen.picture))
    batch = pixels[None].to(predictor.device, predictor.dtype)
    grids = {
        name: (maps.shape[2], maps.shape[3])
        for name, maps in zip(look.gaze.across, look.across, strict=True)
        if maps.shape[2] * maps.shape[3] <= _LARGEST
    }
    blocks = {name: block_sizes(grid, 0, len(grids), budget) for name, grid in grids.items()}

    def packed(name: str, weights: Float[Tensor, "w h s t"]) -> Rows:
        """A layer's map of the mean of its heads, from patches to patches, packed as soon as it is there."""
        grid, asked_grid = grids[name], seen.asked_grid(name)
        rows = seen.whole(name, weights.mean(1, keepdim=True))[:, :, seen.prefix(name) :]
        cells = moved(rows[..., -asked_grid[0] * asked_grid[1] :], asked_grid, grid)
        return gathered(cells, grid=grid, prefix=0, asking=blocks[name][0], asked=blocks[name][1])

    if not grids:
        return []
    with ExitStack() as watching:
        seen = watching.enter_context(capture(model, list(grids), parts="queries", reduce=lambda _: None))
        found = {
            name: watching.enter_context(capture(model, name, whole=False, reduce=partial(packed, name))) for name in grids
        }
        model(batch)
    told = []
    for name, grid in grids.items():
        (asking, asked), rows = blocks[name], found[name][name]
        cell, shape = cell_of(model, grid, frame.input), (-(-grid[0] // asked), -(-grid[1] // asked))
        told.append(
            {
                "layer": look.gaze.across.index(name),
                "grid": list(grid),
                "over": corners(frame, grid, cell),
                "asking": asking,
                "columns": shape[1],
                "asked_over": corners(frame, shape, (cell[0] * asked, cell[1] * asked)),
                "levels": store.add(rows.levels[0]),
                "peaks": store.add(rows.peaks[0]),
            }
        )
    return told


def _first(names: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """What is seen when the page is opened."""
    layer, head = options.get("layer"), options.get("head")
    return {
        "method": names[0] if names else None,
        "layer": int(layer) if isinstance(layer, int) else -1,
        "head": int(head) if isinstance(head, int) else -1,
    }


# -- what is written on the page ---------------------------------------------------------------------------------------


def _lead(predictor: Prepares, look: SegmentLook, explained: int) -> str:
    """The model, what it found and how it looks, in two sentences."""
    record = predictor.record
    model = record.architecture or PurePath(record.source).name or type(predictor.model).__name__
    height, width = look.seen.frame.input
    found, pixels = (sum((one.pixel is not None) == asked for one in look.asked) for asked in (False, True))
    if not len(look):
        return f"{model} saw {height} × {width} pixels and was sure of nothing in them.{look.advice}"
    counted = f"{found} segment{'' if found == 1 else 's'}"
    left = _explained(explained - pixels, pixels, found)
    how = {
        "queries": "Each is read from a query, which looked at the picture and at the other queries, and drew a mask.",
        "patches": "Each is all there is of a class; its patches looked at all the others, layer by layer."
        if not look.gaze.classes
        else "Each is all there is of a class, and has a token in the last layers, which looked at the patches.",
        "none": "Each is all there is of a class; nothing attends here, so the page shows what its score hangs on.",
    }[look.gaze.kind]
    return f"{model} saw {height} × {width} pixels and found {counted}{left}. {how}"


def _explained(segments: int, pixels: int, found: int) -> str:
    """How many of the segments, and how many pixels, the page is about, where that is not all and only the segments."""
    asked = "one pixel" if pixels == 1 else f"{pixels} pixels"
    if not segments and pixels:
        return f"; {asked} {'is' if pixels == 1 else 'are'} explained here"
    some = "" if segments == found else f", of which {segments} {'is' if segments == 1 else 'are'} explained here"
    if not pixels:
        return some
    return f"{some}, and {asked}" if some else f"; they are explained here, and {asked}"


def _extra_buttons(told: dict[str, Any]) -> str:
    """What can be looked at beside the methods: masks, and patches one by one."""
    extra = [{"name": "mask", "title": "Its mask"}]
    if told["patches"]:
        extra.append({"name": "patch", "title": "A single patch"})
    return method_buttons(extra)


def _explorer(told: dict[str, Any]) -> str:
    """The picture beside its segments, what is said of the chosen one, and all that changes what is seen of it."""
    if not told["segments"]:
        return f'<img class="picture" src="{told["picture"]["address"]}" alt="The picture">'
    rows = "".join(
        f'<button class="object" aria-pressed="false" data-segment="{number}" style="--tint: {one["tint"]}">'
        f'<i></i><span>{escape(one["name"])}</span><span class="number">{shown_score(one["score"])}</span>'
        f'<span class="bar"><i style="--share: {one["score"]:.1%}"></i></span></button>'
        for number, one in enumerate(told["segments"])
    )
    heads = max((layer["heads"] for layer in told["attention"]), default=0) > 1
    knobs = []
    if told["attention"] or len(told["masks"]) > 1:
        knobs.append(("layer", "Layer"))
    if heads:
        knobs.append(("head", "Head"))
    sliders = "".join(
        f'<label for="{name}">{title}</label><input type="range" id="{name}"><output id="{name}-name" for="{name}"></output>'
        for name, title in knobs
    )
    keys = "<kbd>L</kbd> layer &ensp; " if knobs else ""
    keys += "<kbd>H</kbd> head &ensp; <kbd>M</kbd> mean &ensp; " if heads else ""
    return f"""<section class="explorer" aria-label="Explorer">
<div class="classes objects live" id="segments" role="group" aria-label="Segments">{rows}</div>
<div class="stage live">
<div class="scene"><canvas id="stage" role="img" aria-label="The picture with heat"></canvas><svg id="marks"
 aria-hidden="true"></svg></div>
<p class="legend" id="legend"></p>
</div>
<div class="panel live">
<div class="choices" role="group" aria-label="Method">{method_buttons(told["methods"])}{_extra_buttons(told)}</div>
<p class="saying" id="saying" aria-live="polite"></p>
<div class="scale quiet"><span id="low"></span><i id="ramp"></i><span id="high"></span></div>
<div class="knobs">{sliders}
<label for="strength">Heat</label><input type="range" id="strength" min="0" max="100" value="80"><span></span>
</div>
<p class="keys"><kbd>S</kbd> segment &ensp; <kbd>E</kbd> method &ensp; {keys}with <kbd>Shift</kbd> the one before<br>
<kbd>Esc</kbd> all segments</p>
</div>
</section>"""


def _strip(told: dict[str, Any]) -> str:
    """Room for every layer at once: where was looked, and what was drawn."""
    if not told["segments"]:
        return ""
    who = {"queries": "its query", "patches": "it"}.get(told["kind"], "it")
    parts = []
    if told["attention"]:
        parts.append(
            page.section(
                f"Where {who} looked, layer by layer",
                '<p>What <b class="who">the segment</b> took from the picture, from the first layer to the last. Each map '
                "is as bright as its own greatest value. Choose one to see it large.</p>",
                '<div class="layers live" id="layers" role="group" aria-label="Layers"></div>',
            )
        )
    if len(told["masks"]) > 1:
        parts.append(
            page.section(
                "How its mask came about, layer by layer",
                '<p>How likely each place was to be of <b class="who">the segment</b>, every time its query drew, from '
                "black for never to bright for surely, and what the query took itself for.</p>",
                '<div class="layers live" id="masks" role="group" aria-label="Masks"></div>',
            )
        )
    if any(layer["others"] is not None for layer in told["attention"]):
        parts.append(
            page.section(
                "The segments it looked at",
                '<p id="looked" aria-live="polite"></p>',
                '<ul class="bars live" id="others"></ul>',
            )
        )
    return "\n".join(parts)


def _beyond_methods(told: dict[str, Any]) -> list[tuple[str, str]]:
    """What is said of what is looked at beside the methods."""
    rows = [("Its mask", "Each place's heat is how likely it is the segment's own, from 0 to 1.")]
    if told["patches"]:
        rows.append(("A single patch", "Each place's heat is how much the patch pointed at took from it, in one layer."))
    return rows


def _footer(look: SegmentLook) -> str:
    """How to read all this, and what not to read into it."""
    sentences = [
        "Attention is not importance. It says what is mixed, not whether the answer needs it. Relevance, Grad-CAM and "
        "gradient × input ask what a score hangs on: of a class the mean of its logit over its pixels, of a query the logit "
        "of its class. They are estimates: methods differ, and none is the truth.",
    ]
    if look.gaze.picture_first:
        sentences.append(
            "Attention is masked here: a query sees only what its mask of the layer before covers, on maps of several sizes "
            "in turn (Cheng et al. 2022, equation 2)."
        )
    if look.gaze.classes:
        sentences.append(
            "In the last layers the tokens of classes stand beside the patches: there a segment's heat is what its class's "
            "token took. In the layers before it is the mean of what its patches took."
        )
    if look.gaze.kind != "none":
        sentences.append("Layers and heads are counted from 0, as in Python.")
    return f"<footer><h2>How to read this page</h2>{''.join(map(page.paragraph, sentences))}</footer>"
