"""One look of a segmenter at a picture: its segments, what each was read from, and where that looked.

    look = look_at_segments(predictor, "street.jpg", pixels=[(120, 80)])
    look.labels                      # the segments, then the pixels that were asked about
    look.heat(0)                     # (i j): what the first one took from each cell, in the last layer
    look.on_picture(0, layer=2)      # (y x): the same of another layer, over the original picture
    look.drawn(0, layer=2)           # (i j): how likely each cell was thought to be its own, then
    look.said(0, layer=2)            # what it was thought to be, then, and how surely

Two kinds of networks attend. Where queries draw masks (MaskFormer, Mask2Former, DETR with masks) a segment is a query, which
asks the cells of a map and the other queries. Where the classes of cells are told (SETR, Segmenter, SegFormer, UPerNet on
Swin, TransUNet) a segment is all there is of a class, and what looks for it are the tokens of the patches it covers; in the
blocks of Segmenter's mask decoder it is the token of its class. A pixel is asked about by the patch that it lies in.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, SupportsIndex, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.frame import Frame, Seen
from vitral.base.image import PictureSource
from vitral.base.masks import box_of
from vitral.base.numbers import as_integer, whole_number
from vitral.errors import UsageError
from vitral.explanation.capture import attention_layers, capture
from vitral.explanation.evidence import plain
from vitral.explanation.look import fused_heads, gaze_of
from vitral.explanation.prepares import Prepares, check_predictor
from vitral.explanation.stages import cell_of, moved
from vitral.layers.attention import ScaledDotProduct
from vitral.layers.position import Grid
from vitral.models.output import MapOutput, MaskOutput
from vitral.models.segmentation.kinds import MapNetwork, MaskNetwork
from vitral.tasks.segmentation.decode import Options, decode
from vitral.tasks.segmentation.pieces import Line, lines
from vitral.tasks.segmentation.result import Instances, Segmentation

__all__ = [
    "Asked",
    "Pixel",
    "SegmentGaze",
    "SegmentLook",
    "cells_of",
    "look_at_segments",
    "read_at",
    "segment_gaze",
    "share_of_cells",
]

Pixel = tuple[float, float]
"""x and y in pixels of the original picture."""


@dataclass(frozen=True)
class SegmentGaze:
    """Where a segmenter looks.

    Attributes:
        kind: who asks: "queries", or the tokens of "patches"; "none" where nobody attends to places.
        across: the attentions to the picture, by name, the first layer first.
        among: those among the queries; empty for "patches".
        encoder: those among the cells before queries ask them.
        classes: those of `across` in which tokens of classes stand before the patches.
        picture_first: whether the queries of a block ask the picture before they ask each other.
    """

    kind: Literal["queries", "patches", "none"]
    across: tuple[str, ...] = ()
    among: tuple[str, ...] = ()
    encoder: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    picture_first: bool = False


def segment_gaze(model: nn.Module) -> SegmentGaze:
    """Where a segmenter looks."""
    if isinstance(model, MaskNetwork):
        within = getattr(model, "detr", None)  # a detector with masks asks as the detector does
        before, inside = ("", model) if within is None else ("detr.", within)
        gaze = gaze_of(inside)
        if gaze.kind != "maps":
            return SegmentGaze("none")
        names = [name for name, _ in inside.named_modules()]
        first = names.index(gaze.across[0]) < names.index(gaze.among[0])
        encoder, among, across = (tuple(before + name for name in some) for some in (gaze.encoder, gaze.among, gaze.across))
        return SegmentGaze("queries", across, among, encoder, picture_first=first)
    if not any(isinstance(module, ScaledDotProduct) for module in model.modules()):
        return SegmentGaze("none")
    layers = [layer for layer in attention_layers(model) if layer.block is not None and not layer.layout.channels]
    across = tuple(layer.name for layer in layers)
    decoder = getattr(getattr(model, "head", None), "class_tokens", None)
    classes = tuple(name for name in across if name.startswith("head.")) if decoder is not None else ()
    return SegmentGaze("patches" if across else "none", across, classes=classes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """A segment, or a pixel, of which something is asked.

    Attributes:
        label: the name of its class.
        index: the class's place in the model's output.
        score: how sure the network is of it; a probability, the mean over its pixels where classes of pixels are told.
        mask: its pixels.
        query: what it was read from, where queries draw masks.
        pixel: x and y of the pixel that is asked about; None for a segment.
    """

    label: str
    index: int
    score: float
    mask: Bool[np.ndarray, "y x"]
    query: int | None = None
    pixel: Pixel | None = None

    @cached_property
    def area(self) -> int:
        """How many pixels it has."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of its pixels."""
        return box_of(self.mask)


