"""One page about one picture: every attention map to play with, and why the model says what it says.

The page is one file that fetches nothing. Attention maps of all layers and heads travel in it as eight-bit numbers and are
drawn in the browser by `report.js`; what can be said without them (classes, charts, texts) is plain HTML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import PurePath
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vitral.base import page
from vitral.base.colours import COLOUR_MAPS, ColourMap, stretched
from vitral.base.frame import Seen
from vitral.base.image import Picture, PictureSource
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.embeddings import PositionSimilarity, position_similarity
from vitral.explanation.explain import explain, target_class
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.methods import DEFAULT, METHODS, attends, check_fits, title_of
from vitral.explanation.packing import Store, membership, pack_maps
from vitral.explanation.prepares import Prepares, check_predictor
from vitral.explanation.result import Explanation
from vitral.explanation.statistics import head_distances
from vitral.models.output import EncoderOutput
from vitral.tasks.classification.result import Classification, Options, decode

__all__ = ["called", "explanation_page"]

_LONGEST = 720  # pixels of the picture on the page
_SMALL = 96  # pixels: what is no larger is enlarged with hard edges, and kept without loss
_COLOURS: dict[str, ColourMap] = {"heat": "inferno", "signed": "RdBu_r", "likeness": "viridis"}
_ATLAS = 16  # rows or columns of position maps that an eye can still tell apart


def explanation_page(
    predictor: Prepares,
    picture: PictureSource,
    *,
    top_k: int = 5,
    method: str = DEFAULT,
    target: int | str | None = None,
    budget: int = 8_000_000,
    on_step: Callable[[str], None] | None = None,
    **options: Any,
) -> str:
    """A page, one HTML file that needs no network, about what a model sees in a picture.

    Args:
        predictor: see `pipelines.predictor.load`.
        picture: a path, address, bytes, file object, Pillow image, array or tensor.
        top_k: how many of the best classes are explained; a model without classes explains none.
        method: how; a key of `explanation.methods.METHODS`. Classes are explained by relevance as well, the method that
            follows attention through all layers, as two methods seldom agree; by saliency where there is no attention.
        target: a class to be explained before the best ones, by its place or its name.
        budget: how many numbers of attention maps the page may hold, a byte each before they are packed. Where there
            are more, patches are gathered to blocks, and the page says so.
        on_step: called with a few words before each part of the work.
        **options: of the method.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        PictureError: the picture cannot be read.
        UnknownNameError: no such method, option or class.
        UsageError: a number out of its range, a model whose attention cannot be looked at, or maps that are not finite.
    """
    check_predictor(predictor)
    step = on_step or (lambda _: None)
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    METHODS[method].check(method, options)
    check_fits(method, predictor.model)
    chosen = Options(top_k=top_k)
    step("looking")
    pixels, seen = predictor.prepare(picture)
    if seen.picture is None:
        raise UsageError("The predictor did not keep the picture, which the page shows.")
    batch = pixels[None].to(predictor.device, predictor.dtype)
    store = Store()
    output, maps = pack_maps(predictor, batch, budget, store)
    classes = None if output.logits is None else decode(output, [seen], predictor.record, chosen)[0]
    heats = []
    for name, place in _questions(predictor, method, target, classes):
        step(title_of(name) if place is None else f"{title_of(name)}: {predictor.record.label(place)}")
        own = options if name == method else {}
        heats.append(explain(predictor, seen.picture, method=name, target=place, **own))
    step("positions and distances")
    positions, distance = _positions(predictor, output.grid, maps), _distance(predictor, batch)
    geometry = TokenGeometry.of(predictor.model, tuple(maps["grid"]), seen.frame)
    told = {
        "prefix": [_spoken(name) for name in cast(Any, predictor.model).config.prefix_names],
        "picture": _shown(seen, seen.picture, geometry, grey=batch.shape[1] == 1),
        **maps,
        "heats": [_heat(one, store) for one in heats],
        "positions": None if positions is None else _likeness(positions, store),
        "colours": {use: store.add(COLOUR_MAPS[colours]) for use, colours in _COLOURS.items()},
    }
    step("writing")
    return page.document(
        f"{called(seen.name)}, as the model sees it",
        '<noscript><p class="asleep">The maps are drawn by a script inside this page; please allow it.</p></noscript>',
        '<p class="asleep" id="asleep"></p>',
        _explorer(told, _classes(classes)),
        _wall() if told["layers"] else "",
        _reasons(heats),
        "" if distance is None else _distances(distance),
        "" if positions is None else _likenesses(positions, told["positions"]),
        _footer(told),
        page.data_block("told", told),
        f'<script type="application/octet-stream" id="packed">{store.packed()}</script>',
        lead=_lead(predictor, batch, output, told),
        style=_resource("report.css"),
        script=_resource("report.js"),
    )


def _questions(
    predictor: Prepares, method: str, target: int | str | None, classes: Classification | None
) -> list[tuple[str, int | None]]:
    """What is to be explained, by which method: each class, and once what knows no class."""
    places: list[int] = [] if classes is None else classes.indices.tolist()
    if target is not None and (classes is None or not METHODS[method].needs_target):
        who = "The model has no classes" if classes is None else f"The method {method!r} knows no class"
        raise UsageError(f"{who}; leave target={target!r} out.")
    if target is not None:
        wanted = target_class(predictor.record, cast(Any, predictor.model).config.num_classes, target)
        places = [wanted, *(place for place in places if place != wanted)]
    # Beside it a method that looks another way: through all layers' attention, or, where there is none, at the pixels.
    looks = attends(predictor.model)
    unknowing: list[tuple[str, int | None]] = [("rollout", None)] if looks else []
    if not METHODS[method].needs_target:
        return [*((one, None) for one in dict.fromkeys((method, *(name for name, _ in unknowing))))]
    methods = dict.fromkeys((method, "relevance" if looks else "saliency"))
    return [*((one, place) for one in methods for place in places), *unknowing]


def _heat(explanation: Explanation, store: Store) -> dict[str, Any]:
    """An explanation's heat in eight bits, and where it lies in the picture."""
    heat = explanation.clipped
    levels = np.rint(255 * stretched(heat, signed=explanation.signed)).astype(np.uint8)
    size = np.array([heat.shape[1] * explanation.cell[1], heat.shape[0] * explanation.cell[0]])
    corners = explanation.geometry.frame.to_picture(np.stack([np.zeros(2), size]))
    return {"levels": store.add(levels), "signed": explanation.signed, "over": corners.ravel().tolist()}


