"""Figures for papers: heads and layers, positions, filters, distances, norms, and explanations side by side.

Each function returns a `matplotlib.figure.Figure` of its own and touches nothing else of matplotlib; `savefig("a.pdf")`
writes it. Widths are in inches: `COLUMN` and `PAGE` are those of one column and of both of most proceedings, and text has 8
and 7 points at any width. Colours are such as colour-blind people tell apart (see `base.colours`; Okabe and Ito 2008).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsIndex

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from vitral.base.image import Picture
from vitral.base.numbers import as_integer, whole_number
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import Captured
from vitral.explanation.embeddings import FilterComponents, PositionSimilarity, patch_pictures
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.methods import title_of
from vitral.explanation.result import Explanation
from vitral.explanation.statistics import HeadStatistics, TokenNorms

__all__ = [
    "COLUMN",
    "PAGE",
    "attention_grid",
    "compare",
    "distance_chart",
    "filter_grid",
    "norm_histogram",
    "patch_grid",
    "position_grid",
]

COLUMN = 3.3
"""The width of one column of a two-column page, in inches."""
PAGE = 6.9
"""The width of both columns, in inches."""

_TEXT, _SMALL = 8.0, 7.0  # points
_INK, _QUIET = "#18202e", "#8a93a1"
_BLUE, _VERMILLION = "#0072b2", "#d55e00"  # Okabe and Ito
_RESOLUTION = 300  # dots per inch
_LINE = _TEXT / 72 * 1.25  # inches that a line of text takes
_EDGE = 0.03  # inches left free around everything,
_TOP = 0.06  # and above a key, whose last number stands half above its end


# Sheets and panels: everything is placed in inches, so that panels are as large as can be and text never moves them.


def _sheet(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=_RESOLUTION, facecolor="white")


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes whose corner lies so many inches from the sheet's left and top."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down), facecolor="white")
    axes.grid(False)
    return axes


def _room(text: str, size: float) -> float:
    """How wide a text is, in inches."""
    plain = text.replace("$", "S")  # which would begin a formula
    return float(TextPath((0, 0), plain, size=size).get_extents().x1) / 72 if text.strip() else 0.0


def _fitting(label: str, end: str, room: float, size: float) -> str:
    """A label and what follows it, fitted in: synonyms after a comma go first, then letters, with an ellipsis for them."""
    while _room(label + end, size) > room and ", " in label:
        label = label.rpartition(", ")[0]
    if _room(label + end, size) <= room:
        return label + end
    while label and _room(f"{label}…{end}", size) > room:
        label = label[:-1]
    return f"{label.rstrip(' ,')}…{end}"


class _Panels:
    """Where panels of one size lie, in rows and columns a little apart; one unit is the width of a panel.

    Args:
        rows, columns: how many.
        tall: height of a panel.
        gap: what lies between two.
        width: what all of them take together, in inches.
        below: room below each for text, in inches.
    """

    def __init__(self, rows: int, columns: int, *, tall: float, gap: float, width: float, below: float = 0.0) -> None:
        self.unit = width / (columns * (1 + gap) - gap)
        self.tall, self.gap, self.pitch = tall, gap, tall + below / self.unit + gap
        self.size = columns * (1 + gap) - gap, rows * self.pitch - gap
        self.height = self.size[1] * self.unit
        self.across = [column * (1 + gap) + 0.5 for column in range(columns)]
        self.down = [row * self.pitch + tall / 2 for row in range(rows)]

    def on(self, figure: Figure, left: float, top: float) -> Axes:
        """Empty axes for all panels, their corner so many inches from the sheet's left and top."""
        axes = _axes(figure, left, top, self.size[0] * self.unit, self.height)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        self._frame(axes)
        return axes

    def _frame(self, axes: Axes) -> None:
        axes.set_xlim(0, self.size[0])
        axes.set_ylim(self.size[1], 0)

    def show(
        self, axes: Axes, row: int, column: int, values: Shaped[np.ndarray, "y x *c"], tall: float | None = None, **how: Any
    ) -> None:
        """Fill a panel with a map (y x) or a colour picture (y x 3), which may be less tall than it."""
        x, y, half = self.across[column], self.down[row], (self.tall if tall is None else tall) / 2
        # "none" keeps the cells of a map sharp in a PDF, too.
        axes.imshow(values, extent=(x - 0.5, x + 0.5, y + half, y - half), aspect="auto", interpolation="none", **how)
        self._frame(axes)

    def caption(self, axes: Axes, row: int, column: int, text: str, size: float, line: float = 0.0) -> None:
        """Text below a panel, so many inches lower than where it begins."""
        y = self.down[row] + self.tall / 2 + (0.03 + line) / self.unit
        axes.text(self.across[column], y, text, fontsize=size, color=_INK, ha="center", va="top", parse_math=False)

    def name(self, axes: Axes, rows: tuple[str, Sequence[str]], columns: tuple[str, Sequence[str]]) -> None:
        """Tell what rows and columns are, and each by its name."""
        (row, row_names), (column, column_names) = rows, columns
        step = _step(max(_room(name, _SMALL) for name in column_names) + 0.04, (1 + self.gap) * self.unit)
        axes.set_xticks(self.across[::step], column_names[::step])
        step = _step(_SMALL / 72, self.pitch * self.unit)
        axes.set_yticks(self.down[::step], row_names[::step])
        axes.tick_params(length=0, pad=2, labelsize=_SMALL, labelcolor=_INK)
        axes.set_xlabel(column, fontsize=_TEXT, color=_INK, labelpad=2)
        axes.set_ylabel(row, fontsize=_TEXT, color=_INK, labelpad=3)