@dataclass(frozen=True, eq=False)
class SegmentLook:
    """What a segmenter said of a picture, and how it came to it.

    Attributes:
        found: the answer. Of a network whose queries draw masks, the segments before those of one stuff are joined.
        asked: its segments (of classes the largest first, of queries the surest), then the pixels that were asked about; all
            that follows is in their order.
        seen: the picture, and the way back to it.
        gaze: which layers these are.
        across: layer by layer what each took from each cell, by head (k h i j). Grids may differ from layer to layer.
        among: layer by layer what each took from every query, or class, by head (k h q); None where there are none.
        masks: how likely each cell was its own, from layer to layer (k i j). Networks that draw only in the end have one.
        classes: how likely each class was, and behind them nothing, at the same layers (k c); None for networks of classes.
        cells: height and width of a cell of each layer of `across`, in pixels of the input.
        names: the names of all the model's classes.
        threshold: the score that segments of queries had to be above; 0 where all count.
    """

    found: Segmentation | Instances
    asked: tuple[Asked, ...]
    seen: Seen
    gaze: SegmentGaze
    across: tuple[Float[np.ndarray, "k _ _ _"], ...]
    among: tuple[Float[np.ndarray, "k _ _"] | None, ...]
    masks: tuple[Float[np.ndarray, "k _ _"], ...]
    classes: tuple[Float[np.ndarray, "k _"], ...] | None
    cells: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    threshold: float = 0.0

    def __repr__(self) -> str:
        return f"SegmentLook({self.found!r}, {len(self.across)} layers, {self.gaze.kind})"

    def __len__(self) -> int:
        """How many segments and pixels there are."""
        return len(self.asked)

    @property
    def advice(self) -> str:
        """How more is found, as a sentence behind another one; nothing where all there is was found."""
        return " A lower threshold finds more." if self.threshold > 0 else ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of their classes."""
        return tuple(one.label for one in self.asked)

    @property
    def layers(self) -> int:
        """How many layers of attention can be looked at."""
        return len(self.across)

    def heat(
        self, place: SupportsIndex, layer: SupportsIndex = -1, head: SupportsIndex | str = "mean"
    ) -> Float[np.ndarray, "i j"]:
        """What a segment, or a pixel's, asking token took from each cell; of several tokens their mean.

        With one head, or the mean of all, it is a share: cells sum to one, or to less where other tokens were looked at too.

        Args:
            place: the segment's.
            layer: which, by its number.
            head: one of its heads, or how all become one: "mean", "max", "min".

        Raises:
            UsageError: there is no such segment, layer or head, or the network does not attend.
            UnknownNameError: no such way for heads to become one.
        """
        return fused_heads(self.across[self.layer(layer)][self.place(place)], head)

    def on_picture(
        self, place: SupportsIndex, layer: SupportsIndex = -1, head: SupportsIndex | str = "mean"
    ) -> Float[np.ndarray, "y x"]:
        """The same for every pixel of the original picture; what the model did not see has none."""
        return self.seen.frame.map_to_picture(self.heat(place, layer, head), self.cells[self.layer(layer)])

    def others(
        self, place: SupportsIndex, layer: SupportsIndex = -1, head: SupportsIndex | str = "mean"
    ) -> Float[np.ndarray, " k"] | None:
        """How much it took, before or behind looking at the picture, from what each segment was read from; None for tokens
        of patches, which look at nothing else.

        What is missing to one was taken from queries that found nothing, from classes that the picture does not show, or
        from the picture itself.
        """
        among = self.among[self.layer(layer)]
        if among is None:
            return None
        rows = fused_heads(among[self.place(place)], head)
        return rows[[one.index if one.query is None else one.query for one in self.asked]]

    def drawn(self, place: SupportsIndex, layer: SupportsIndex = -1) -> Float[np.ndarray, "i j"]:
        """How likely each cell was thought to be the segment's own, from 0 to 1.

        Args:
            place: the segment's.
            layer: how far the network had come: 0 for the first time it drew, -1 for what it says in the end.
        """
        return self.masks[self._time(layer)][self.place(place)]

    def said(self, place: SupportsIndex, layer: SupportsIndex = -1) -> tuple[str, float]:
        """What the segment was thought to be, or "nothing", and how surely."""
        one, time = self.asked[self.place(place)], self._time(layer)
        if self.classes is None:
            return one.label, one.score
        chances = self.classes[time][self.place(place)]
        best = int(chances.argmax())
        return self.names[best] if best < len(self.names) else "nothing", float(chances[best])

    @property
    def times(self) -> int:
        """How often the network draws its masks."""
        return len(self.masks)

    def place(self, place: SupportsIndex) -> int:
        """A segment's place, from 0.

        Raises:
            UsageError: there is no such segment.
        """
        number = as_integer(place)
        if number is None or not -len(self) <= number < len(self):
            found = f"there are {len(self)}, numbered 0 to {len(self) - 1}" if len(self) else "nothing was found"
            raise UsageError(f"There is no segment {place!r}: {found}.")
        return number % len(self)

    def layer(self, layer: SupportsIndex) -> int:
        """A layer's number, from 0.

        Raises:
            UsageError: there is no such layer, or none at all.
        """
        if not self.across:
            raise UsageError("There is no attention to be looked at: nothing was found, or the network has none to places.")
        return _numbered(layer, self.layers, "layer")

    def _time(self, layer: SupportsIndex) -> int:
        return _numbered(layer, self.times, "layer that draws masks")


def _numbered(asked: SupportsIndex, count: int, what: str) -> int:
    number = as_integer(asked)
    if number is None or not -count <= number < count:
        raise UsageError(f"There is no {what} {asked!r}: there are {count}, numbered 0 to {count - 1}.")
    return number % count


@torch.no_grad()
def look_at_segments(
    predictor: Prepares,
    picture: PictureSource,
    *,
    pixels: Sequence[Pixel] = (),
    threshold: float | None = None,
    subtask: str | None = None,
    top_k: int | None = None,
) -> SegmentLook:
    """Let a segmenter look at a picture, and see where it looks.

    Args:
        predictor: of a segmenter; see `pipelines.predictor.load`.
        picture: a path, address, bytes, file object, Pillow image, array or tensor.
        pixels: x and y of pixels of the picture to ask about.
        threshold: segments count whose score is above this; by default as the predictor has it for queries, all for classes.
        subtask: of queries: "instance" for objects that may overlap, where the network has such; else every pixel is of one
            query. By default as the predictor has it.
        top_k: how many segments to keep at most, the first ones.

    Raises:
        PictureError: the picture cannot be read.
        UsageError: the model is no segmenter, a number is out of its range, or a pixel was not seen, or is of no segment.
    """
    check_predictor(predictor)
    if not isinstance(predictor.model, MapNetwork | MaskNetwork):
        raise UsageError(f"A {type(predictor.model).__name__} makes no segments; explain its classes with vitral.explain.")
    usual = getattr(predictor, "options", None)
    options = usual if isinstance(usual, Options) else Options()
    if subtask is not None:
        options = replace(options, subtask=subtask)  # type: ignore[arg-type]
    if threshold is not None:
        options = replace(options, threshold=threshold)
    prepared, seen = predictor.prepare(picture)
    batch = prepared[None].to(predictor.device, predictor.dtype)
    output = predictor.model(batch)
    asking = _of_masks if isinstance(output, MaskOutput) else partial(_of_classes, least=threshold)
    found, asked = asking(output, seen, predictor, options)
    kept = asked if top_k is None else asked[: whole_number("top_k", top_k)]
    kept = [*kept, *(_pixel_of(found, asked, one, seen, predictor, output) for one in pixels)]
    gaze = segment_gaze(predictor.model)
    names = tuple(map(predictor.record.label, range(cast(Any, predictor.model).config.num_classes)))
    masks, classes = _told(predictor.model, batch, output, kept)
    least = options.threshold if isinstance(output, MaskOutput) else 0.0
    look = SegmentLook(found, tuple(kept), seen, gaze, (), (), masks, classes, (), names, least)
    if gaze.kind == "none" or not kept:
        return look
    watched = _asked_by_queries if gaze.kind == "queries" else _asked_by_patches
    across, among, cells = watched(predictor.model, batch, look)
    return replace(look, across=across, among=among, cells=cells)


# -- what was found ----------------------------------------------------------------------------------------------------


def _of_classes(
    output: MapOutput, seen: Seen, predictor: Prepares, options: Options, *, least: float | None
) -> tuple[Segmentation, list[Asked]]:
    """All there is of each class, the one with most pixels first."""
    [found] = cast(list[Segmentation], decode(output, [seen], predictor.record, replace(options, subtask=None, scores=True)))
    asked = []
    for index, label in zip(found.indices, found.classes, strict=True):
        mask = found.class_map == index
        score = float(cast(np.ndarray, found.scores)[mask].mean())
        if least is None or score > least:
            asked.append(Asked(label=label, index=index, score=score, mask=mask))
    return found, asked


def _of_masks(output: MaskOutput, seen: Seen, predictor: Prepares, options: Options) -> tuple[Instances, list[Asked]]:
    """What each query drew, the surest first."""
    if options.subtask != "instance":  # every pixel is of one query: what is panoptic, before stuff of one class is joined
        output = output._replace(instances="partition")
    options = replace(options, subtask="instance")
    [found] = cast(list[Instances], decode(output, [seen], predictor.record, options))
    rows = zip(found.labels, found.indices, found.scores, found.masks, cast(np.ndarray, found.queries), strict=True)
    asked = [
        Asked(label=label, index=int(index), score=float(score), mask=mask, query=int(query))
        for label, index, score, mask, query in rows
    ]
    return found, asked


def _pixel_of(
    found: Segmentation | Instances, asked: Sequence[Asked], pixel: Pixel, seen: Seen, predictor: Prepares, output: Any
) -> Asked:
    """A pixel, with what was said of it.

    Raises:
        UsageError: it is beyond the picture, or nothing was said of it.
    """
    (height, width), (x, y) = seen.frame.picture, pixel
    if not (0 <= x < width and 0 <= y < height):
        raise UsageError(f"Pixel ({x:g}, {y:g}) is beyond {seen.name}, which is {width} pixels wide and {height} high.")
    row, column = int(y), int(x)
    mask = np.zeros((height, width), dtype=bool)
    mask[row, column] = True
    if isinstance(found, Segmentation):
        index, scores = int(found.class_map[row, column]), cast(np.ndarray, found.scores)
        if index < len(found.labels):
            score = float(scores[row, column])
            return Asked(label=found.labels[index], index=index, score=score, mask=mask, pixel=(x, y))
    over = [one for one in asked if one.mask[row, column]] if isinstance(found, Instances) else []
    if not over:
        why = "the network did not see it" if isinstance(found, Segmentation) else "no segment covers it"
        raise UsageError(f"Nothing was said of pixel ({x:g}, {y:g}) of {seen.name}: {why}.")
    return replace(over[0], mask=mask, pixel=(x, y))


def _told(
    model: nn.Module, batch: Float[Tensor, "1 c y x"], output: MapOutput | MaskOutput, asked: Sequence[Asked]
) -> tuple[tuple[Float[np.ndarray, "k _ _"], ...], tuple[Float[np.ndarray, "k _"], ...] | None]:
    """What is drawn of each segment, from layer to layer, and what it is thought to be."""
    if isinstance(output, MapOutput):
        chances = output.logits[0].float().softmax(0)
        return (plain(chances[[one.index for one in asked]]),), None
    every = getattr(model, "layer_outputs", None)
    layers = (output,) if every is None or not asked else every(batch)
    queries = [cast(int, one.query) for one in asked]
    return (
        tuple(plain(one.masks[0, queries].float().sigmoid()) for one in layers),
        tuple(plain(one.logits[0, queries].float().softmax(-1)) for one in layers),
    )


# -- where it looked ---------------------------------------------------------------------------------------------------

_Watched = tuple[
    tuple[Float[np.ndarray, "k _ _ _"], ...], tuple[Float[np.ndarray, "k _ _"] | None, ...], tuple[tuple[int, int], ...]
]


def _asked_by_queries(model: nn.Module, batch: Float[Tensor, "1 c y x"], look: SegmentLook) -> _Watched:
    """What each segment's query took from the cells of a map, and from the other queries."""
    gaze, size = look.gaze, (batch.shape[2], batch.shape[3])
    queries = [cast(int, one.query) for one in look.asked]
    rows = list(dict.fromkeys(queries))  # two segments may have one query
    with capture(model, [*gaze.among, *gaze.across], queries=rows) as maps:
        model(batch)
    chosen = [rows.index(one) for one in queries]
    across, cells = [], []
    for name in gaze.across:
        weights = maps[name][0].transpose(0, 1)[chosen]
        grid = cells_of(model, weights.shape[-1], size)
        across.append(plain(weights.unflatten(-1, grid)))
        cells.append(cell_of(model, grid, size))
    among = tuple(plain(maps[name][0].transpose(0, 1)[chosen]) for name in gaze.among)
    return tuple(across), among, tuple(cells)


