"""A page about how good a segmenter is: one HTML file with numbers, confusions and the worst pictures; fetches nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8
from PIL import Image

from vitral.base import page
from vitral.base.colours import distinct_colours
from vitral.data.segments import SegmentSet
from vitral.errors import PictureError, UsageError
from vitral.tasks.detection.metrics import ObjectScores
from vitral.tasks.segmentation.metrics import MapScores, PanopticScores
from vitral.tasks.segmentation.result import Panoptic, Segmentation
from vitral.training.evaluate_segments import SegmentEvaluation, Worst
from vitral.training.object_page import object_evaluation_page
from vitral.training.page_parts import MANY, counted, left_out, ranked

__all__ = ["segment_evaluation_page"]

_CONFUSIONS = 20
_SIDE = 320  # pixels of a picture on the page
_COVER = 0.72  # of a colour over the picture
_WRONG, _UNKNOWN, _INK = (255, 128, 14), (96, 100, 108), (24, 32, 46)
_STYLE = """
.four { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .5rem; margin: .3rem 0 1.4rem; }
.four figure { margin: 0; } .four img { display: block; width: 100%; border-radius: 6px; }
.four figcaption { color: var(--quiet); font-size: .82rem; padding: .1rem .1rem; }
.worst { margin: 0; overflow-wrap: anywhere; font-weight: 650; } .worst small { color: var(--quiet); font-weight: 400; }
.kinds { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .88rem; margin: .6rem 0 1rem; }
.kinds i { display: inline-block; width: .9rem; height: .9rem; border-radius: 3px; margin-right: .35rem;
  vertical-align: -.1em; border: 1px solid var(--line); }