def _step(needed: float, room: float) -> int:
    """Of names that take so much room, every how many-th fits."""
    return max(1, math.ceil(needed / room))


def _margin(names: Sequence[str]) -> float:
    """Inches that the names of rows and what they are take to the left of panels."""
    return _EDGE + _LINE + 0.06 + max(_room(name, _SMALL) for name in names)


_FOOT = 0.04 + 2 * _LINE
"""Inches that the names of columns and what they are take below panels."""


def _ticks(low: float, high: float) -> dict[float, str]:
    """A few round numbers of a scale, and how they are written."""
    places = [float(place) for place in MaxNLocator(4).tick_values(low, high)]
    return {place: f"{place:g}".replace("-", "−") for place in places if low <= place <= high}


def _key_room(ticks: Iterable[str], label: str = "") -> float:
    """Inches that a key to colours takes to the right of panels."""
    return 0.21 + max(_room(tick, _SMALL) for tick in ticks) + _EDGE + (_LINE + 0.04 if label else 0.0)


def _key(
    figure: Figure,
    left: float,
    top: float,
    height: float,
    norm: Normalize,
    colours: str,
    ticks: dict[float, str],
    label: str = "",
) -> None:
    """A key to colours, beside panels whose right edge and top lie so many inches from the sheet's left and top."""
    axes = _axes(figure, left + 0.08, top, 0.07, height)
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=axes)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, width=0.5, pad=2, labelsize=_SMALL, color=_INK, labelcolor=_INK)
    bar.set_label(label, fontsize=_TEXT, color=_INK, labelpad=3)


def _checked(width: float, least: float) -> float:
    if not least <= width <= 100:
        raise UsageError(f"width is in inches, from {least:g} to 100 for this figure; {width!r} came.")
    return width


# Pictures and patches


def patch_grid(
    pixels: Float[Tensor, "c y x"],
    patch_size: int | tuple[int, int],
    *,
    preprocessing: Preprocessing | None = None,
    gap: float = 0.1,
    width: float = COLUMN,
) -> Figure:
    """A picture in the pieces that a model cuts it into (Dosovitskiy et al. 2021, figure 1).

    Args:
        pixels: the picture as prepared for the model, of three channels or one.
        patch_size: (height, width) of a patch in pixels; one number for square ones.
        preprocessing: how it was prepared, which is undone; without it, from black at the least number to white at the
            greatest.
        gap: what lies between two patches, in widths of a patch.
        width: of the figure, in inches.

    Raises:
        UsageError: other channels, or a picture smaller than one patch.
    """
    _checked(width, 0.5)
    if not 0 <= gap <= 10:
        raise UsageError(f"gap is in widths of a patch, from 0 to 10; {gap!r} came.")
    patches = patch_pictures(_visible(pixels, preprocessing), patch_size).numpy()
    rows, columns, _, high, wide = patches.shape
    panels = _Panels(rows, columns, tall=high / wide, gap=gap, width=width)
    figure = _sheet(width, panels.height)
    axes = panels.on(figure, 0.0, 0.0)
    for row, column in np.ndindex(rows, columns):
        _show_colours(panels, axes, row, column, patches[row, column])
    return figure


