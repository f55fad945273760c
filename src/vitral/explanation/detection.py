"""Explanations of what a detector found: one for each object, by the way it was found.

    for one in explain_objects(predictor, "street.jpg", method="relevance", threshold=0.7):
        print(one.label, one.score, one.peak)
        one.draw().save(f"{one.place}.png")

What is explained of an object is the logit of its class in the row that it was read from: its query, anchor or region. Which
cells become queries, and where regions lie, is chosen and not computed; no gradient tells of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex, cast

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.image import PictureSource
from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.evidence import Evidence, Inquiry, found_by_gradients, plain
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.look import Look, gaze_of, look_at
from vitral.explanation.object_relevance import relevance_of_queries, relevance_of_token
from vitral.explanation.object_result import ObjectExplanation
from vitral.explanation.prepares import Prepares
from vitral.models.output import DenseOutput, RegionOutput, SetOutput
from vitral.models.record import Record

__all__ = [
    "OBJECT_METHODS",
    "ObjectMethod",
    "ObjectTarget",
    "check_method",
    "chosen_places",
    "explain_look",
    "explain_objects",
    "fitting_methods",
    "usual_method",
]

ObjectTarget = SupportsIndex | str | Iterable[SupportsIndex | str] | None
"""Which objects to explain: one by its place among those that were found, all of a class by its name, some of these, or
all."""


@dataclass(frozen=True, kw_only=True)
class ObjectMethod:
    """A way to find out what mattered for an object.

    Attributes:
        title: its name as its authors write it.
        asks: what its heat is, as the end of "Each place's heat is …".
        fits: whether it finds in a network what it looks at.
        signed: whether negative heat speaks against the object's class.
        options: the names of its options.
        paper: where it was published.
    """

    title: str
    asks: str
    fits: Callable[[nn.Module], bool]
    signed: bool = False
    options: tuple[str, ...] = ()
    paper: str


def _has_map(model: nn.Module) -> bool:
    return hasattr(model, "backbone") or gaze_of(model).kind == "tokens"


OBJECT_METHODS: dict[str, ObjectMethod] = {
    "attention": ObjectMethod(
        title="Attention",
        asks="how much the object's query took from it, in one layer",
        fits=lambda model: gaze_of(model).kind != "none",
        options=("layer", "head"),
        paper="Carion et al. 2020; Zhu et al. 2021",
    ),
    "relevance": ObjectMethod(
        title="Relevance",
        asks="how much of it attention carried to the object's query where the class's score rises with that attention",
        fits=lambda model: gaze_of(model).kind in ("maps", "tokens"),
        paper="Chefer et al. 2021",
    ),
    "grad_cam": ObjectMethod(
        title="Grad-CAM",
        asks="how much it has of the channels with which the score of the object's class rises",
        fits=_has_map,
        options=("layer",),
        paper="Selvaraju et al. 2017",
    ),
    "gradient_times_input": ObjectMethod(
        title="Gradient × input",
        asks="its own value times how steeply the score of the object's class rises with it",
        fits=lambda model: True,
        signed=True,
        paper="Shrikumar et al. 2017",
    ),
}
"""Name → method."""


def fitting_methods(model: nn.Module) -> tuple[str, ...]:
    """The names of the methods that find in a network what they look at."""
    return tuple(name for name, method in OBJECT_METHODS.items() if method.fits(model))


def usual_method(model: nn.Module) -> str:
    """The method that is used where none is named: what follows attention, else what a query sees, else Grad-CAM."""
    fitting = fitting_methods(model)
    return next(name for name in ("relevance", "attention", "grad_cam", "gradient_times_input") if name in fitting)


def explain_objects(
    predictor: Prepares,
    picture: PictureSource,
    *,
    method: str | None = None,
    target: ObjectTarget = None,
    threshold: float | None = None,
    top_k: int | None = None,
    **options: Any,
) -> list[ObjectExplanation]:
    """Which parts of a picture mattered for each of the objects in it.

    Args:
        predictor: of a detector; see `pipelines.predictor.load`.
        picture: a path, address, bytes, file object, Pillow image, array or tensor.
        method: a key of `OBJECT_METHODS`; None for `usual_method`.
        target: see `ObjectTarget`.
        threshold: objects count whose score is above this; by default as the predictor has it.
        top_k: how many objects count at most, the best ones; by default as the predictor has it.
        **options: of the method. `layer`: for "attention" the number of a layer of the decoder (of YOLOS, of the network),
            by default the last; for "grad_cam" the name of a module that gives a map, by default the end of the backbone
            (of YOLOS, the tokens that the last attention reads). `head`: for "attention" one of the heads, or "mean", "max".

    Returns:
        One for each object, best first; none where nothing was found.

    Raises:
        PictureError: the picture cannot be read.
        UnknownNameError: no such method, option, layer or class.
        UsageError: the model is no detector, has nothing that the method looks at, or no such object was found.
    """
    chosen = check_method(predictor.model, method, options)
    look = look_at(predictor, picture, threshold=threshold, top_k=top_k)
    return explain_look(predictor, look, (chosen,), chosen_places(look, target, predictor.record), options)[chosen]


def check_method(model: nn.Module, method: str | None, options: dict[str, Any]) -> str:
    """The method, if a network has what it looks at and it has these options."""
    name = usual_method(model) if method is None else method
    if name not in OBJECT_METHODS:
        raise UnknownNameError("method for objects", name, OBJECT_METHODS)
    for option in options:
        if option not in OBJECT_METHODS[name].options:
            raise UnknownNameError(f"option of the {name} method", option, OBJECT_METHODS[name].options)
    if not OBJECT_METHODS[name].fits(model):
        others = ", ".join(map(repr, fitting_methods(model)))
        raise UsageError(f"The method {name!r} finds nothing to look at in a {type(model).__name__}. These work: {others}.")
    return name


def chosen_places(look: Look, target: ObjectTarget, record: Record) -> list[int]:
    """The places of the objects that are meant, each once.

    Raises:
        UnknownNameError: the record knows no class of that name.
        UsageError: no such object was found.
    """
    if target is None:
        return list(range(len(look)))
    alone = isinstance(target, str) or as_integer(target) is not None or not isinstance(target, Iterable)
    found: list[int] = []
    for one in [target] if alone else cast(Iterable[Any], target):
        if isinstance(one, str):
            asked = record.label(record.index(one))
            places = [place for place, label in enumerate(look.detections.labels) if label == asked]
            if not places:
                there = ", ".join(map(repr, dict.fromkeys(look.detections.labels))) or "nothing"
                raise UsageError(
                    f"No {asked!r} was found in {look.detections.name}, but {there}. A lower threshold finds more."
                )
            found += places
        else:
            number = as_integer(one)
            if number is None or not -len(look) <= number < len(look):
                raise UsageError(
                    f"There is no object {one!r} in {look.detections.name}: {len(look)} were found, numbered from 0 for the "
                    "best one. A lower threshold finds more."
                )
            found.append(number % len(look))
    return list(dict.fromkeys(found))


def explain_look(
    predictor: Prepares,
    look: Look,
    methods: Sequence[str],
    places: Sequence[int],
    options: dict[str, Any] | None = None,
    *,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, list[ObjectExplanation]]:
    """Explanations of objects by several methods, which share one way through the network and one way back per object.

    Args:
        predictor: the one that looked.
        look: what it found.
        methods: keys of `OBJECT_METHODS` that fit.
        places: of the objects.
        options: of the methods; each takes those it has.
        on_step: called with the place of each object before the way back.
    """
    told = options or {}
    own = {name: {one: told[one] for one in OBJECT_METHODS[name].options if one in told} for name in methods}
    found: dict[str, list[ObjectExplanation]] = {name: [] for name in methods}
    back = [name for name in methods if name != "attention"]
    reasons = _reasons(predictor, look, back, places, own, on_step) if back and places else iter(())
    for place in places:
        heats = {"attention": Evidence(look.heat(place, **own["attention"]), look.cell)} if "attention" in own else {}
        heats |= next(reasons) if back else {}
        for name in methods:
            found[name].append(_explained(predictor, look, place, name, heats[name], own[name]))
    return found


def _explained(
    predictor: Prepares, look: Look, place: int, method: str, heat: Evidence, options: dict[str, Any]
) -> ObjectExplanation:
    detections = look.detections
    rows, columns = heat.values.shape
    return ObjectExplanation(
        name=detections.name,
        method=method,
        heat=heat.values,
        cell=heat.cell,
        geometry=TokenGeometry((), (rows, columns), heat.cell, look.seen.frame),
        target=int(detections.indices[place]),
        label=detections.labels[place],
        score=float(detections.scores[place]),
        options=options,
        signed=OBJECT_METHODS[method].signed,
        picture=look.seen.picture,
        place=place,
        query=int(cast(np.ndarray, detections.queries)[place]),
        box=detections.boxes[place],
        look=look,
    )


def _reasons(
    predictor: Prepares,
    look: Look,
    methods: Sequence[str],
    places: Sequence[int],
    options: dict[str, dict[str, Any]],
    on_step: Callable[[int], None] | None,
) -> Iterator[dict[str, Evidence]]:
    """Heats by the methods that need gradients, object by object."""
    model, gaze = predictor.model, look.gaze

    def score_of(place: int, output: Any) -> Float[Tensor, ""]:
        if on_step is not None:
            on_step(place)
        return _score(output, look, place)

    inquiry = Inquiry(
        seen=look.seen,
        methods=methods,
        scores=[partial(score_of, place) for place in places],
        what="object",
        attentions=(*gaze.encoder, *gaze.among, *gaze.across),
        relevance=lambda number, taken, _: _relevance(look, places[number], taken),
        map_of=list(cast(Any, model).backbone.blocks)[-1] if hasattr(model, "backbone") else None,
        layer=options.get("grad_cam", {}).get("layer"),
    )
    return found_by_gradients(predictor, inquiry)


def _score(output: Any, look: Look, place: int) -> Float[Tensor, ""]:
    """The logit of an object's class in the row it was read from."""
    if not isinstance(output, SetOutput | DenseOutput | RegionOutput):
        raise UsageError(f"Objects are explained in outputs of the house's kinds; a {type(output).__name__} came.")
    detections = look.detections
    row, kind = int(cast(np.ndarray, detections.queries)[place]), int(detections.indices[place])
    return output.logits[0, row, kind].float()


def _relevance(look: Look, place: int, taken: Mapping[str, Float[Tensor, "1 n m"]]) -> Evidence:
    """The relevance of every cell for an object, by what each attention carries."""
    gaze, query = look.gaze, int(cast(np.ndarray, look.detections.queries)[place])
    if gaze.kind == "tokens":
        row = relevance_of_token([taken[name][0] for name in gaze.among], gaze.before + query)
    else:
        pairs = [(taken[one][0], taken[other][0]) for one, other in zip(gaze.among, gaze.across, strict=True)]
        row = relevance_of_queries([taken[name][0] for name in gaze.encoder], pairs)[query]
    grid = look.grid
    return Evidence(plain(row[-grid[0] * grid[1] :].unflatten(0, grid)), look.cell)
