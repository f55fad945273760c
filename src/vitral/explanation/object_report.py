"""One page about one picture and the objects that a detector found in it: choose one, and see what it rests on.

The page is one file that fetches nothing. What the query of each object took from the picture travels in it as eight-bit
numbers, layer by layer and head by head, with the places it sampled, the other objects it looked at and what each method
says; `object_report.js` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import PurePath
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from vitral.base import page
from vitral.base.image import PictureSource
from vitral.base.numbers import whole_number
from vitral.errors import UsageError
from vitral.explanation.detection import (
    OBJECT_METHODS,
    ObjectTarget,
    check_method,
    chosen_places,
    explain_look,
    fitting_methods,
)
from vitral.explanation.look import Look, look_at
from vitral.explanation.packing import Store
from vitral.explanation.page_parts import (
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

__all__ = ["object_explanation_page"]


def object_explanation_page(
    predictor: Prepares,
    picture: PictureSource,
    *,
    method: str | None = None,
    target: ObjectTarget = None,
    threshold: float | None = None,
    top_k: int = 10,
    budget: int = 8_000_000,
    on_step: Callable[[str], None] | None = None,
    **options: Any,
) -> str:
    """A page, one HTML file that needs no network, about what a detector found in a picture, and why.

    Args:
        predictor: of a detector; see `pipelines.predictor.load`.
        picture: a path, address, bytes, file object, Pillow image, array or tensor.
        method: what is shown first; a key of `explanation.detection.OBJECT_METHODS`. The others that fit are there as well.
        target: the objects that are explained, by place or class; all that were found by default.
        threshold: objects count whose score is above this; by default as the predictor has it.
        top_k: how many objects at most, the best ones; each costs a way back through the network.
        budget: how many numbers of attention the page may hold, a byte each before they are packed. Where heads alone
            would be more, their mean is there without them.
        on_step: called with a few words before each part of the work.
        **options: of the method.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        PictureError: the picture cannot be read.
        UnknownNameError: no such method, option or class.
        UsageError: the model is no detector, a number out of its range, or no such object was found.
    """
    model, step = predictor.model, on_step or (lambda _: None)
    first = check_method(model, method, options)
    whole_number("budget", budget)
    step("looking")
    look = look_at(predictor, picture, threshold=threshold, top_k=top_k)
    if look.seen.picture is None:
        raise UsageError("The predictor did not keep the picture, which the page shows.")
    places = chosen_places(look, target, predictor.record)
    if first == "attention" and options and places:
        explain_look(predictor, look, [first], places[:1], options)  # it refuses layers and heads that are not there
    names = list(dict.fromkeys((first, *fitting_methods(model)))) if places else []
    labels = look.detections.labels
    reasons = explain_look(
        predictor,
        look,
        [name for name in names if name != "attention"],
        places,
        options,
        on_step=lambda place: step(f"{labels[place]} ({place + 1} of {len(labels)})"),
    )
    step("writing")
    store = Store()
    told = {
        "picture": picture_told(look.seen),
        "objects": _objects(look, places),
        "methods": [method_told(name, OBJECT_METHODS, reasons.get(name), store) for name in names],
        "first": _first(names, options),
        "attention": _attention(look, places, budget, store) if places and look.layers else None,
        "colours": colours_told(store),
    }
    return page.document(
        f"{called(look.seen.name)}: what was found, and why",
        '<noscript><p class="asleep">All this is drawn by a script inside this page; please allow it.</p></noscript>',
        '<p class="asleep" id="asleep"></p>',
        _explorer(told),
        _strip(told),
        methods_section(names, OBJECT_METHODS),
        _footer(look),
        page.data_block("told", told),
        f'<script type="application/octet-stream" id="packed">{store.packed()}</script>',
        lead=_lead(predictor, look, len(places)),
        style=resource("report.css") + resource("object_report.css"),
        script=resource("drawing.js") + resource("object_report.js"),
    )


# -- what the script is told -------------------------------------------------------------------------------------------


def _objects(look: Look, places: Sequence[int]) -> list[dict[str, Any]]:
    """The objects; where there are several of a class they are numbered, and each has a colour of its own."""
    detections, told = look.detections, []
    for number, place in enumerate(places):
        label = detections.labels[place]
        alike = [one for one in places if detections.labels[one] == label]
        told.append(
            {
                "place": place,
                "name": label if len(alike) == 1 else f"{label} {alike.index(place) + 1}",
                "score": float(detections.scores[place]),
                "box": [round(side, 2) for side in detections.boxes[place].tolist()],
                "tint": tint(number),
            }
        )
    return told


def _attention(look: Look, places: Sequence[int], budget: int, store: Store) -> dict[str, Any]:
    """What each object's query took from where, layer by layer: the mean of heads, then, if they fit, each head."""
    rows = list(places)
    heads, (down, across) = look.across[0].shape[1], look.grid
    each = len(rows) * look.layers * (heads + 1) * down * across <= budget
    maps = np.stack([one[rows] for one in look.across], axis=1)  # k l h i j
    shown = np.concatenate([maps.mean(2, keepdims=True), *([maps] if each else [])], axis=2)
    levels, peaks = eight_bits(shown)
    others = np.array([[look.others(place, layer)[rows] for layer in range(look.layers)] for place in rows])
    told = {
        "layers": look.layers,
        "heads": heads if each else 0,
        "grid": [down, across],
        "levels": store.add(levels),
        "peaks": store.add(peaks),
        "sums": store.add(shown.sum((3, 4))),
        "over": corners(look.seen.frame, look.grid, look.cell),
        "others": store.add(others.astype(np.float32)),
        "queries": [int(cast(np.ndarray, look.detections.queries)[place]) for place in rows],
        "kind": look.gaze.kind,
        "points": None,
    }
    if look.sampled:
        points = np.stack([np.stack([_points(look, place, layer) for layer in range(look.layers)]) for place in rows])
        told["points"] = store.add(points.astype(np.float32))
        told["levelled"] = int(look.sampled[0][0].weights.shape[1])
    return told