def _visible(pixels: Tensor, preprocessing: Preprocessing | None) -> Float[Tensor, "c y x"]:
    """A prepared picture as levels from 0 to 1."""
    values = pixels.detach().float().cpu()
    if len(values) not in (1, 3):
        raise UsageError(f"Pictures of three channels or one can be drawn; {len(values)} came.")
    if not values.isfinite().all():
        raise UsageError("The picture holds numbers that are not finite.")
    if preprocessing is None:
        low, high = values.min(), values.max()
        return (values - low) / (high - low).clamp(min=1e-12)
    mean, std = values.new_tensor([preprocessing.mean, preprocessing.std]).unflatten(1, (-1, 1, 1))
    return ((values * std + mean) / (255 * preprocessing.scale)).clamp(0, 1)


def filter_grid(filters: FilterComponents, *, columns: int = 7, width: float = COLUMN) -> Figure:
    """The principal components of a patch embedding's filters as pictures (Dosovitskiy et al. 2021, figure 7 left).

    Grey is zero, and each reaches from black to white or in colour as far as its greatest number; below each stands the
    share of the filters' variance that it explains.

    Args:
        filters: see `filter_components`; of three channels or one.
        columns: how many stand in a row.
        width: of the figure, in inches.

    Raises:
        UsageError: filters of other channels.
    """
    _checked(width, 1.0)
    count, channels, high, wide = filters.components.shape
    if channels not in (1, 3):
        raise UsageError(f"Filters of three channels or one can be drawn; these have {channels}.")
    columns = min(whole_number("columns", columns), count)
    panels = _Panels(
        math.ceil(count / columns), columns, tall=high / wide, gap=0.1, width=width - 2 * _EDGE, below=0.9 * _LINE
    )
    figure = _sheet(width, panels.height + 2 * _EDGE)
    axes = panels.on(figure, _EDGE, _EDGE)
    for place, (component, share) in enumerate(zip(filters.components, filters.shares, strict=True)):
        row, column = divmod(place, columns)
        _show_colours(panels, axes, row, column, 0.5 + component / (2 * np.abs(component).max()))
        panels.caption(axes, row, column, f"{share:.1%}", _SMALL - 1)
    return figure


def _show_colours(panels: _Panels, axes: Axes, row: int, column: int, levels: Float[np.ndarray, "c y x"]) -> None:
    """A picture of levels from 0 to 1, in grey where it has one channel."""
    if len(levels) == 1:
        panels.show(axes, row, column, levels[0], cmap="gray", vmin=0.0, vmax=1.0)
    else:
        panels.show(axes, row, column, levels.transpose(1, 2, 0))


# Positions and heads


