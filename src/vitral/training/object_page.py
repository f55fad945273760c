"""A page about how good a detector is: one HTML file with curves, confusions and the worst mistakes; it fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import PurePath

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from vitral.base import page
from vitral.base.image import Picture
from vitral.data.objects import ObjectSet
from vitral.errors import PictureError, UsageError
from vitral.tasks.detection.metrics import RECALLS, JudgedBy, Miss, ObjectScores
from vitral.training.evaluate_objects import ObjectEvaluation
from vitral.training.evaluate_segments import SegmentEvaluation
from vitral.training.page_parts import MANY, counted, left_out, ranked

__all__ = ["object_evaluation_page"]

_CONFUSIONS = 20
_CHARTS = 6  # classes with a chart of their own
_SIDE = 192  # pixels of a cut-out on the page
_AROUND = 0.35  # of a box's longer side is shown on each side of it
_LEAST = 48.0  # pixels of the picture that a cut-out shows at least
_WRONG, _THERE, _HALO = (255, 128, 14), (86, 180, 233), (24, 32, 46)  # orange and sky blue, with a dark line on each side
_FORM = ".0%"
_ONE: dict[JudgedBy, str] = {"boxes": "box", "masks": "mask"}


def object_evaluation_page(
    evaluation: ObjectEvaluation | SegmentEvaluation, objects: ObjectSet | None = None, title: str = ""
) -> str:
    """A page about how good a detector is, or a segmenter of objects: one HTML file that needs no network.

    Args:
        evaluation: what it found, held against what is there.
        objects: the set it was asked about, for its mistakes to be shown.
        title: of the page; by default its average precision.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        UsageError: pictures of another set.
    """
    scores = evaluation.scores
    if not isinstance(scores, ObjectScores):
        raise UsageError(f"This page is about objects; {evaluation!r} is not. Take segment_evaluation_page.")
    if objects is not None:
        _check_set(evaluation.data, scores, objects)
    total = int(scores.support[:, 0].sum())
    return page.document(
        title or f"{100 * evaluation.numbers['ap']:.1f} {'mask ' if scores.by == 'masks' else ''}AP on {evaluation.data}",
        page.section("In numbers", *_numbers(evaluation, scores)),
        page.section("How much it finds, and how much of that is right", *_curves(scores)),
        page.section("Class by class", *_classes(scores)),
        page.section("What it takes for what", *_taken_for(scores)),
        *([] if objects is None else _mistakes(scores, objects)),
        left_out(evaluation.skipped),
        lead=f"{evaluation.model}, asked about the {counted(len(evaluation), 'picture')} of {evaluation.data}, which show "
        f"{counted(total, 'object')} of {counted(int((scores.support[:, 0] > 0).sum()), 'class', 'classes')}.",
        foot="This page fetches nothing.",
    )


def _check_set(data: str, scores: ObjectScores, objects: ObjectSet) -> None:
    """Refuse to show other pictures than those that were asked about."""
    shown = (*scores.false, *scores.missed, *scores.confused)
    known = all(one.place < len(objects) and objects.where(one.place) == one.picture for one in shown)
    if not known or scores.classes != tuple(objects.classes):
        raise UsageError(
            f"The evaluation is of {data}, and its pictures are not those of {objects.name}. "
            "Give the set that was evaluated."
        )


# -- in numbers -------------------------------------------------------------------------------------------------------


def _numbers(evaluation: ObjectEvaluation | SegmentEvaluation, scores: ObjectScores) -> list[str]:
    told, by = evaluation.numbers, scores.by

    def three(*names: str) -> str:
        return " · ".join(f"{100 * told[name]:.1f}" if name in told else "–" for name in names)

    skipped = f", and {len(evaluation.skipped)} skipped" if evaluation.skipped else ""
    return [
        page.facts(
            [
                ("AP", three("ap")),
                ("AP at IoU .50 · .75", three("ap50", "ap75")),
                ("AP small · medium · large", three("ap_small", "ap_medium", "ap_large")),
                (f"AR with 1 · 10 · 100 {by}", three("ar1", "ar10", "ar100")),
                ("AR small · medium · large", three("ar_small", "ar_medium", "ar_large")),
                ("Objects", f"{int(scores.support[:, 0].sum()):,}"),
                ("Pictures", f"{len(evaluation):,}{skipped}"),
                ("Data", evaluation.data),
                ("Network", evaluation.model),
            ]
        ),
        page.paragraph(
            "Average precision (AP) and average recall (AR) as COCO counts them, from 0 to 100: means over the classes, and "
            f"over ten thresholds from .50 to .95 of how well {by} must fit (intersection over union, IoU). Small objects "
            "have up to 32² pixels, large ones 96² and more.",
            kind="quiet",
        ),
    ]


# -- curves -----------------------------------------------------------------------------------------------------------


def _curves(scores: ObjectScores) -> list[str]:
    """Precision over recall: of all classes, and of some."""
    by = scores.by
    there = np.flatnonzero(scores.support[:, 0])
    whole = scores.precision[:, :, there, 0]
    lines = [
        ("IoU .50", whole[0].mean(1)),
        ("IoU .75", whole[5].mean(1)),
        ("mean of .50 to .95", whole.mean((0, 2))),
    ]
    charts = [_chart("All classes" if len(there) > 1 else scores.classes[there[0]], lines)]
    explained = (
        "<div>"
        + page.paragraph(
            f"Let {by} in, the surest first: the further to the right, the more of the objects are found (recall); the "
            f"higher, the more of the {by} let in are right (precision). Each line is drawn at its highest precision at "
            f"that recall or above, as COCO does, and falls to 0 where all {by} together do not find so much."
        )
        + page.paragraph("The average precision is the area below a line.")
        + "</div>"
    )
    parts = [page.side_by_side(*charts, explained)]
    if len(there) > 1:
        order = there[np.argsort(-scores.support[there, 0], kind="stable")][:_CHARTS]
        own = [
            _chart(
                scores.classes[place],
                [("IoU .50", scores.precision[0, :, place, 0]), ("IoU .75", scores.precision[5, :, place, 0])],
            )
            for place in order.tolist()
        ]
        some = f"The {len(order)} classes with the most objects:" if len(order) < len(there) else "Each class:"
        parts += [page.paragraph(some), page.side_by_side(*own)]
    return parts


def _chart(title: str, lines: Sequence[tuple[str, Float[np.ndarray, " r"]]]) -> str:
    """Precision over recall as an inline drawing; the legend tells the area below each line."""
    left, right, top, bottom = 46, 312, 10, 150
    kinds = ("first", "second", "third")
    drawn = [page.rules(0, 1, left=left, right=right, top=top, bottom=bottom, form=_FORM)]
    drawn.append(f'<text x="{left}" y="166">0%</text><text x="{right}" y="166" text-anchor="end">recall 100%</text>')
    keys = []
    for kind, (name, precision) in zip(kinds, lines, strict=False):
        points = " ".join(
            f"{left + (right - left) * recall:.1f},{bottom - (bottom - top) * one:.1f}"
            for recall, one in zip(RECALLS.tolist(), precision.tolist(), strict=True)
        )
        drawn.append(f'<polyline class="{kind}" points="{points}"/>')
        keys.append(f'<span><i class="{kind}"></i>{escape(name)} <b>{100 * precision.mean():.1f}</b></span>')
    told = f"Precision over recall, {title}; " + ", ".join(f"{name} {100 * line.mean():.1f}" for name, line in lines)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><p class="legend">{"".join(keys)}</p>'
        f'<svg viewBox="0 0 320 172" role="img" aria-label="{escape(told)}">{"".join(drawn)}</svg></figure>'
    )


# -- classes ----------------------------------------------------------------------------------------------------------


def _classes(scores: ObjectScores) -> list[str]:
    """Average precision of every class, or of the worst and the best."""
    there = np.flatnonzero(scores.support[:, 0])
    found = scores.precision[:, :, :, 0].mean((0, 1))
    order = there[np.argsort(-found[there], kind="stable")].tolist()

    def row(place: int) -> tuple[str, float, str]:
        half, objects = 100 * scores.precision[0, :, place, 0].mean(), counted(int(scores.support[place, 0]), "object")
        return scores.classes[place], float(found[place]), f"{100 * found[place]:.1f} · at .50 {half:.1f} · {objects}"

    absent = len(scores.classes) - len(there)
    told = page.paragraph("Average precision over IoU .50 to .95, beside it that at .50, and how many objects there are.")
    missing = f"{counted(absent, 'class has', 'classes have')} no objects here, and count for nothing."
    parts = [told, *([page.paragraph(missing, kind="quiet")] if absent else [])]
    return [*parts, *ranked(order, row, ("Found best:", "Found worst:"), "the best")]


def _taken_for(scores: ObjectScores) -> list[str]:
    """The confusion matrix, or of many classes the commonest confusions."""
    by = scores.by
    counts, classes = scores.confusion, len(scores.classes)
    right, total = int(np.trace(counts[:-1, :-1])), int(counts[:-1].sum())
    missed, false = int(counts[:-1, -1].sum()), int(counts[-1].sum())
    more = counted(false, f"more {_ONE[by]} is", f"more {by} are")
    told = page.paragraph(
        f"{by.capitalize()} count from a score of {scores.threshold:.0%}, on an object from IoU {scores.overlap:.2f}. Of "
        f"{counted(total, 'object')}, {right:,} are found and named rightly, {total - right - missed:,} are taken for "
        f"another class and {missed:,} are missed; {more} on nothing, or on an object that was found already."
    )
    if classes <= MANY:
        used = np.append((counts[:-1].sum(1) + counts[:, :-1].sum(0)) > 0, True)
        labels = [name for name, one in zip((*scores.classes, "nothing"), used.tolist(), strict=True) if one]
        return [
            told,
            page.paragraph("Rows are what is there, columns what was found. Off the diagonal are the mistakes."),
            _table(counts[used][:, used], labels),
        ]
    pairs = scores.confusions(_CONFUSIONS)
    if not pairs:
        return [told]
    rows = [
        (
            f"{scores.classes[true]} → {scores.classes[said]}",
            count / int(counts[true].sum()),
            f"{count} of {counts[true].sum()}",
        )
        for true, said, count in pairs
    ]
    return [
        told,
        page.paragraph(
            f"The commonest confusions among {classes:,} classes: what it was → what was said, and how many of the class's "
            "objects went there."
        ),
        page.bars(rows),
    ]


def _table(counts: np.ndarray, labels: Sequence[str]) -> str:
    """A confusion table whose last corner, nothing taken for nothing, is empty: nobody can count that."""
    before, corner, after = page.confusion_table(counts, labels).rpartition("<td ")
    return f"{before}<td></td>{after.partition('</td>')[2]}" if corner else after


# -- mistakes ---------------------------------------------------------------------------------------------------------


def _mistakes(scores: ObjectScores, objects: ObjectSet) -> list[str]:
    """The worst mistakes as cut-outs of their pictures."""
    by = scores.by
    return [
        _shown(
            "Surest where nothing fits",
            f"The {by} of the highest scores that fit no object of their class and none of another (orange); blue is the "
            f"object beside which a {_ONE[by]} lies, or which was found already (twice). Annotations that are missing "
            "are seen here, too.",
            scores.false,
            scores,
            objects,
        ),
        _shown(
            "Surest of another class",
            f"The {by} of the highest scores on an object of another class (blue): what it is → what was said.",
            scores.confused,
            scores,
            objects,
        ),
        _shown(
            "Largest that was missed",
            f"The largest objects on which there is no {_ONE[by]} with a score from {scores.threshold:.0%}, of any class.",
            scores.missed,
            scores,
            objects,
        ),
    ]


def _shown(title: str, explained: str, misses: Sequence[Miss], scores: ObjectScores, objects: ObjectSet) -> str:
    tiles, lost = [], []
    for miss in misses:
        try:
            tiles.append(_tile(miss, objects.read(miss.place), scores.classes))
        except PictureError as error:  # gone since it was evaluated
            lost.append(str(error))
    if not misses:
        return ""
    return page.section(
        title,
        page.paragraph(explained),
        page.tile_grid(tiles, large=True),
        *(page.paragraph(f"No longer there: {sentence}", kind="quiet") for sentence in lost),
    )


def _tile(miss: Miss, picture: Picture, classes: Sequence[str]) -> page.Tile:
    said = classes[miss.label]
    truth = "" if miss.truth is None else classes[miss.truth]
    note = {
        "nothing": f"{miss.score:.0%}",
        "twice": f"{miss.score:.0%} twice",
        "misplaced": f"{miss.score:.0%} beside",
        "confused": f"{miss.score:.0%}",
        "missed": f"{miss.box[2] - miss.box[0]:.0f} × {miss.box[3] - miss.box[1]:.0f} px",
    }[miss.kind]
    name = PurePath(miss.picture).name
    return page.Tile(
        image=_cut_out(picture, miss),
        said=f"{truth} → {said}" if miss.kind == "confused" else said,
        note=note,
        description=f"{name}: {said}, missed." if miss.kind == "missed" else f"{name}: {said} found, {miss.kind}.",
        wrong=True,
        photo=True,
    )


def _cut_out(picture: Picture, miss: Miss) -> Image.Image:
    """The part of a picture around a mistake, with the box on it."""
    corners = np.array([miss.box, *([miss.object] if miss.object else [])])
    low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
    side = max(float((high - low).max()) * (1 + 2 * _AROUND), _LEAST)
    height, width = picture.size
    side = min(side, float(max(height, width)))
    first = ((low + high) / 2 - side / 2).clip(0, np.maximum(np.array([width, height]) - side, 0))
    last = np.minimum(first + side, [width, height])
    scale = _SIDE / side
    size = (max(1, round((last[0] - first[0]) * scale)), max(1, round((last[1] - first[1]) * scale)))
    image = picture.image.resize(size, Image.Resampling.BICUBIC, (*first.tolist(), *last.tolist()), reducing_gap=3.0)
    pen = ImageDraw.Draw(image)
    for box, colour in ((miss.object, _THERE), (miss.box, _THERE if miss.kind == "missed" else _WRONG)):
        if box is None:
            continue
        edges = ((np.array(box).reshape(2, 2) - first) * scale).clip(1, np.array(size) - 2)
        left, top, right, bottom = edges.round().astype(int).ravel().tolist()
        pen.rectangle((left - 1, top - 1, max(right, left) + 1, max(bottom, top) + 1), outline=_HALO, width=6)
        pen.rectangle((left, top, max(right, left), max(bottom, top)), outline=colour, width=4)
    return image
