"""A comparison as a page and as pictures: tables, the front that nothing beats, and how costs grow with the picture.

`pareto_figure` and `growth_figure` return a `matplotlib.figure.Figure` each and touch nothing else of matplotlib;
`comparison_page` is one HTML file with everything inside, which fetches nothing.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, NullLocator, PercentFormatter

from vitral.base import page
from vitral.errors import UsageError
from vitral.training.compare import QUANTITIES, Compared, Comparison, Quantity

__all__ = ["COLUMNS", "comparison_page", "growth_figure", "pareto_figure", "shown"]

_INK, _QUIET, _RULE = "#18202e", "#5a6577", "#e2e0d9"
# Okabe and Ito 2008, from which colour-blind people tell eight lines; dashes tell the next eight.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f00", "#18202e")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_MARKS = "osD^vP*X"
_TEXT = 8.0  # points
_LONGEST = 34  # signs of a name in a drawing
_MOST = len(_COLOURS) * len(_DASHES)  # lines that can be told apart

_STYLE = """
main { max-width: 64rem; } .sheet { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: .6rem;
  margin: .8rem 0; } .sheet img { display: block; width: 100%; height: auto; }
.numbers { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
.numbers th { font-weight: 500; color: var(--quiet); } .numbers th, .numbers td { padding: .25rem .7rem; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
.numbers th:first-child { text-align: left; color: var(--ink); position: sticky; left: 0; background: var(--paper); }
.numbers td.failed { color: var(--wrong); }
"""

COLUMNS: dict[str, str] = {
    "parameters": "M params",
    "multiply_adds": "GMACs",
    "activations": "M acts",
    "pictures_per_second": "pict/s",
    "memory": "MB",
}
"""Quantity → the head of its column: millions of parameters, 10⁹ multiply-adds, millions of activations, megabytes."""


def shown(value: float) -> str:
    """A number for a table: three digits that count, and all of those before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


# -- pictures ---------------------------------------------------------------------------------------------------------


def pareto_figure(
    comparison: Comparison,
    across: Sequence[Quantity] = ("multiply_adds", "pictures_per_second"),
    up: Quantity | None = None,
    *,
    width: float = 9.0,
) -> Figure:
    """Each network a point between two quantities; those that no other beats in both are joined by a line.

    Args:
        comparison: the networks.
        across: one panel for each, on an axis of powers.
        up: the other quantity; accuracy where any is known, else parameters.
        width: of the figure, in inches.

    Raises:
        UsageError: no network has the quantities of any panel.
    """
    if up is None:
        up = "top1" if any(model.learned is not None for model in comparison.models) else "parameters"
    points = {one: _points(comparison, one, up) for one in across}
    if not any(points.values()):
        raise UsageError("There is nothing to draw: no network has both quantities of any panel.")
    across = [one for one in across if points[one]]
    figure = Figure(figsize=(width, 0.42 * width if len(across) > 1 else 0.65 * width), dpi=150, layout="constrained")
    for place, (one, axes) in enumerate(zip(across, figure.subplots(1, len(across), squeeze=False)[0], strict=True)):
        _prepare(axes)
        axes.set_xscale("log")
        _scaled(axes, "x", one)
        if up == "top1":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        else:
            axes.set_yscale("log")
            _scaled(axes, "y", up)
        axes.set_xlabel(_axis(comparison, one), fontsize=_TEXT, color=_INK)
        if not place:
            axes.set_ylabel(_axis(comparison, up), fontsize=_TEXT, color=_INK)
        front = [name for name in comparison.front(one, up) if name in points[one]]
        axes.plot(*zip(*(points[one][name] for name in front), strict=True), "-", color=_COLOURS[0], linewidth=1.2, zorder=1)
        for model in comparison.models:
            if model.name not in points[one]:
                continue
            x, y = points[one][model.name]
            colour = _COLOURS[0] if model.name in front else _QUIET
            if up == "top1" and model.learned is not None:
                axes.plot([x, x], [model.learned.low, model.learned.high], color=colour, linewidth=0.8, alpha=0.5, zorder=1)
            axes.plot(x, y, "o", color=colour, markersize=5, zorder=2)
        axes.margins(0.12, 0.12)
        axes.set_title(f"front of {len(front)}", fontsize=_TEXT - 1, color=_QUIET, loc="right")
    figure.draw_without_rendering()  # where everything stands is known only then,
    figure.set_layout_engine("none")  # and stays
    for one, axes in zip(across, figure.axes, strict=True):
        _label(figure, axes, points[one])
    return figure


def growth_figure(comparison: Comparison, *, width: float = 9.0) -> Figure:
    """How multiply-adds, those of attention alone, and time grow with the number of pixels, on axes of powers.

    The power is fitted to all points of a line and told in the legend: 1 is linear in the pixels, 2 quadratic, as the
    products of global attention are. Time is drawn where two sizes or more were timed.

    Args:
        comparison: the networks.
        width: of the figure, in inches.

    Raises:
        UsageError: no network was counted at two sizes, or there are more than can be told apart.
    """
    models = [model for model in comparison.models if model.growth("multiply_adds") is not None]
    if not models or len(models) > _MOST:
        raise UsageError(
            f"Growth is drawn for 1 to {_MOST} networks counted at two sizes or more; {len(models)} of them came."
        )
    panels: list[tuple[Literal["multiply_adds", "attention", "seconds"], str]] = [
        ("multiply_adds", "multiply-adds per picture"),
        ("attention", "of them, in attention's two products"),
        ("seconds", f"seconds for {max(comparison.batches)} at once"),
    ]
    panels = [panel for panel in panels if any(model.growth(panel[0]) is not None for model in models)]
    below = 0.16 * len(models) + 0.1  # inches for the legends, which no layout can place
    tall = (0.38 if len(panels) > 1 else 0.6) * width + below
    layout = ConstrainedLayoutEngine(rect=(0.0, below / tall, 1.0, 1 - below / tall))
    figure = Figure(figsize=(width, tall), dpi=150, layout=layout)
    for (what, title), axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        _prepare(axes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=_TEXT, color=_INK, loc="left")
        axes.set_xlabel("pixels of the picture", fontsize=_TEXT, color=_INK)
        sides: set[tuple[int, int]] = set()
        for place, model in enumerate(models):
            power = model.growth(what)
            if power is None:
                continue
            drawn = _line(model, what, max(comparison.batches))
            sides |= {size for size, _ in drawn}
            axes.plot(
                [math.prod(size) for size, _ in drawn],
                [value for _, value in drawn],
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=_DASHES[place // len(_COLOURS)],
                marker=_MARKS[place % len(_MARKS)],
                markersize=3.5,
                linewidth=1.2,
                label=f"{_short(model.name)}: pixels^{power:.2f}",
            )
        ticks: list[tuple[int, int]] = []
        for side in sorted(sides, key=math.prod):
            if not ticks or math.prod(side) > 1.3 * math.prod(ticks[-1]):  # numbers that would cover each other
                ticks.append(side)
        axes.set_xticks([math.prod(size) for size in ticks], [_side(size) for size in ticks], rotation=30)
        axes.xaxis.set_minor_locator(NullLocator())
    figure.draw_without_rendering()  # where everything stands is known only then,
    figure.set_layout_engine("none")  # and stays
    for axes in figure.axes:
        corner = (axes.get_position().x0, below / tall - 0.01)
        axes.legend(
            fontsize=_TEXT - 1.5,
            frameon=False,
            loc="upper left",
            handlelength=2.4,
            labelspacing=0.3,
            bbox_to_anchor=corner,
            bbox_transform=figure.transFigure,
        )
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _line(model: Compared, what: str, batch: int) -> list[tuple[tuple[int, int], float]]:
    """Sizes and values of a cost, the smallest size first."""
    if what == "seconds":
        found = [(one.size, one.seconds) for one in model.speeds if one.batch == batch]
    else:
        found = [(one.size, float(getattr(one, what))) for one in model.costs]
    return sorted(found, key=lambda one: math.prod(one[0]))


def _points(comparison: Comparison, across: Quantity, up: Quantity) -> dict[str, tuple[float, float]]:
    found = {}
    for model in comparison.models:
        x, y = comparison.value(model, across), comparison.value(model, up)
        if x is not None and y is not None:
            found[model.name] = x, y
    return found


def _axis(comparison: Comparison, quantity: Quantity) -> str:
    """What an axis says: the quantity, where it was measured, and which way is better."""
    name, better = QUANTITIES[quantity]
    at = f" at {_side(comparison.sizes[0])}"
    timed = quantity in ("pictures_per_second", "seconds_per_picture", "memory")
    many = f", {max(comparison.batches)} at once" if timed else ""
    at = "" if quantity in ("parameters", "top1") else at
    return f"{name}{at}{many} ({better} is better)"


def _scaled(axes: Axes, which: Literal["x", "y"], quantity: Quantity) -> None:
    """Numbers of a logarithmic axis with k, M, G; those between powers of ten too where there are few of those."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    unit = "s" if quantity == "seconds_per_picture" else "B" if quantity == "memory" else ""
    axis.set_major_formatter(EngFormatter(unit=unit, sep=""))
    axis.set_minor_formatter(_Between(unit=unit, sep=""))


class _Between(EngFormatter):
    """Numbers at 2 and 5 between powers of ten, where an axis spans two of these at most."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        if self.axis is None or x <= 0:
            return ""
        low, high = sorted(self.axis.get_view_interval())
        leading = round(x / 10 ** math.floor(math.log10(x) + 1e-9))
        return str(super().__call__(x, pos)) if leading in (2, 5) and high <= 100 * low else ""


def _prepare(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(True, color=_RULE, linewidth=0.6)
    axes.tick_params(which="both", labelsize=_TEXT - 1, color=_RULE, labelcolor=_QUIET)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_RULE)


def _label(figure: Figure, axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write names beside points, each where it covers the least of what stands there already."""
    scale = figure.dpi / 72
    inside = axes.get_window_extent()
    spots = [tuple(axes.transData.transform(point)) for point in points.values()]
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in spots]
    for (name, point), (x, y) in zip(points.items(), spots, strict=True):
        text = axes.annotate(
            _short(name),
            point,
            (0, 0),
            textcoords="offset points",
            fontsize=_TEXT - 1,
            color=_INK,
            va="bottom",
            parse_math=False,
            zorder=3,
        )
        extent = text.get_window_extent()
        wide, tall = extent.width, extent.height
        best: tuple[float, tuple[float, float, float, float]] | None = None
        for far in (6, 12, 20):
            for left, low in _corners(wide, tall, far * scale):
                box = x + left, y + low, x + left + wide, y + low + tall
                out = wide * tall - _shared(box, (inside.x0, inside.y0, inside.x1, inside.y1))
                cost = sum(_shared(box, other) for other in taken) + 4 * out + 0.02 * far * wide
                if best is None or cost < best[0]:
                    best = cost, box
        if best is not None:
            taken.append(best[1])
            text.set_position(((best[1][0] - x) / scale, (best[1][1] - y) / scale))


def _corners(wide: float, tall: float, far: float) -> Iterable[tuple[float, float]]:
    """Where a text's lower left corner may stand around a point: beside it, above, below, and between."""
    yield far, -tall / 2
    yield -far - wide, -tall / 2
    yield -wide / 2, far
    yield -wide / 2, -far - tall
    yield from ((far, far / 2), (far, -far / 2 - tall), (-far - wide, far / 2), (-far - wide, -far / 2 - tall))


def _shared(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """The area that two boxes (left, low, right, high) have in common."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(tall, 0.0)


def _side(size: tuple[int, int]) -> str:
    return f"{size[0]}²" if size[0] == size[1] else f"{size[0]}×{size[1]}"


# -- the page ---------------------------------------------------------------------------------------------------------


def comparison_page(comparison: Comparison) -> str:
    """A page about networks held against each other, one HTML file that needs no network.

    Returns:
        HTML, to be written as UTF-8.
    """
    machine = comparison.machine
    return page.document(
        f"{len(comparison.models)} networks compared",
        page.section("Who is not beaten", *_fronts(comparison)),
        *(page.section(f"At {high} × {wide} pixels", _numbers(comparison, (high, wide))) for high, wide in comparison.sizes),
        _units(),
        *_learned(comparison),
        *_grown(comparison),
        _failed(comparison),
        page.section("Where it was measured", page.facts([(name, str(value)) for name, value in machine.items()])),
        lead=", ".join(model.name for model in comparison.models) + ".",
        foot="This page fetches nothing.",
        style=_STYLE,
    )


def _units() -> str:
    return page.paragraph(
        "GMACs: 10⁹ multiplications, each with the addition that follows it, for one picture; what papers call FLOPs. "
        "PyTorch's own counter, which counts both, must come to twice as many, and a figure where it does not is marked. "
        "Activations: numbers that come out of convolutions, linear layers and attention's products. Pictures a second: "
        "medians of turns in which every network answers, ×1 for one at once. MB: 10⁶ bytes of memory at most for that many "
        "at once, weights included, in a process of its own.",
        kind="quiet",
    )


def _fronts(comparison: Comparison) -> list[str]:
    try:
        figure = pareto_figure(comparison)
    except UsageError as error:
        return [page.paragraph(str(error))]
    up: Quantity = "top1" if any(model.learned is not None for model in comparison.models) else "parameters"
    told = [
        f"{QUANTITIES[up][0]} against {QUANTITIES[one][0]}: {', '.join(comparison.front(one, up)) or 'none'}"
        for one in ("multiply_adds", "pictures_per_second")
    ]
    remark = (
        "Those on the line are the ones that no other network beats in one quantity without losing in the other. Without "
        "an accuracy (--data) small is no sign of good: then the picture shows size, not worth."
        if up == "parameters"
        else "Those on the line are the ones that no other network beats in one quantity without losing in the other; the "
        "strokes are where 95 % of accuracies would lie, were other pictures drawn."
    )
    return [_picture(figure, "; ".join(told)), page.paragraph(remark, kind="quiet")]


def _grown(comparison: Comparison) -> list[str]:
    try:
        figure = growth_figure(comparison)
    except UsageError:
        return []
    told = "; ".join(
        f"{model.name}: multiply-adds grow with the pixels to the power of {power:.2f}"
        for model in comparison.models
        if (power := model.growth("multiply_adds")) is not None
    )
    remark = (
        "Both axes are of powers, so that a straight line is a power of the number of pixels, and its slope, in the legend, "
        "the exponent. Projections, convolutions and attention in windows grow linearly; the products of global attention "
        "quadratically, and take over where pictures are large."
    )
    return [page.section("How it grows with the picture", _picture(figure, told), page.paragraph(remark, kind="quiet"))]


def _numbers(comparison: Comparison, size: tuple[int, int]) -> str:
    """What every network costs at a size."""
    many = [f"{COLUMNS[one]} ×{batch}" for one in ("pictures_per_second", "memory") for batch in comparison.batches]
    head = ["", *(COLUMNS[one] for one in ("parameters", "multiply_adds", "activations")), *many]
    rows = []
    for model in comparison.models:
        cost = model.cost(size)
        speeds = [model.speed(size, batch) for batch in comparison.batches]
        cells = ["", "", ""]
        if cost is not None:
            marked = "" if cost.agrees else " (PyTorch counts otherwise)"
            cells = [shown(cost.parameters / 1e6), shown(cost.multiply_adds / 1e9) + marked, shown(cost.activations / 1e6)]
        cells += ["" if speed is None else shown(speed.pictures_per_second) for speed in speeds]
        cells += ["" if speed is None or speed.memory is None else shown(speed.memory / 1e6) for speed in speeds]
        failed = any(one.size == size and one.what != "training" for one in model.failed)
        rows.append((model.name, [one or ("failed" if failed else "–") for one in cells]))
    return _table(head, rows)


def _learned(comparison: Comparison) -> list[str]:
    """What the networks learnt within the common budget."""
    training = comparison.training
    if training is None:
        return []
    rows = []
    for model in comparison.models:
        one = model.learned
        if one is None:
            rows.append((model.name, ["failed" if any(f.what == "training" for f in model.failed) else "–", *[""] * 5]))
            continue
        within = f"{one.low:.1%} to {one.high:.1%}"
        start = "random" if one.fresh else "checkpoint"
        took = f"{one.seconds // 60:.0f}:{one.seconds % 60:02.0f}"
        rows.append((model.name, [f"{one.top1:.1%}", within, f"{one.steps:,}", f"{one.epochs:.1f}", took, start]))
    head = ["", "top-1", "95 % of draws", "steps", "epochs", "min:s", "weights at first"]
    recipe = [(name, str(value)) for name, value in training.get("recipe", {}).items()]
    return [
        page.section(
            "What they learn",
            page.paragraph(str(training.get("told", ""))),
            _table(head, rows),
            page.details("The recipe that all share", page.facts(recipe)),
        )
    ]


def _failed(comparison: Comparison) -> str:
    rows = [(model.name, str(one)) for model in comparison.models for one in model.failed]
    return page.section("What could not be done", page.facts(rows)) if rows else ""


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of numbers, names to the left."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_cell, cells))}</tr>' for name, cells in rows)
    return f'<div class="scroll"><table class="numbers"><tr>{top}</tr>{lines}</table></div>'


def _cell(text: str) -> str:
    return f'<td class="failed">{escape(text)}</td>' if text == "failed" else f"<td>{escape(text)}</td>"


def _picture(figure: Figure, told: str) -> str:
    """A figure inside the page, sharp at any size."""
    memory = io.BytesIO()
    figure.savefig(memory, format="svg", metadata={"Date": None})
    content = base64.b64encode(memory.getvalue()).decode("ascii")
    return f'<figure class="sheet"><img src="data:image/svg+xml;base64,{content}" alt="{escape(told)}"></figure>'