def position_grid(similarity: PositionSimilarity, *, every: int | None = None, width: float = COLUMN) -> Figure:
    """For each patch a map of how similar its position is to every other's (Dosovitskiy et al. 2021, figure 7 centre).

    The map in row r and column s belongs to the patch there. Where values are bounded, colours span all that they could
    be; else zero is in the middle.

    Args:
        similarity: see `position_similarity`.
        every: draw the maps of every how many-th row and column; by default all of a grid of up to 14, and about as many of
            a larger one.
        width: of the figure, in inches.
    """
    _checked(width, 1.5)
    every = math.ceil(max(similarity.grid) / 14) if every is None else every
    if not 1 <= every <= max(similarity.grid):
        raise UsageError(f"every must be from 1 to {max(similarity.grid)}, the longer side of the grid; {every!r} came.")
    rows, columns = (list(range((min(every, side) - 1) // 2, side, every)) for side in similarity.grid)
    row_names, column_names = ([str(place) for place in places] for places in (rows, columns))
    left = _margin(row_names)
    reach = float(np.abs(similarity.values).max()) or 1.0
    low, high = similarity.limits or (-reach, reach)
    norm, ticks, colours = Normalize(low, high), _ticks(low, high), "viridis" if similarity.limits else "RdBu_r"
    room = width - left - _key_room(ticks.values(), similarity.label)
    panels = _Panels(len(rows), len(columns), tall=similarity.grid[0] / similarity.grid[1], gap=0.12, width=room)
    row_title, column_title = "Patch row", "Patch column"
    # Of a low grid what is written upright stands out above and below.
    out = max(0.0, max(_room(text, _TEXT) for text in (row_title, similarity.label)) - panels.height) / 2
    top = _TOP + out
    figure = _sheet(width, top + panels.height + max(_FOOT, out + _EDGE))
    axes = panels.on(figure, left, top)
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        panels.show(axes, i, j, similarity.values[row, column], norm=norm, cmap=colours)
    panels.name(axes, (row_title, row_names), (column_title, column_names))
    _key(figure, left + room, top, panels.height, norm, colours, ticks, similarity.label)
    return figure


def attention_grid(
    maps: Captured | Sequence[Tensor],
    geometry: TokenGeometry,
    picture: Picture | None = None,
    *,
    token: SupportsIndex = 0,
    place: SupportsIndex = 0,
    scale: Literal["each", "shared"] = "each",
    width: float = PAGE,
) -> Figure:
    """Where a token looks in every head (rows) of every layer (columns), beside the picture.

        with capture(model, queries=0) as maps:
            model(pixels)
        attention_grid(maps, TokenGeometry.of(model, grid, seen.frame), seen.picture)

    Args:
        maps: attention (b h n m) of each layer, of all asking tokens or of one alone (n = 1). Heads are counted as they
            come, and so are layers where they come without names.
        geometry: what the tokens are.
        picture: the picture, of which the part that patches cover is drawn.
        token: which token asks; where the maps are of one alone, it is named so.
        place: which picture of the batch.
        scale: whether the colours of each map reach to its own greatest weight, or all to the greatest of all.
        width: of the figure, in inches.

    Raises:
        UsageError: no maps, or maps of other tokens than the geometry's.
    """
    if scale not in ("each", "shared"):
        raise UnknownNameError("scale", scale, ("each", "shared"))
    name = geometry.name(token)
    name = f"the {name} token" if name in geometry.prefix else name
    asked = [_of_token(attention, geometry, token, place) for attention in maps]
    if not asked:
        raise UsageError("There are no attention maps to draw.")
    layers = [_number(layer) for layer in maps.layers] if isinstance(maps, Captured) else [str(n) for n in range(len(asked))]
    heads = [str(head) for head in range(max(len(of_layer) for of_layer in asked))]
    tall = geometry.grid[0] * geometry.patch_size[0] / (geometry.grid[1] * geometry.patch_size[1])
    shape: dict[str, Any] = {"rows": len(heads), "columns": len(layers), "tall": tall, "gap": 0.06}
    greatest = max(float(of_layer.max()) for of_layer in asked) or 1.0
    norm = Normalize(0.0, greatest if scale == "shared" else 1.0)
    ticks = _ticks(0.0, greatest) if scale == "shared" else {0.0: "0", 1.0: "max"}
    key = _key_room(ticks.values())
    room = _checked(width, 2.0) - _margin(heads) - key
    beside = 0.0
    if picture is not None:  # as high as all panels together, unless it then took more than a fifth of the width
        high = _Panels(**shape, width=1.0).height
        beside = min(0.2 * width, high * (room - 0.05) / (tall + high))
        room -= beside + 0.05
    panels = _Panels(**shape, width=min(room, 1.2 * len(layers)))
    top, left = _TOP + _LINE, width - key - room
    figure = _sheet(width, top + max(panels.height + _FOOT, beside * tall + _EDGE))
    if picture is not None:
        alone = _Panels(1, 1, tall=tall, gap=0.0, width=beside)
        alone.show(alone.on(figure, _EDGE, top), 0, 0, _covered(picture, geometry, round(beside * _RESOLUTION)))
    axes = panels.on(figure, left, top)
    axes.set_title(f"Attention of {name}", fontsize=_TEXT, color=_INK, loc="left", pad=3)
    for column, of_layer in enumerate(asked):
        for row, attention in enumerate(of_layer):
            most = greatest if scale == "shared" else float(attention.max()) or 1.0
            panels.show(axes, row, column, attention, cmap="inferno", vmin=0.0, vmax=most)
    panels.name(axes, ("Head", heads), ("Layer", layers))
    _key(figure, left + panels.size[0] * panels.unit, top, min(panels.height, 1.5), norm, "inferno", ticks)
    return figure


def _of_token(
    attention: Tensor, geometry: TokenGeometry, token: SupportsIndex, place: SupportsIndex
) -> Float[np.ndarray, "h i j"]:
    """Where a token looks among the patches, in every head."""
    if attention.ndim != 4:
        raise UsageError(
            f"Maps of pictures, heads, asking and asked tokens (b h n m) are needed; one is {tuple(attention.shape)}."
        )
    pictures, _, asking, _ = attention.shape
    number = as_integer(place)
    if number is None or not -pictures <= number < pictures:
        raise UsageError(f"There is no picture {place}: the maps are of {pictures}, numbered 0 to {pictures - 1}.")
    if asking not in (1, len(geometry)):
        raise UsageError(f"There are {len(geometry)} tokens; maps of all of them, or of one, are needed, but {asking} ask.")
    row = attention[number, :, 0 if asking == 1 else token].detach().float().cpu().numpy()
    if not np.isfinite(row).all():
        raise UsageError("The maps hold numbers that are not finite.")
    return np.asarray(geometry.layout(row))


def _number(layer: str) -> str:
    """A layer's number, or its name where it has none: "3" of "blocks.3.attention"."""
    numbers = re.findall(r"\d+", layer)
    return numbers[-1] if numbers else layer


def _covered(picture: Picture, geometry: TokenGeometry, width: int) -> UInt8[np.ndarray, "y x 3"]:
    """The part of a picture that patches cover, so many pixels wide."""
    frame, (rows, columns), (high, wide) = geometry.frame, geometry.grid, geometry.patch_size
    finer = width / (columns * wide)
    size = [max(1, round(side * by * finer)) for side, by in zip(picture.size, frame.scale, strict=True)]
    image = picture.image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=picture.box)
    top, left = (round(side * finer) for side in frame.offset)
    return np.asarray(image.crop((left, top, left + width, top + round(rows * high * finer))))


# Charts


def _chart(width: float, across: str, up: str) -> tuple[Figure, Axes]:
    """Axes with names and room for their numbers; wide ones grow no taller."""
    figure = _sheet(_checked(width, 2.5), min(0.66 * width, 2.6))
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=_EDGE, h_pad=_EDGE))
    axes = figure.add_subplot(facecolor="white")
    axes.grid(False)
    axes.set_xlabel(across, fontsize=_TEXT, color=_INK)
    axes.set_ylabel(up, fontsize=_TEXT, color=_INK)
    axes.tick_params(which="both", length=2.5, width=0.6, labelsize=_SMALL, color=_INK, labelcolor=_INK)
    axes.tick_params(which="minor", length=1.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_linewidth(0.6)
        spine.set_color(_INK)
    return figure, axes


def _legend(axes: Axes) -> None:
    """Name what is drawn in one line above it, where it hides nothing."""
    how: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "columnspacing": 1.0}
    axes.legend(ncols=3, fontsize=_SMALL, labelcolor=_INK, frameon=False, handlelength=1.2, handletextpad=0.5, **how)


