"""Pages about a training and about what came of it: one HTML file each, which fetches nothing.

`training_page` tells how a network learned, from the rows of its journal, and how good it became; `evaluation_page` tells
the latter alone. Both show the same parts of an `Evaluation`: the numbers, whether it is as sure as it is right, whom it
takes for whom, and the mistakes it was surest of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vitral.base import page
from vitral.data.pictures import PictureSet
from vitral.errors import PictureError, UsageError
from vitral.training.evaluate import Evaluation
from vitral.training.page_parts import MANY, counted, left_out, ranked

__all__ = ["MOST_POINTS", "evaluation_page", "training_page"]

MOST_POINTS = 1000
"""Points of a line: a screen has no more columns, and the page stays small."""

_SHOWN = 24  # mistakes
_LONGEST = 128  # pixels of a picture on the page
_SMALL = 64  # pixels: what is no larger is kept without loss and shown with hard edges
_FEW = 60  # steps that need no smoothing
_WINDOW = 40  # a smoothed line is a mean over this part of it
_CONFUSIONS = 20
_MEASURED = {
    "Held-out accuracy": {"top1": "top-1", "top5": "top-5"},
    "Held-out average precision": {"ap": "AP", "ap50": "AP50", "ap75": "AP75"},
    "Held-out pixels": {"miou": "mean IoU", "pixel_accuracy": "right", "mean_accuracy": "mean over classes"},
    "Held-out panoptic quality": {"pq": "PQ", "sq": "SQ", "rq": "RQ"},
}
_LONG = 20  # options of a recipe, before it is folded away


def training_page(
    rows: Sequence[Mapping[str, Any]],
    evaluation: Evaluation | None,
    pictures: PictureSet | None,
    recipe: Mapping[str, Any],
) -> str:
    """A page about a training, one HTML file that needs no network.

    Args:
        rows: of the journal, each with an "event": "step" with `step`, `loss`, `learning_rate`, `pictures_per_second`;
            "epoch" with `epoch`, `step` and what was `held_out` (`top1`, `top5`, `loss`; of a detector `ap`, `ap50`, `ap75`;
            of a segmenter these, or `miou`, or `pq`); "start" and "end" with whatever there is to say. Where a training
            went on from an earlier step, the later row of a step counts. Numbers that are not finite are left out of the
            lines, and the page says how many.
        evaluation: of the trained network, where there is one.
        pictures: the set it was made on, for its mistakes to be shown.
        recipe: what was chosen, as plain values; those in mappings are shown with their way there.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        UsageError: a row without an event, or pictures of another set.
    """
    for number, row in enumerate(rows):
        if "event" not in row:
            raise UsageError(f"Row {number} of the journal says no event: {row!r:.80}.")
    steps, epochs = _by_place(rows, "step", "step"), _by_place(rows, "epoch", "epoch")
    name = str(recipe.get("name") or recipe.get("recipe") or "network")
    title = _best(epochs) or f"How {name} learned" if evaluation is None else _headline(evaluation)
    return page.document(
        title,
        page.section("How it learned", *_curves(steps, epochs)),
        *([] if evaluation is None else _parts(evaluation, pictures)),
        _chosen(recipe),
        _said(rows),
        lead=_training_lead(name, rows, steps, epochs),
        foot="This page fetches nothing.",
    )


def evaluation_page(evaluation: Evaluation, pictures: PictureSet | None = None, title: str = "") -> str:
    """A page about how good a classifier is, one HTML file that needs no network.

    Args:
        evaluation: what it said.
        pictures: the set it was asked about, for its mistakes to be shown.
        title: of the page; by default how much it names rightly.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        UsageError: pictures of another set.
    """
    return page.document(
        title or _headline(evaluation),
        *_parts(evaluation, pictures),
        lead=f"{evaluation.model}, asked about the {counted(len(evaluation), 'picture')} of {evaluation.data}.",
        foot="This page fetches nothing.",
    )


def _best(epochs: Sequence[Mapping[str, Any]]) -> str:
    """What the best look at the pictures held out found; "" where there was none."""
    for key, told in (
        ("top1", "{:.1%} of the pictures held out, named rightly"),
        ("ap", "{:.1%} average precision held out"),
        ("miou", "{:.1%} mean IoU held out"),
        ("pq", "{:.1%} panoptic quality held out"),
    ):
        values = [row["held_out"][key] for row in epochs if key in (row.get("held_out") or {})]
        if values:
            return told.format(max(values))
    return ""


def _headline(evaluation: Evaluation) -> str:
    return f"{evaluation.top1:.1%} of {evaluation.data}, named rightly"


def _training_lead(name: str, rows: Sequence[Mapping[str, Any]], steps: list[Any], epochs: list[Any]) -> str:
    """How long it went on, in a sentence."""
    passes = f"{round(epochs[-1]['epoch'], 1):g}" if epochs else ""
    went = [
        counted(int(steps[-1]["step"]), "step") if steps else "",
        f"{passes} {'epoch' if passes == '1' else 'epochs'}" if passes else "",
    ]
    seconds = max((row["seconds"] for row in rows if _is_number(row.get("seconds"))), default=0.0)
    took = f" in {_duration(seconds)}" if seconds else ""
    return f"{name}: {', '.join(filter(None, went)) or 'no step yet'}{took}."


# -- how it learned ---------------------------------------------------------------------------------------------------


def _by_place(rows: Iterable[Mapping[str, Any]], event: str, place: str) -> list[Mapping[str, Any]]:
    """The rows of an event in the order of their steps or epochs; of several for one, the last."""
    found = {row[place]: row for row in rows if row["event"] == event and _is_number(row.get(place))}
    return [found[key] for key in sorted(found)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _points(rows: Iterable[Mapping[str, Any]], across: str, name: str) -> tuple[list[float], list[float], int]:
    """Places and values of a quantity, and how many of its values are no finite numbers."""
    told = [row for row in rows if name in row and _is_number(row.get(across))]
    good = [row for row in told if _is_number(row[name])]
    return [float(row[across]) for row in good], [float(row[name]) for row in good], len(told) - len(good)


def _curves(steps: list[Mapping[str, Any]], epochs: list[Mapping[str, Any]]) -> list[str]:
    """Charts of what the journal holds, and how they were drawn."""
    held = [{**row["held_out"], "epoch": row["epoch"], "step": row.get("step")} for row in epochs if row.get("held_out")]
    charts, remarks = [], []
    x, y, odd = _points(steps or epochs, "step" if steps else "epoch", "loss")
    if odd:
        remarks.append(f"Left out of the line, as no finite numbers: {counted(odd, 'loss', 'losses')}.")
    if y:
        lines, said = _smoothed("training", x, y)
        remarks += said
        held_x, held_y, _ = _points(held, "step" if steps else "epoch", "loss")
        if held_y:
            lines.append(page.Series(name="held out", x=held_x, y=held_y))
        high = _height(lines)
        if max(y) > high:
            remarks.append(f"Losses above {high:.3g}, up to {max(y):.3g}, are drawn at the upper edge.")
        charts.append(page.chart("Loss", lines, across="step" if steps else "epoch", high=high, form=".3g"))
    for measured, named in _MEASURED.items():
        tops = [(name, *_points(held, "epoch", key)[:2]) for key, name in named.items()]
        tops = [(name, x, y) for name, x, y in tops if y and not (name == "top-5" and min(y) == 1)]
        if tops:
            lines = [page.Series(name=name, x=x, y=y) for name, x, y in tops]
            title = measured if len(tops) > 1 else f"{measured}, {tops[0][0]}"
            charts.append(page.chart(title, lines, across="epoch", low=0.0, high=1.0, form=".1%"))
    x, y, _ = _points(steps, "step", "learning_rate")
    if y:
        rate = page.Series(name="learning rate", x=_thinned(x, x)[0], y=_thinned(x, y)[1])
        charts.append(page.chart("Learning rate", [rate], across="step", form=".2g"))
    x, y, _ = _points(steps, "step", "pictures_per_second")
    if y:
        lines, _ = _smoothed("pictures per second", x, y)
        charts.append(page.chart("Pictures per second", lines, across="step", form=",.0f"))
    if not charts:
        return [page.paragraph("The journal tells of no step yet.")]
    return [page.side_by_side(*charts), *(page.paragraph(remark, kind="quiet") for remark in dict.fromkeys(remarks))]


def _smoothed(name: str, x: list[float], y: list[float]) -> tuple[list[page.Series], list[str]]:
    """A line as it is where it is short; else its running mean over the line itself, and what to say of the two."""
    if len(y) <= _FEW:
        return [page.Series(name=name, x=x, y=y)], []
    window = max(3, len(y) // _WINDOW | 1)
    mean = _running_mean(np.array(y), window).tolist()
    raw_x, raw_y = _thinned(x, y)
    mean_x, mean_y = _thinned(x, mean)
    remarks = [
        f"The strong line is the mean over {window} rows of the journal around each, the pale one the rows themselves."
    ]
    if len(raw_x) < len(x):
        remarks.append(f"Of {len(x):,} rows, the least and the greatest of every {_block(len(x))} are drawn.")
    pale = page.Series(name=name, x=raw_x, y=raw_y, faint=True)
    return [pale, page.Series(name=name, x=mean_x, y=mean_y)], remarks


def _running_mean(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """The mean over a window of an odd number of values around each; at the ends over those that are there."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    places, half = np.arange(len(values)), window // 2
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MOST_POINTS` of a line's points: of each of as many blocks as half of that, the least and the greatest.

    So every spike is still there, which a mean over blocks would flatten and every n-th point might miss. The first and the
    last point stay.
    """
    if len(x) <= MOST_POINTS:
        return list(x), list(y)
    block = _block(len(x))
    kept = {0, len(x) - 1}
    for start in range(0, len(x), block):
        part = y[start : start + block]
        kept |= {start + int(np.argmin(part)), start + int(np.argmax(part))}
    return [x[place] for place in sorted(kept)], [y[place] for place in sorted(kept)]


def _block(count: int) -> int:
    """How many points of a line are drawn as two."""
    return -(-count // (MOST_POINTS // 2 - 1))


def _height(lines: Sequence[page.Series]) -> float:
    """The upper edge of a chart of losses: a few outsize ones at the start do not press the rest to the floor."""
    values = np.concatenate([np.asarray(one.y) for one in lines])
    usual = float(np.quantile(values, 0.98))
    most = float(values.max())
    return page.rounded_up(most if most <= 1.6 * usual else 1.1 * usual)


def _chosen(recipe: Mapping[str, Any]) -> str:
    """The recipe; a long one is folded away."""
    rows = list(_flat(recipe))
    if not rows:
        return ""
    folded = len(rows) > _LONG
    return page.section(
        "The recipe", page.details(f"All {len(rows)} options", page.facts(rows)) if folded else page.facts(rows)
    )


def _flat(values: Mapping[str, Any], way: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, those of mappings inside with their way there."""
    for name, value in values.items():
        told = f"{way}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{told}.")
        elif isinstance(value, list | tuple):
            yield told, ", ".join(map(_fact, value)) or "none"
        else:
            yield told, _fact(value)


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _said(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the journal says of the start and the end."""
    parts = []
    for event, heading in (("start", "At the start"), ("end", "At the end")):
        for row in (row for row in rows if row["event"] == event):
            facts = [(name, fact) for name, fact in _flat(row) if name != "event"]
            parts += [page.paragraph(heading), page.facts(facts)] if facts else []
    return page.details("What the journal says of start and end", *parts) if parts else ""


# -- how good it is ---------------------------------------------------------------------------------------------------


def _parts(evaluation: Evaluation, pictures: PictureSet | None) -> list[str]:
    """The sections about an evaluation."""
    if pictures is not None:
        _check_set(evaluation, pictures)
    return [
        page.section("In numbers", *_numbers(evaluation)),
        page.section("Is it as sure as it is right?", *_calibration(evaluation)),
        page.section("What it takes for what", *_taken_for(evaluation)),
        page.section("Class by class", *_classes(evaluation)),
        "" if pictures is None else _mistakes(evaluation, pictures),
        left_out(evaluation.skipped),
    ]


def _check_set(evaluation: Evaluation, pictures: PictureSet) -> None:
    """Refuse to show other pictures than those that were asked about."""
    places = evaluation.places.tolist()
    if max(places) >= len(pictures) or tuple(pictures.names[place] for place in places) != evaluation.names:
        raise UsageError(
            f"The evaluation is of {evaluation.data}, and its pictures are not those of {pictures.name} in the same order. "
            "Give the set that was evaluated."
        )


def _numbers(evaluation: Evaluation) -> list[str]:
    ends = evaluation.intervals()
    macro = evaluation.per_class.macro

    def within(name: str, form: str) -> str:
        return f" ({ends[name][0]:{form}} to {ends[name][1]:{form}})"

    rows = [
        ("Top-1", f"{evaluation.top1:.1%}{within('top1', '.1%')}"),
        ("Top-5", f"{evaluation.top5:.1%}{within('top5', '.1%')}"),
        ("Cross-entropy", f"{evaluation.nll:.3f} nats{within('nll', '.3f')}"),
        ("Brier score", f"{evaluation.brier:.3f}{within('brier', '.3f')}"),
        ("Calibration error", f"{evaluation.ece:.1%}; in bins of equal number {evaluation.adaptive_ece:.1%}"),
        ("F1, mean of classes", f"{macro['f1']:.1%}"),
        ("Pictures", f"{len(evaluation):,}" + (f", and {len(evaluation.skipped)} skipped" if evaluation.skipped else "")),
        ("Data", evaluation.data),
        ("Network", evaluation.model),
    ]
    if len(evaluation.classes) <= 5:
        rows = [row for row in rows if row[0] != "Top-5"]
    return [
        page.facts(rows),
        page.paragraph(
            "In brackets: where 95% of the values lie when as many pictures are drawn from these again (bootstrap). Two "
            "networks whose ranges overlap widely are not told apart by these pictures.",
            kind="quiet",
        ),
    ]


def _calibration(evaluation: Evaluation) -> list[str]:
    sure, right = float(evaluation.confidence.mean(dtype=np.float64)), evaluation.top1
    apart = sure - right
    verdict = (
        "On the whole it is about as sure as it is right."
        if abs(apart) < 0.01
        else f"On the whole it is too {'sure' if apart > 0 else 'cautious'}."
    )
    bins = evaluation.reliability
    return [
        page.paragraph(f"It was {sure:.1%} sure on average, and {right:.1%} of its answers are right. {verdict}"),
        page.side_by_side(
            page.reliability_diagram(
                bins.counts,
                bins.confidence,
                bins.accuracy,
                bins.edges,
                title=f"Reliability (calibration error {evaluation.ece:.1%})",
            ),
            "<div>"
            + page.paragraph(
                "Answers are gathered by how sure they were, from left to right. A bar is as high as the share of them that "
                "is right; on the dashed line the two are equal. The stroke is what is missing or too much: below the line "
                "the network is too sure, above it too cautious. The small bars count the pictures."
            )
            + page.paragraph(
                "The calibration error (Guo et al. 2017) is the mean length of the strokes, each weighted by its pictures. "
                "Bins of few pictures are far off by chance."
            )
            + "</div>",
        ),
    ]


def _taken_for(evaluation: Evaluation) -> list[str]:
    pairs = evaluation.confusions(_CONFUSIONS)
    if not pairs:
        return [page.paragraph("Nothing: every answer is right.")]
    if len(evaluation.classes) <= MANY:
        return [
            page.paragraph("Rows are the true classes, columns the answers. Off the diagonal are the mistakes."),
            page.confusion_table(evaluation.confusion, _short(evaluation.classes)),
        ]
    support, classes = evaluation.per_class.support, _short(evaluation.classes)
    rows = [
        (
            f"{classes[one.true]} → {classes[one.said]}",
            one.count / int(support[one.true]),
            f"{one.count} of {support[one.true]}",
        )
        for one in pairs
    ]
    return [
        page.paragraph(
            f"The commonest mistakes among {len(evaluation.classes):,} classes: what it was → what was said, and how many "
            "of the class's pictures went there."
        ),
        page.bars(rows),
    ]


def _classes(evaluation: Evaluation) -> list[str]:
    """Recall of every class, or of the worst and the best."""
    table = evaluation.per_class
    there = np.flatnonzero(table.support)
    order = there[np.argsort(table.recall[there], kind="stable")].tolist()

    def row(place: int) -> tuple[str, float, str]:
        recall, of = float(table.recall[place]), f"{table.support[place]:,} · precision {table.precision[place]:.0%}"
        return evaluation.classes[place], recall, f"{recall:.0%} of {of}"

    told = page.paragraph(
        "How many pictures of a class are found (recall), and beside it how many of the answers of that name are true "
        "(precision)."
    )
    return [told, *ranked(order, row, ("Found worst:", "Found best:"), "the worst")]


def _mistakes(evaluation: Evaluation, pictures: PictureSet) -> str:
    """The mistakes it was surest of, as pictures."""
    worst = evaluation.worst(_SHOWN)
    if not len(worst):
        return ""
    total = int((evaluation.ranks > 0).sum())
    tiles, lost, classes = [], [], _short(evaluation.classes)
    for row in worst.tolist():
        try:
            tiles.append(_tile(evaluation, pictures, row, classes))
        except PictureError as error:  # gone since it was evaluated
            lost.append(str(error))
    shown = "All of them, the" if len(worst) == total else f"Those {len(worst)} it was surest of, the"
    return page.section(
        f"{counted(total, 'mistake')} in {counted(len(evaluation), 'picture')}",
        page.paragraph(
            f"{shown} surest first: what it is → what was said, how sure that was, and how much it gave the truth."
        ),
        page.tile_grid(tiles, large=True),
        *(page.paragraph(f"No longer there: {sentence}", kind="quiet") for sentence in lost),
    )


def _tile(evaluation: Evaluation, pictures: PictureSet, row: int, classes: Sequence[str]) -> page.Tile:
    place = int(evaluation.places[row])
    label, answer = int(evaluation.labels[row]), int(evaluation.answers[row])
    true, said = classes[label], classes[answer]
    picture = pictures.read(place, at_least=(_LONGEST, _LONGEST)).image
    small = max(picture.size) <= _SMALL
    if not small:
        picture = picture.copy()
        picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    return page.Tile(
        image=picture,
        said=f"{true} → {said}",
        note=f"{evaluation.scores[row, answer]:.0%}, truth {evaluation.scores[row, label]:.0%}",
        description=f"{PurePath(evaluation.names[row]).name}: {true}, taken for {said}.",
        wrong=True,
        photo=not small,
    )


def _short(classes: Sequence[str]) -> list[str]:
    """Of each label that lists several names, the first, where no other class is called so."""
    first = [name.split(",")[0].strip() for name in classes]
    times = Counter(first)
    return [short if short and times[short] == 1 else name for short, name in zip(first, classes, strict=True)]


def _duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