def _positions(predictor: Prepares, grid: tuple[int, int], maps: dict[str, Any]) -> PositionSimilarity | None:
    """How similar positions are to the model; None where it tells none, or those of another grid than the page's."""
    if maps["stages"] or list(grid) != maps["grid"]:
        return None
    try:
        return position_similarity(predictor.model, grid)
    except UsageError:
        return None


def _distance(predictor: Prepares, batch: Float[Tensor, "1 c y x"]) -> list[Float[np.ndarray, " _"]] | None:
    """How far every head of every layer looks, in input pixels; None where one looks at no patch, or none is there."""
    if not attends(predictor.model):
        return None
    try:
        return head_distances(predictor.model, batch)
    except UsageError:
        return None


def _likeness(positions: PositionSimilarity, store: Store) -> dict[str, Any]:
    """Position similarity in eight bits, averaged over blocks where the grid is fine."""
    size = -(-max(positions.grid) // _ATLAS)
    members = membership(positions.grid, size).numpy()
    members = members / members.sum(1, keepdims=True)
    patches = positions.grid[0] * positions.grid[1]
    values = members @ positions.values.reshape(patches, patches) @ members.T
    levels = np.rint(255 * stretched(values)).astype(np.uint8)
    return {"levels": store.add(levels), "blocks": size, "low": float(values.min()), "high": float(values.max())}


def _shown(seen: Seen, picture: Picture, geometry: TokenGeometry, *, grey: bool) -> dict[str, Any]:
    """The picture on the page: what the model saw of it, with some of what it did not see around that."""
    height, width = seen.frame.picture
    rectangles = geometry.rectangles
    inside = np.concatenate([rectangles[0, :2], rectangles[-1, 2:]])
    margin = np.tile((inside[2:] - inside[:2]) / 4, 2) * [-1, -1, 1, 1]
    beyond = np.concatenate([np.minimum(inside[:2], 0), np.maximum(inside[2:], [width, height])])
    view = np.concatenate([np.maximum(beyond[:2], (inside + margin)[:2]), np.minimum(beyond[2:], (inside + margin)[2:])])
    box = np.clip(view, 0, [width, height, width, height])
    sides = box[2:] - box[:2]
    # What a small network sees is shown as it sees it, every pixel a square; else the picture at its own resolution.
    small = max(seen.frame.input) <= _SMALL
    scale = np.minimum(1.0, seen.frame.scale[::-1] if small else _LONGEST / sides.max())
    left, top, right, bottom = picture.box or (0, 0, *picture.image.size)
    across, down = (right - left) / width, (bottom - top) / height
    cut = (left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down)
    image = picture.image.convert("L") if grey else picture.image
    wide, high = np.maximum(1, np.rint(sides * scale)).astype(int).tolist()
    image = image.resize((wide, high), Image.Resampling.BOX if small else Image.Resampling.LANCZOS, box=cast(Any, cut))
    hard = small or max(wide, high) <= _SMALL
    return {
        "address": page.picture_address(image, photo=not hard),
        "smooth": not hard,
        "view": view.tolist(),
        "box": box.tolist(),
        "seen": inside.tolist(),
        "origin": rectangles[0, :2].tolist(),
        "patch": (rectangles[0, 2:] - rectangles[0, :2]).tolist(),
    }


# -- what is written on the page --------------------------------------------------------------------------------------


def _resource(name: str) -> str:
    return files("vitral.explanation").joinpath(name).read_text("utf-8")


def called(name: str) -> str:
    """A picture's name without the folders before it; names that are no valid Unicode are made so."""
    if re.fullmatch(r"<[\w ]+>", name):  # it came as bytes, an array, …
        return "The picture"
    path = unquote(urlsplit(name).path) if "://" in name else name
    return (PurePath(path).name or "picture").encode(errors="replace").decode()


def _spoken(prefix: str) -> str:
    """A token before the patches, in a sentence: "the class token", "register 2"."""
    return prefix if prefix[-1:].isdigit() else f"the {prefix} token"


def _named(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _lead(predictor: Prepares, batch: Float[Tensor, "1 c y x"], output: EncoderOutput, told: dict[str, Any]) -> str:
    """The model and its sizes, in two sentences."""
    record = predictor.record
    model = record.architecture or PurePath(record.source).name or type(predictor.model).__name__
    height, width = batch.shape[2:]
    rows, columns = output.grid
    if not told["layers"]:
        return (
            f"{model} sees {height} × {width} pixels and makes a last map of {rows} × {columns} cells of them. Nothing in "
            "it attends to anything, so this page shows which places its answers hang on."
        )
    pools = sum(layer["short"] == "pool" for layer in told["layers"])
    heads = sorted({layer["heads"] for layer in told["layers"] if layer["short"] != "pool"})
    pool = " and an attention pool" if pools else ""
    layers = _named(len(told["layers"]) - pools, "layer")
    of_heads = _named(heads[0], "head") if len(heads) == 1 else f"{heads[0]} to {heads[-1]} heads"
    if told["stages"]:
        return (
            f"{model} sees {height} × {width} pixels in stages, the last of {rows} × {columns} cells. In {layers} of "
            f"{of_heads}{pool}, each token decides how much to take from those it sees."
        )
    return (
        f"{model} sees {height} × {width} pixels in {rows} × {columns} patches. In {layers} of {of_heads}{pool}, each patch "
        "decides how much to take from every other."
    )


def _classes(classes: Classification | None) -> str:
    """The best classes, each with a bar as long as its probability."""
    if classes is None:
        return ""
    rows = "".join(
        f'<li><span>{escape(label)}</span><span class="number">{_score(score)}</span>{_bar(score)}</li>'
        for label, score in zip(classes.labels, classes.scores.tolist(), strict=True)
    )
    return f'<ol class="classes">{rows}</ol>'


def _bar(score: float) -> str:
    return f'<span class="bar"><i style="--share: {min(max(score, 0.0), 1.0):.1%}"></i></span>'


def _score(score: float) -> str:
    return f"{score:.1%}".replace("%", "\u00a0%") if 0 <= score <= 1 else f"{score:.2f}"


def _explorer(told: dict[str, Any], classes: str) -> str:
    """The picture beside the classes, what is said of it, and everything that changes what is seen on it."""
    remarks = "".join(page.paragraph(remark, kind="quiet") for remark in _remarks(told))
    if not told["layers"]:
        shown = f'<img class="picture" src="{told["picture"]["address"]}" alt="The picture">'
        return (
            f'<section class="explorer" aria-label="The picture and its classes">{classes}<div class="stage">{shown}'
            f"{remarks}</div></section>"
        )
    strength = 80 if told["picture"]["smooth"] else 45  # a picture of few pixels is not recognised under much heat
    return f"""<section class="explorer" id="explorer" aria-label="Explorer">
{classes}
<div class="stage live">
<canvas class="picture" id="stage" tabindex="0" role="application" aria-label="The picture, cut into patches. Arrow keys move
 from patch to patch, Enter holds one." aria-describedby="saying"></canvas>
{remarks}
</div>
<div class="panel live">
<p class="saying" id="saying" aria-live="polite"></p>
<p class="hint quiet" id="hint"></p>
{_scale("inferno", "0", '<span id="peak"></span>')}
<div class="tokens" id="tokens" role="group" aria-label="Tokens before the patches"></div>
<div class="knobs">
<label for="layer">Layer</label><input type="range" id="layer"><output id="layer-name" for="layer"></output>
<label for="head">Head</label><input type="range" id="head"><output id="head-name" for="head"></output>
<label for="strength">Heat</label><input type="range" id="strength" min="0" max="100" value="{strength}"><span></span>
<label for="lines">Grid</label><input type="checkbox" id="lines" checked>
</div>
<p class="keys"><kbd>←</kbd> <kbd>↑</kbd> <kbd>↓</kbd> <kbd>→</kbd> patch &ensp; <kbd>Enter</kbd> hold &ensp;
<kbd>Esc</kbd> let go<br>
<kbd>L</kbd> next layer &ensp; <kbd>H</kbd> next head &ensp; with <kbd>Shift</kbd> the one before<br>
<kbd>M</kbd> mean of heads &ensp; <kbd>G</kbd> grid</p>
</div>
</section>"""


def _remarks(told: dict[str, Any]) -> list[str]:
    """What a reader should know of the picture shown."""
    asking, asked = told["blocks"]["asking"], told["blocks"]["asked"]
    found = []
    (left, top, right, bottom), view = told["picture"]["seen"], told["picture"]["view"]
    if view[0] < left - 0.5 or view[1] < top - 0.5 or view[2] > right + 0.5 or view[3] > bottom + 0.5:
        found.append("What is faded was cropped away before the model saw the picture.")
    if told["stages"]:
        *others, last = (f"{rows} × {columns}" for rows, columns in told["stages"])
        rows, columns = told["grid"]
        found.append(
            f"The network lays {', '.join(others)} and {last} cells over the picture, one stage after the other. All maps "
            f"are shown on {rows} × {columns}: finer ones are summed, coarser ones spread evenly."
        )
    if asking > 1:
        summed = f" and summed over {asked} × {asked} patches that are asked" if asked > 1 else ""
        found.append(f"To keep this page small, attention is averaged over {asking} × {asking} patches that ask{summed}.")
    return found


def _scale(colours: ColourMap, low: str, high: str) -> str:
    """A strip of colours between the texts of its ends."""
    stops = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in COLOUR_MAPS[colours][::15].tolist())
    gradient = f'<i style="background: linear-gradient(90deg, {stops})"></i>'
    return f'<div class="scale quiet"><span>{low}</span>{gradient}<span>{high}</span></div>'


def _wall() -> str:
    """Room for the same token at every layer and head."""
    return page.section(
        "Every layer, every head",
        '<p>The same for <b id="walled">the patch</b>, from the first layer (left) to the last. Each map is as bright as '
        "its own greatest value. Choose one to see it large.</p>",
        '<div class="walled live">',
        '<div class="wall" id="wall" role="group" aria-label="Maps of all layers and heads"></div>',
        "</div>",
    )


def _reasons(heats: Sequence[Explanation]) -> str:
    """Heat for each class, method by method, and what knows no class."""
    groups: dict[str, list[str]] = {}
    for place, one in enumerate(heats):
        groups.setdefault(one.method, []).append(_card(place, one))
    parts = []
    for name, cards in groups.items():
        method = METHODS[name]
        colours = "Red speaks for the class, blue against it." if method.signed else "The brighter, the more."
        unknowing = "" if method.needs_target else " It knows no class."
        told = f"{method.title} ({method.paper}): each place's heat is {method.asks}. {colours}{unknowing}"
        parts += [page.paragraph(told), f'<div class="cards live">{"".join(cards)}</div>']
    classes = any(one.target is not None for one in heats)
    return page.section("Why these classes" if classes else "From the answer back to the patches", *parts)


def _card(place: int, explanation: Explanation) -> str:
    title = title_of(explanation.method)
    score = explanation.score
    number = "" if score is None else f'<span class="number">{_score(score)}</span>{_bar(score)}'
    what = f"Heat on the picture: {title}" + (f" for {explanation.label}" if explanation.label else "")
    return (
        f'<figure><canvas class="picture" data-heat="{place}" role="img" aria-label="{escape(what)}"></canvas>'
        f"<figcaption><b>{escape(explanation.label or title)}</b>{number}</figcaption></figure>"
    )


def _distances(distance: list[Float[np.ndarray, " _"]]) -> str:
    """A chart of how far each head looks: a dot per head over its layer, and a line through the means."""
    layers, every_one = len(distance), np.concatenate(distance)
    width, height, left, right, top, bottom = 680, 260, 58, 12, 12, 34
    most = page.rounded_up(float(every_one.max()) or 1.0)
    step = (width - left - right) / layers
    x = [left + step * (layer + 0.5) for layer in range(layers)]
    bottom_line = height - bottom
    rise = (bottom_line - top) / most
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    field = {"left": left, "right": width - right, "top": top, "bottom": bottom_line}
    parts = [page.rules(0, most, form=".3g", shares=quarters, **field)]
    every = -(-layers // 12)
    parts += [
        f'<text x="{x[layer]:.1f}" y="{height - 5}" text-anchor="middle">{layer}</text>' for layer in range(0, layers, every)
    ]
    parts.append(f'<text x="{left - 8}" y="{height - 5}" text-anchor="end">layer</text>')
    means = " ".join(
        f"{at:.1f},{bottom_line - rise * float(heads.mean()):.1f}" for at, heads in zip(x, distance, strict=True)
    )
    parts.append(f'<polyline points="{means}"/>')
    parts += [
        f'<circle cx="{x[layer]:.1f}" cy="{bottom_line - rise * far:.1f}" r="4.5" data-layer="{layer}" '
        f'data-head="{head}"><title>Layer {layer}, head {head}: {far:.1f} pixels</title></circle>'
        for layer, heads in enumerate(distance)
        for head, far in enumerate(heads.tolist())
    ]
    said = (
        f"Mean attention distance from {every_one.min():.1f} to {every_one.max():.1f} pixels over {_named(layers, 'layer')}"
    )
    return page.section(
        "How far each head looks",
        page.paragraph(
            "The mean distance between a patch and what it attends to, in pixels of the model's input; a dot for each head "
            "of each layer, the line is their mean. Heads that look near work like a convolution; heads that look far bring "
            "together what lies apart. (Dosovitskiy et al. 2021, figure 7; here for this picture alone.)"
        ),
        f'<figure class="chart dots"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}">',
        *parts,
        "</svg></figure>",
    )


def _likenesses(positions: PositionSimilarity, told: dict[str, Any]) -> str:
    """The grid of maps of position similarity, and one of them larger."""
    blocks, low, high = (told[name] for name in ("blocks", "low", "high"))
    gathered = f" Each map stands for {blocks} × {blocks} patches." if blocks > 1 else ""
    what = {
        "absolute": "Before any layer, each patch is told where it lies by a vector that is added to it. Each small map is "
        "one patch's vector compared with all others (Dosovitskiy et al. 2021, figure 7).",
        "rotary": "Queries and keys are turned by the patch's place. Each small map shows how much of the product of a "
        "query and an equal key is left between one patch and all others (Su et al. 2021).",
        "relative_bias": "A learned number for each way from patch to patch is added before the softmax. Each small map "
        "shows it from one patch to all others (Bao et al. 2022).",
    }[positions.kind]
    return page.section(
        "What it knows of places",
        page.paragraph(f"{what}{gathered}"),
        f"""<div class="likeness live">
<div class="atlas"><canvas id="atlas" tabindex="0" role="application" aria-label="{escape(positions.title)}: a map for each
 patch. Arrow keys move from map to map." aria-describedby="alike"></canvas><div class="chosen" id="chosen"></div></div>
<figure><canvas id="likeness" role="img" aria-label="The chosen map, larger"></canvas>
{_scale("viridis", _signed(low), _signed(high))}
<figcaption><b>{escape(positions.title)}</b><br><span class="quiet">{escape(positions.label)}.
<span id="alike" aria-live="polite"></span></span></figcaption></figure>
</div>""",
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _footer(told: dict[str, Any]) -> str:
    """How to read all this, and what not to read into it."""
    if not told["layers"]:
        alone = "The heat of a class is an estimate of what its score hangs on: methods differ, and none is the truth."
        return f"<footer><h2>How to read this page</h2>{page.paragraph(alone)}</footer>"
    sentences = [
        "An attention map is one row of a softmax: what share each token has in what the asking token takes in, at one "
        "layer and head. Shares add up to 100 % with those of the tokens before the patches, which lie nowhere in the "
        "picture.",
        "Attention is not importance. It says what is mixed, not whether the answer needs it; for that there is the heat of "
        "the classes, which is itself an estimate: methods differ, and none is the truth.",
        "Large networks and late layers often heap attention on a few patches of background, which they use to keep "
        "things in (Darcet et al. 2024). That is not where the object is.",
        "The maps are exact softmax values, rounded to 8 bits on a square-root scale: the greatest share of a row is exact, "
        "the others are off by less than 1 % of it, small ones by far less. Colours of a map run from zero to its own "
        "greatest value.",
        "Layers, heads, rows and columns are counted from 0, as in Python.",
    ]
    return f"<footer><h2>How to read this page</h2>{''.join(map(page.paragraph, sentences))}</footer>"