def distance_chart(statistics: HeadStatistics, *, width: float = COLUMN) -> Figure:
    """How far heads look, by depth: a dot per head, a line through their means (Dosovitskiy et al. 2021, figure 7 right).

    Args:
        statistics: see `head_statistics`.
        width: of the figure, in inches.
    """
    figure, axes = _chart(width, "Layer", "Mean attention distance (pixels)")
    layers, heads = statistics.distance.shape
    depth = np.arange(layers)
    dots = np.repeat(depth, heads), statistics.distance.ravel()
    axes.scatter(*dots, s=14, color=_BLUE, alpha=0.8, linewidth=0, label="head", zorder=2)
    axes.plot(depth, statistics.distance.mean(1), color=_QUIET, linewidth=1, label="mean over heads", zorder=1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    _legend(axes)
    return figure


def norm_histogram(norms: TokenNorms, *, bins: int = 50, width: float = COLUMN) -> Figure:
    """How long patches' tokens are, outliers in another colour (Darcet et al. 2024, figure 3); counts on a log scale.

    Args:
        norms: see `token_norms`.
        bins: how many, from 0 to the greatest norm.
        width: of the figure, in inches.
    """
    figure, axes = _chart(width, f"L2 norm after block {_number(norms.layer)}", "Patches")
    _, edges = norms.histogram(bins)
    found = int(norms.outliers.sum())
    axes.hist(
        [norms.patches[~norms.outliers], norms.patches[norms.outliers]],
        bins=edges.tolist(),
        stacked=True,
        color=[_BLUE, _VERMILLION],
        label=[f"{norms.patches.size - found:,} patches", f"{found:,} outliers"],
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(bottom=0.7)
    axes.set_xlim(0, 1.05 * max(edges[-1], norms.threshold))
    axes.axvline(norms.threshold, color=_INK, linewidth=0.8, linestyle=(0, (4, 2)), label=f"threshold {norms.threshold:.4g}")
    _legend(axes)
    return figure


# Explanations


def compare(
    explanations: Iterable[Explanation], *, columns: int | None = None, original: bool = False, width: float = PAGE
) -> Figure:
    """Explanations side by side; below each its method and, where it explains one, the class and its probability.

    Args:
        explanations: of one picture or several; each must have kept its picture.
        columns: how many stand in a row; by default all of up to five, and rows as even as can be of more.
        original: whether each picture also stands alone before its explanations.
        width: of the figure, in inches.

    Raises:
        UsageError: no explanations, or one that did not keep its picture.
    """
    wanted: list[tuple[Explanation, bool]] = []  # each, and whether it is drawn with its heat
    for explanation in explanations:
        if original and not (wanted and _same_picture(wanted[-1][0], explanation)):
            wanted.append((explanation, False))
        wanted.append((explanation, True))
    if not wanted:
        raise UsageError("There are no explanations to compare.")
    if columns is None:
        columns = math.ceil(len(wanted) / math.ceil(len(wanted) / 5))
    columns = min(whole_number("columns", columns), len(wanted))
    across = _checked(width, 1.0) - 2 * _EDGE
    texts = _captions(wanted, across / (columns * 1.05 - 0.05))
    panels = _Panels(
        rows=math.ceil(len(wanted) / columns),
        columns=columns,
        tall=max(one.size[0] / one.size[1] for one, _ in wanted),
        gap=0.05,
        width=across,
        below=max(map(len, texts)) * _LINE + 0.03,
    )
    figure = _sheet(width, panels.height + 2 * _EDGE)
    axes = panels.on(figure, _EDGE, _EDGE)
    for number, (one, heat) in enumerate(wanted):
        row, column = divmod(number, columns)
        tall = one.size[0] / one.size[1]
        longest = math.ceil(panels.unit * _RESOLUTION * max(tall, 1.0))
        panels.show(axes, row, column, np.asarray(one.draw(longest=longest) if heat else _alone(one, longest)), tall)
        for line, text in enumerate(texts[number]):
            panels.caption(axes, row, column, text, _SMALL if line else _TEXT, line * _LINE)
    return figure


def _captions(wanted: Sequence[tuple[Explanation, bool]], room: float) -> list[list[str]]:
    """Lines below each picture: the method, the class and its probability, the last two on one line if all of them fit."""
    for apart in (False, True):
        texts = []
        for one, heat in wanted:
            method = title_of(one.method) if heat else "Picture"
            lines = [_fitting(method, "", room, _TEXT)]
            if heat and one.label is not None:
                score = "" if one.score is None else f"{one.score:.1%}"
                lines.append(_fitting(one.label, f" ({score})" if score and not apart else "", room, _SMALL))
                lines += [score] if score and apart else []
            texts.append(lines)
        if not any("…" in line for lines in texts for line in lines):
            break
    return texts


def _same_picture(one: Explanation, other: Explanation) -> bool:
    """Whether two explanations are of one picture; pictures that came without a name may all be called the same."""
    if one.picture is None or other.picture is None:
        return False
    return one.name == other.name and one.picture.image == other.picture.image


def _alone(explanation: Explanation, longest: int) -> Image.Image:
    """The picture of an explanation, without heat."""
    if explanation.picture is None:
        raise UsageError(f"The picture of {explanation.name} was not kept, so it cannot be drawn.")
    scale = min(longest / max(explanation.size), 1.0)
    height, width = (max(1, round(side * scale)) for side in explanation.size)
    return explanation.picture.image.resize((width, height), Image.Resampling.LANCZOS, box=explanation.picture.box)