def _points(look: Look, place: int, layer: int) -> Float[np.ndarray, "n 4"]:
    """Every place: x, y, how much it counts of all heads together, and its map."""
    points = look.points(place, layer)
    heads, levels, count = points.weights.shape
    level = np.broadcast_to(np.arange(levels)[:, None], (heads, levels, count))
    return np.concatenate([points.xy, points.weights[..., None] / heads, level[..., None]], axis=-1).reshape(-1, 4)


def _first(names: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """What is seen when the page is opened."""
    layer, head = options.get("layer"), options.get("head")
    return {
        "method": names[0] if names else None,
        "layer": int(layer) if isinstance(layer, int) else -1,
        "head": int(head) if isinstance(head, int) else -1,
    }


# -- what is written on the page ---------------------------------------------------------------------------------------


def _lead(predictor: Prepares, look: Look, explained: int) -> str:
    """The model, what it found and how it looks, in two sentences."""
    record = predictor.record
    model = record.architecture or PurePath(record.source).name or type(predictor.model).__name__
    height, width = look.seen.frame.input
    found = f"{len(look)} object{'' if len(look) == 1 else 's'}"
    if not len(look):
        return f"{model} saw {height} × {width} pixels and was sure of nothing in them. A lower threshold finds more."
    left = "" if explained == len(look) else f", of which {explained} are explained here"
    how = {
        "maps": "Each is read from a query, which looked at the other queries and at every cell of the picture.",
        "samples": "Each is read from a query, which looked at the other queries and sampled a few places of the picture.",
        "tokens": "Each is read from a detection token, which went through all layers beside the patches.",
        "none": "Each is read from one place of its maps; there are no queries, so the page shows what its score hangs on.",
    }[look.gaze.kind]
    return f"{model} saw {height} × {width} pixels and found {found}{left}. {how}"


def _explorer(told: dict[str, Any]) -> str:
    """The picture beside its objects, what is said of the chosen one, and all that changes what is seen of it."""
    if not told["objects"]:
        return f'<img class="picture" src="{told["picture"]["address"]}" alt="The picture">'
    attention = told["attention"]
    rows = "".join(
        f'<button class="object" aria-pressed="false" data-object="{number}" style="--tint: {one["tint"]}">'
        f'<i></i><span>{escape(one["name"])}</span><span class="number">{shown_score(one["score"])}</span>'
        f'<span class="bar"><i style="--share: {one["score"]:.1%}"></i></span></button>'
        for number, one in enumerate(told["objects"])
    )
    knobs = layered = keys = ""
    if attention is not None:
        heads = (
            '<label for="head">Head</label><input type="range" id="head"><output id="head-name" for="head"></output>'
            if attention["heads"] > 1
            else ""
        )
        layered = (
            '<label for="layer">Layer</label><input type="range" id="layer"><output id="layer-name" for="layer"></output>'
            f"{heads}"
        )
        points = (
            '<label for="points">Places</label><input type="checkbox" id="points" checked><span></span>'
            if attention["points"] is not None
            else ""
        )
        knobs = f'<label for="lines">Others</label><input type="checkbox" id="lines" checked><span></span>{points}'
        keys = "<kbd>L</kbd> layer &ensp; " + ("<kbd>H</kbd> head &ensp; <kbd>M</kbd> mean &ensp; " if heads else "")
    return f"""<section class="explorer" aria-label="Explorer">
<div class="classes objects live" id="objects" role="group" aria-label="Objects">{rows}</div>
<div class="stage live">
<div class="scene"><canvas id="stage" role="img" aria-label="The picture with heat"></canvas><svg id="marks"
 aria-hidden="true"></svg></div>
<p class="legend" id="legend"></p>
</div>
<div class="panel live">
<div class="choices" role="group" aria-label="Method">{method_buttons(told["methods"])}</div>
<p class="saying" id="saying" aria-live="polite"></p>
<div class="scale quiet"><span id="low"></span><i id="ramp"></i><span id="high"></span></div>
<div class="knobs">{layered}
<label for="strength">Heat</label><input type="range" id="strength" min="0" max="100" value="80"><span></span>
{knobs}
</div>
<p class="keys"><kbd>O</kbd> object &ensp; <kbd>E</kbd> method &ensp; {keys}with <kbd>Shift</kbd> the one before<br>
<kbd>Esc</kbd> all objects</p>
</div>
</section>"""


def _strip(told: dict[str, Any]) -> str:
    """Room for every layer at once, and for the other objects that were looked at."""
    attention = told["attention"]
    if attention is None:
        return ""
    where = (
        "Where its token looked, layer by layer"
        if attention["kind"] == "tokens"
        else "Where its query looked, layer by layer"
    )
    return "\n".join(
        [
            page.section(
                where,
                '<p>What <b class="who">the object</b> took from the picture, from the first layer to the last. Each map is '
                "as bright as its own greatest value. Choose one to see it large.</p>",
                '<div class="layers live" id="layers" role="group" aria-label="Layers"></div>',
            ),
            page.section(
                "The objects it looked at",
                '<p id="looked" aria-live="polite"></p>',
                '<ul class="bars live" id="others"></ul>',
            ),
        ]
    )


def _footer(look: Look) -> str:
    """How to read all this, and what not to read into it."""
    sentences = [
        "Attention is not importance. It says what is mixed, not whether the answer needs it. Relevance, Grad-CAM and "
        "gradient × input ask what the score of the object's class hangs on; they are estimates: methods differ, and none "
        "is the truth.",
    ]
    if look.gaze.kind == "samples":
        sentences.append(
            "A dot is a place that the query sampled; its area is how much it counts, its colour the map it was looked up "
            "on, from fine to coarse. The heat is the same places brought to the cells of the finest map."
        )
    if look.gaze.kind == "maps":
        sentences.append(
            "Queries of a DETR often look at the ends of an object in late layers: where a box ends is what is still to be "
            "found out (Carion et al. 2020, figure 6)."
        )
    if look.gaze.kind != "none":
        sentences.append("Layers and heads are counted from 0, as in Python.")
    return f"<footer><h2>How to read this page</h2>{''.join(map(page.paragraph, sentences))}</footer>"