@media (max-width: 34rem) { .four { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""


def segment_evaluation_page(evaluation: SegmentEvaluation, pictures: SegmentSet | None = None, title: str = "") -> str:
    """A page about how good a segmenter is, one HTML file that needs no network.

    Of classes and of segments it shows the worst pictures beside what is true of them; of objects the worst mistakes, as
    `object_evaluation_page` does.

    Args:
        evaluation: what it said, held against what is there.
        pictures: the set it was asked about, for its mistakes to be shown.
        title: of the page; by default what segmenters are ranked by.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        UsageError: pictures of another set.
    """
    scores, value = evaluation.scores, 100 * evaluation.value
    if isinstance(scores, ObjectScores):
        told: Any = pictures
        return object_evaluation_page(evaluation, told, title)
    if pictures is not None:
        _check_set(evaluation, pictures)
    if isinstance(scores, MapScores):
        heading, said = f"{value:.1f} % mean IoU on {evaluation.data}", _of_pixels(scores, evaluation)
    else:
        heading, said = f"{value:.1f} PQ on {evaluation.data}", _of_segments(scores, evaluation)
    return page.document(
        title or heading,
        *said,
        "" if pictures is None else _worst(evaluation, pictures),
        left_out(evaluation.skipped),
        lead=f"{evaluation.model}, asked about the {counted(len(evaluation), 'picture')} of {evaluation.data}.",
        foot="This page fetches nothing.",
        style=_STYLE,
    )


def _check_set(evaluation: SegmentEvaluation, pictures: SegmentSet) -> None:
    """Refuse to show other pictures than those that were asked about."""
    known = all(one.place < len(pictures) and pictures.where(one.place) == one.said.name for one in evaluation.worst)
    if not known or evaluation.scores.classes != tuple(pictures.classes):
        raise UsageError(
            f"The evaluation is of {evaluation.data}, and its pictures are not those of {pictures.name}. "
            "Give the set that was evaluated."
        )


# -- the class of every pixel -----------------------------------------------------------------------------------------


def _of_pixels(scores: MapScores, evaluation: SegmentEvaluation) -> list[str]:
    """The sections about maps of classes."""
    means = [("Mean IoU", scores.miou), ("Pixels that are right", scores.pixel_accuracy)]
    means += [("Mean over the classes of the pixels that are right", scores.mean_accuracy)]
    means += [("Mean IoU near edges", scores.boundary_iou)] if scores.boundary_iou is not None else []
    total = int(scores.support.sum())
    return [
        page.section(
            "In numbers",
            page.facts([*((name, f"{value:.1%}") for name, value in means), *_facts(evaluation, f"{total:,} labelled")]),
            page.paragraph(
                "Intersection over union (IoU) of a class: of the pixels that are it or are said to be it, the share that "
                "are both, over all pictures together. Its mean is over the classes that are or were said anywhere. Pixels "
                "of which nothing is known count in nothing.",
                kind="quiet",
            ),
        ),
        page.section("Class by class", *_classes_of_pixels(scores)),
        page.section("What it takes for what", *_taken_for(scores)),
    ]


def _facts(evaluation: SegmentEvaluation, pixels: str = "") -> list[tuple[str, str]]:
    """What the page is about, for the end of its numbers."""
    skipped = f", and {len(evaluation.skipped)} skipped" if evaluation.skipped else ""
    return [
        ("Pictures", f"{len(evaluation):,}{skipped}"),
        *([("Pixels", pixels)] if pixels else []),
        ("Data", evaluation.data),
        ("Network", evaluation.model),
    ]


def _classes_of_pixels(scores: MapScores) -> list[str]:
    """IoU of every class, or of the best and the worst."""
    total = int(scores.support.sum())

    def row(place: int) -> tuple[str, float, str]:
        iou, found, pixels = float(scores.iou[place]), float(scores.accuracy[place]), int(scores.support[place])
        told = f"{found:.0%} found · {_share(pixels / total)} of all" if pixels else "is nowhere"
        return scores.classes[place], iou, f"{iou:.1%} · {told}"

    there = np.flatnonzero(scores.iou >= 0)
    return [
        page.paragraph(
            "IoU, beside it how many of the class's pixels are found, and how many of all labelled pixels are of the class."
        ),
        *_best_first(there[np.argsort(-scores.iou[there], kind="stable")].tolist(), row, len(scores.classes)),
    ]


def _best_first(order: Sequence[int], row: Callable[[int], tuple[str, float, str]], classes: int) -> list[str]:
    """Bars of all classes, and how many have none."""
    absent = classes - len(order)
    missing = f"{counted(absent, 'class is', 'classes are')} nowhere here, nor said anywhere."
    parts = [page.paragraph(missing, kind="quiet")] if absent else []
    return [*parts, *ranked(order, row, ("Best:", "Worst:"), "the best")]


def _taken_for(scores: MapScores) -> list[str]:
    """The confusion matrix in percent, or of many classes the commonest confusions."""
    counts, support = scores.confusion[:, :-1], scores.support
    unsaid = int(scores.confusion[:, -1].sum())
    parts = []
    if unsaid:
        share = _share(unsaid / int(support.sum()))
        parts.append(page.paragraph(f"Of {share} of the labelled pixels it says none of these classes."))
    used = (support + counts.sum(0)) > 0
    if int(used.sum()) <= MANY:
        told = (
            "Rows are what is there, columns what is said, in percent of the class's pixels. Off the diagonal are the "
            "mistakes."
        )
        percent = np.rint(100 * counts / np.maximum(support, 1)[:, None]).astype(np.int64)
        labels = [name for name, one in zip(scores.classes, used.tolist(), strict=True) if one]
        return [*parts, page.paragraph(told), page.confusion_table(percent[used][:, used], labels)]
    rows = [
        (f"{scores.classes[true]} → {scores.classes[said]}", count / int(support[true]), _share(count / int(support[true])))
        for true, said, count in scores.confusions(_CONFUSIONS)
    ]
    told = (
        f"The commonest confusions among {len(scores.classes):,} classes, most pixels first: what it is → what is said, and "
        "how many of the class's pixels go there."
    )
    return [*parts, page.paragraph(told), page.bars(rows)]


# -- things and stuff -------------------------------------------------------------------------------------------------


def _of_segments(scores: PanopticScores, evaluation: SegmentEvaluation) -> list[str]:
    """The sections about panoptic quality."""
    kinds = (("All classes", scores.all), ("Things", scores.of_things), ("Stuff", scores.of_stuff))
    means = [
        (f"{name}: PQ · SQ · RQ", f"{100 * told.pq:.1f} · {100 * told.sq:.1f} · {100 * told.rq:.1f}")
        for name, told in kinds
        if told is not None
    ]
    counts = f"{int(scores.found.sum()):,} · {int(scores.missed.sum()):,} · {int(scores.wrong.sum()):,}"
    return [
        page.section(
            "In numbers",
            page.facts([*means, ("Segments found · missed · said in vain", counts), *_facts(evaluation)]),
            page.paragraph(
                "A segment is found where one of its class is said whose intersection over union with it is above one half. "
                "Segmentation quality (SQ) is the mean of these overlaps, recognition quality (RQ) the share of what is "
                "found among what is there and what is said, and panoptic quality (PQ) their product: from 0 to 100, means "
                "over the classes.",
                kind="quiet",
            ),
        ),
        page.section("Class by class", *_classes_of_segments(scores)),
    ]


def _classes_of_segments(scores: PanopticScores) -> list[str]:
    """Panoptic quality of every class, things and stuff apart."""

    def row(place: int) -> tuple[str, float, str]:
        told: Any = scores.of_class(place)
        counts = " · ".join(f"{int(getattr(scores, name)[place]):,}" for name in ("found", "missed", "wrong"))
        shares = f"{100 * told.pq:.1f} (SQ {100 * told.sq:.0f}, RQ {100 * told.rq:.0f})"
        return scores.classes[place], told.pq, f"{shares} · {counts}"

    things = np.array(scores.things, dtype=bool)
    parts = [
        page.paragraph("PQ, in brackets what it is made of; then how many segments are found, missed, and said in vain.")
    ]
    for heading, own in (("Things:", things), ("Stuff:", ~things)):
        places = np.flatnonzero(own & (scores.found + scores.wrong + scores.missed > 0)).tolist()
        if places:
            order = sorted(places, key=lambda place: -row(place)[1])
            parts += [page.paragraph(heading), *_best_first(order, row, int(own.sum()))]
    return parts


# -- the worst pictures -----------------------------------------------------------------------------------------------


class _Map(NamedTuple):
    """What a picture shows, to be drawn: of every pixel the class (−1: nobody knows) and the segment."""

    classes: Int64[np.ndarray, "y x"]
    segments: Integer[np.ndarray, "y x"]


def _worst(evaluation: SegmentEvaluation, pictures: SegmentSet) -> str:
    """The pictures of which least is right: as they are, what is true, what was said, and where these differ."""
    if not evaluation.worst:
        return ""
    rows, lost, shown = [], [], set[int]()
    colours = distinct_colours(len(pictures.classes))
    for one in evaluation.worst:
        try:
            row, kinds = _side_by_side(one, pictures, colours)
        except PictureError as error:  # gone since it was evaluated
            lost.append(str(error))
            continue
        rows.append(row)
        shown |= kinds
    named = [(colours[kind].tolist(), str(pictures.classes[kind])) for kind in sorted(shown)]
    keys = "".join(f'<span><i style="background: rgb({r} {g} {b})"></i>{escape(name)}</span>' for (r, g, b), name in named)
    name = {"semantic": "mean IoU", "panoptic": "PQ"}[evaluation.kind]
    return page.section(
        "The worst pictures",
        page.paragraph(
            f"Those with the least {name} of their own, the worst first. In the last drawing of each, what is wrong is "
            "orange, and slate is where nothing is known."
        ),
        f'<p class="kinds">{keys}</p>',
        *rows,
        *(page.paragraph(f"No longer there: {sentence}", kind="quiet") for sentence in lost),
    )


def _side_by_side(one: Worst, pictures: SegmentSet, colours: UInt8[np.ndarray, "c 3"]) -> tuple[str, set[int]]:
    """Four drawings of a picture, and the classes they show."""
    image = pictures.read(one.place).image.convert("RGB")
    truth, said, right = _maps(one, pictures)
    size = truth.classes.shape
    scale = min(_SIDE / max(image.size), 1.0)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), reducing_gap=3.0)
    # Of what is drawn smaller, the pixels in the middle of where they come from are shown.
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip((image.height, image.width), size, strict=True)
    )
    grid = np.ix_(rows, columns)
    truth, said = (_Map(each.classes[grid], each.segments[grid]) for each in (truth, said))
    differ = np.where(truth.classes < 0, 1, np.where(right[grid], -1, 0))
    drawn = {
        "the picture": image,
        "what is there": _painted(image, truth, colours),
        "what is said": _painted(image, said, colours),
        "where these differ": _painted(image, _Map(differ, differ), np.array([_WRONG, _UNKNOWN], dtype=np.uint8)),
    }
    name = PurePath(one.said.name).name
    figures = "".join(
        f'<figure><img src="{page.picture_address(each, photo=True)}" alt="{escape(f"{name}: {told}")}">'
        f"<figcaption>{told}</figcaption></figure>"
        for told, each in drawn.items()
    )
    kinds = {int(kind) for each in (truth, said) for kind in np.unique(each.classes) if kind >= 0}
    heading = f'<p class="worst">{escape(name)} <small>{100 * one.value:.1f}</small></p>'
    return f'{heading}<div class="four">{figures}</div>', kinds