def cells_of(model: nn.Module, count: int, size: tuple[int, int]) -> Grid:
    """Rows and columns of the map, of those that a network reads, that has so many cells.

    Raises:
        UsageError: there is none.
    """
    known: list[Grid] = [cast(Any, model).config.grid_of(size)]
    known += [(-(-size[0] // level.stride), -(-size[1] // level.stride)) for level in cast(Any, model).levels]
    fitting = [grid for grid in known if grid[0] * grid[1] == count]
    if not fitting:
        raise UsageError(f"{count} cells are looked at, and nobody tells how they lie in {size[0]} × {size[1]} pixels.")
    return fitting[0]


def _asked_by_patches(model: nn.Module, batch: Float[Tensor, "1 c y x"], look: SegmentLook) -> _Watched:
    """What the tokens of each segment took, those of its patches or of its class; one layer after the other is kept."""
    gaze, frame = look.gaze, look.seen.frame
    size = frame.input
    found: dict[str, tuple[Tensor, Tensor | None]] = {}

    def rows_of(name: str, weights: Float[Tensor, "w h s t"]) -> None:
        grid, prefix = seen.grid(name), seen.prefix(name)
        counted = name in gaze.classes
        asking = torch.stack([_asking(one, model, grid, prefix, frame, as_class=counted) for one in look.asked])
        asking = asking.to(weights)
        # Of windows a whole map is large, so heads come one by one.
        each = [asking @ seen.whole(name, head)[0, 0] for head in weights.split(1, dim=1)]
        rows = torch.stack(each, dim=1)
        asked_grid = seen.asked_grid(name)
        cells = moved(rows[..., -asked_grid[0] * asked_grid[1] :], asked_grid, grid)
        found[name] = cells.unflatten(-1, grid), rows[..., :prefix] if counted else None

    with ExitStack() as watching:
        # It is only told on which grids tokens lie; the others ask it while the picture passes.
        seen = watching.enter_context(capture(model, gaze.across, parts="queries", reduce=lambda _: None))
        for name in gaze.across:
            watching.enter_context(capture(model, name, whole=False, reduce=partial(rows_of, name)))
        model(batch)
    across, among = zip(*(found[name] for name in gaze.across), strict=True)
    cells = tuple(cell_of(model, seen.grid(name), size) for name in gaze.across)
    return tuple(map(plain, across)), tuple(None if one is None else plain(one) for one in among), cells


def _asking(one: Asked, model: nn.Module, grid: Grid, prefix: int, frame: Frame, *, as_class: bool) -> Float[Tensor, " n"]:
    """Which tokens ask for a segment, as weights that sum to one."""
    weights = torch.zeros(prefix + grid[0] * grid[1])
    if as_class and one.pixel is None:
        weights[one.index] = 1.0
    else:
        weights[prefix:] = share_of_cells(one.mask, frame, grid, cell_of(model, grid, frame.input)).flatten()
    return weights


def share_of_cells(mask: Bool[np.ndarray, "y x"], frame: Frame, grid: Grid, cell: tuple[int, int]) -> Float[Tensor, "i j"]:
    """Which share of a mask's pixels lies in each cell of a grid over the model's input; pixels it did not see count not."""
    lines_ = []
    for axis in (0, 1):
        places = ((np.arange(frame.picture[axis]) + 0.5) * frame.scale[axis] - frame.offset[axis]) / cell[axis]
        inside = (places >= 0) & (places < frame.input[axis] / cell[axis])
        of_cells = np.zeros((grid[axis], len(places)), dtype=np.float32)
        of_cells[places[inside].astype(np.int64).clip(max=grid[axis] - 1), np.flatnonzero(inside)] = 1
        lines_.append(of_cells)
    counts = torch.from_numpy(lines_[0] @ mask.astype(np.float32) @ lines_[1].T)
    return counts / counts.sum().clamp(min=1)


def read_at(mask: Bool[np.ndarray, "y x"], frame: Frame, cells: Grid) -> Float[Tensor, "i j"]:
    """What the mean over a mask's pixels takes from each cell of a map, whose values lie between its cells linearly.

    The product with a map, summed, is the mean of that map where the mask is, read as `tasks.segmentation.decode` reads it.
    """
    rows, columns = lines(frame, cells)
    part = mask[rows.first : rows.stop, columns.first : columns.stop]
    weights = _matrix(rows, cells[0]).T @ torch.from_numpy(part.astype(np.float32)) @ _matrix(columns, cells[1])
    return weights / max(1, int(np.count_nonzero(part)))


def _matrix(line: Line, cells: int) -> Float[Tensor, "n m"]:
    """What each pixel along a line takes from each cell."""
    found = torch.zeros(len(line.low), cells)
    places = torch.arange(len(line.low))
    found.index_put_((places, line.low), 1 - line.weight, accumulate=True)
    found.index_put_((places, line.high), line.weight, accumulate=True)
    return found