def _maps(one: Worst, pictures: Any) -> tuple[_Map, _Map, Bool[np.ndarray, "y x"]]:
    """What is there, what was said, and the pixels where what was said is right.

    Raises:
        PictureError: the labels are of another size than they were.
    """
    if isinstance(one.said, Segmentation):
        there = pictures.class_map(one.place).astype(np.int64)
        truth = _Map(np.where(there == pictures.ignore, -1, there), there)
        own = one.said.class_map.astype(np.int64)
        said = _Map(np.where(own == one.said.ignore, -1, own), own)
        found = _same
    else:
        annotations = pictures.annotations(one.place)
        segments = np.zeros(one.said.size if annotations.masks is None else annotations.masks.shape[1:], dtype=np.int64)
        for place, mask in enumerate(() if annotations.masks is None else annotations.masks, start=1):
            segments[mask] = place
        truth = _Map(np.concatenate([[-1], np.where(annotations.crowd, -1, annotations.labels)])[segments], segments)
        said, found = _classes_of(one.said), _found
    if truth.classes.shape != said.classes.shape:
        raise PictureError(one.said.name, "Its labels are of another size than when it was evaluated.")
    return truth, said, found(truth, said)


def _classes_of(said: Panoptic) -> _Map:
    """The class of every pixel of what was said."""
    ids = np.array([0, *(segment.id for segment in said.segments)], dtype=np.int64)
    classes = np.array([-1, *(segment.index for segment in said.segments)], dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    places = order[np.searchsorted(ids[order], said.segment_map)]
    return _Map(classes[places], places)


def _same(truth: _Map, said: _Map) -> Bool[np.ndarray, "y x"]:
    """The pixels of which the class is right."""
    return truth.classes == said.classes


def _found(truth: _Map, said: _Map) -> Bool[np.ndarray, "y x"]:
    """The pixels of segments that are found, where what was said covers them: as `PanopticMetric` counts it."""
    columns = int(said.segments.max(initial=0)) + 1
    pairs, places, shared = np.unique(
        truth.segments.astype(np.int64) * columns + said.segments, return_inverse=True, return_counts=True
    )
    true, own = pairs // columns, pairs % columns
    there, covered = np.bincount(true, weights=shared), np.bincount(own, weights=shared * (true > 0))
    fits = (true > 0) & (own > 0) & (2 * shared > there[true] + covered[own] - shared)
    return (truth.classes == said.classes) & fits[places].reshape(truth.segments.shape)


def _painted(image: Image.Image, of: _Map, colours: UInt8[np.ndarray, "c 3"]) -> Image.Image:
    """A greyed picture with the colours of classes over it, and a dark line around every segment; −1 stays grey."""
    ground = np.repeat(np.asarray(image.convert("L"), dtype=np.float64)[..., None], 3, axis=2)
    known = of.classes >= 0
    ground[known] = (1 - _COVER) * ground[known] + _COVER * colours[of.classes[known]]
    edge = np.zeros(known.shape, dtype=bool)
    edge[1:] |= of.segments[1:] != of.segments[:-1]
    edge[:, 1:] |= of.segments[:, 1:] != of.segments[:, :-1]
    ground[edge] = _INK
    return Image.fromarray(np.rint(ground).astype(np.uint8))


# -- words ------------------------------------------------------------------------------------------------------------


def _share(share: float) -> str:
    """A share in percent; a small one is not written as none."""
    return "< 0.1 %" if 0 < share < 0.001 else f"{share:.1%}"
