"""One look of a detector at a picture: the objects it found, and what the query of each took from where.

    look = look_at(predictor, "street.jpg", threshold=0.7)
    look.detections                  # the objects, best first
    look.heat(0)                     # (i j): what the best object's query took from each cell, in the decoder's last layer
    look.on_picture(0, layer=2)      # (y x): the same of another layer, over the original picture
    look.others(0)                   # (k): how much of the other objects' queries it took in
    look.points(0)                   # the places that it sampled, in pixels of the picture, where attention is deformable

Three kinds of detectors have queries. In DETR a query attends to every cell of the last map, and before that to the other
queries. In Deformable DETR and RT-DETR it attends to the other queries and samples a few places of several maps. In YOLOS
it is a token beside the patches, and does both at once.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.frame import Seen
from vitral.base.image import PictureSource
from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import capture
from vitral.explanation.prepares import Prepares, check_predictor
from vitral.explanation.sampling import CapturedSamples, capture_samples, sampling_layers
from vitral.explanation.stages import moved, steps
from vitral.layers.attention import ScaledDotProduct
from vitral.layers.position import Grid
from vitral.models.detection.detector import Detector
from vitral.tasks.detection.decode import decode
from vitral.tasks.detection.result import Detections, Options

__all__ = ["Gaze", "Look", "Points", "fused_heads", "gaze_of", "look_at"]


@dataclass(frozen=True)
class Gaze:
    """Where the queries of a detector look.

    Attributes:
        kind: how: "maps" at all cells of one map, "samples" at a few places of several, "tokens" as tokens among those of
            the picture; "none" where there are no queries, or nothing can be seen of them.
        encoder: the attentions among the cells, by name, the first layer first.
        among: those among the queries.
        across: those from queries to the picture; for "tokens" the same as `among`.
        before: for "tokens" how many tokens stand before those of the queries, else 0.
    """

    kind: Literal["maps", "samples", "tokens", "none"]
    encoder: tuple[str, ...] = ()
    among: tuple[str, ...] = ()
    across: tuple[str, ...] = ()
    before: int = 0


def gaze_of(model: nn.Module) -> Gaze:
    """Where the queries of a network look; layers of a decoder that evaluation leaves out are left out."""
    sampled = set(sampling_layers(model))
    # Not `attention_layers`, which refuses a network without any.
    products = (name for name, module in model.named_modules() if isinstance(module, ScaledDotProduct))
    maps = [name.rpartition(".")[0] for name in products]
    config: Any = model.config
    queries = getattr(config, "queries", 0)
    if not hasattr(model, "decoder"):
        if queries and maps and config.prefix >= queries:
            return Gaze("tokens", (), tuple(maps), tuple(maps), config.prefix - queries)
        return Gaze("none")
    depth = getattr(config, "evaluated_depth", None) or len(cast(nn.ModuleList, model.decoder))
    encoder = tuple(name for name in maps if name.startswith("encoder."))
    among: list[str] = []
    across: list[str] = []
    for place in range(depth):
        inside = [name for name in (*maps, *sampled) if name.startswith(f"decoder.{place}.")]
        own = [name for name in inside if name.endswith(".attention")]
        other = [name for name in inside if name not in own]
        if len(own) != 1 or len(other) != 1:
            return Gaze("none", encoder)
        among += own
        across += other
    return Gaze("samples" if set(across) <= sampled else "maps", encoder, tuple(among), tuple(across))


@dataclass(frozen=True, eq=False)
class Points:
    """Places that a query sampled.

    Attributes:
        xy: x and y in pixels of the original picture; some may lie beyond it (h l p 2).
        weights: how much each counts; of a head they sum to one over all maps and places (h l p).
    """

    xy: Float[np.ndarray, "h l p 2"]
    weights: Float[np.ndarray, "h l p"]


@dataclass(frozen=True, eq=False)
class Look:
    """What a detector found in a picture, and where it looked for it.

    Attributes:
        detections: the objects, best first; all that follows is in their order.
        seen: the picture, and the way back to it.
        gaze: which layers these are.
        across: layer by layer what each object's query took from each cell of the picture, by head (k h i j). Of "samples"
            it is what the places come to, laid on the grid of the finest map: what a coarse cell counts is spread evenly
            over the fine ones under it.
        among: layer by layer what each object's query took from every query, by head (k h q).
        sampled: layer by layer the places that were sampled; empty for other kinds.
        cell: height and width of a cell in pixels of the input.
    """

    detections: Detections
    seen: Seen
    gaze: Gaze
    across: tuple[Float[np.ndarray, "k h i j"], ...]
    among: tuple[Float[np.ndarray, "k h q"], ...]
    sampled: tuple[tuple[Points, ...], ...]
    cell: tuple[int, int]

    def __repr__(self) -> str:
        return f"Look({self.detections!r}, {len(self.across)} layers, {self.gaze.kind})"

    def __len__(self) -> int:
        """How many objects were found."""
        return len(self.detections)

    @property
    def layers(self) -> int:
        """How many layers can be looked at: of the decoder, or for "tokens" of the network."""
        return len(self.across)

    @property
    def grid(self) -> Grid:
        """Rows and columns of the cells."""
        self._layer(-1)
        rows, columns = self.across[0].shape[2:]
        return rows, columns

    def heat(
        self, place: SupportsIndex, layer: SupportsIndex = -1, head: SupportsIndex | str = "mean"
    ) -> Float[np.ndarray, "i j"]:
        """What the query of an object took from each cell.

        With one head, or the mean of all, it is a share: cells sum to one, or to less where the query also took from other
        tokens or sampled beyond the picture.

        Args:
            place: the object's, from 0 for the best one.
            layer: which, by its number.
            head: one of its heads, or how all become one.

        Raises:
            UsageError: there is no such object, layer or head, or the network has no queries.
            UnknownNameError: no such way for heads to become one.
        """
        return fused_heads(self.across[self._layer(layer)][self._place(place)], head)

    def on_picture(
        self, place: SupportsIndex, layer: SupportsIndex = -1, head: SupportsIndex | str = "mean"
    ) -> Float[np.ndarray, "y x"]:
        """The same for every pixel of the original picture; what the model did not see has none."""
        return self.seen.frame.map_to_picture(self.heat(place, layer, head), self.cell)

    def others(
        self, place: SupportsIndex, layer: SupportsIndex = -1, head: SupportsIndex | str = "mean"
    ) -> Float[np.ndarray, " k"]:
        """How much the query of an object took from that of every object, itself included.

        What is missing to one was taken from queries that found nothing (and, for "tokens", from the picture). Two objects
        may have been read from one query; each then has the whole of what was taken from it.
        """
        rows = fused_heads(self.among[self._layer(layer)][self._place(place)], head)
        return rows[cast(np.ndarray, self.detections.queries)]

    def points(self, place: SupportsIndex, layer: SupportsIndex = -1) -> Points:
        """The places that the query of an object sampled.

        Raises:
            UsageError: no such object or layer, or nothing is sampled.
        """
        number, object_ = self._layer(layer), self._place(place)
        if not self.sampled:
            raise UsageError("The queries of this network sample no places: they attend to all cells. Use heat instead.")
        return self.sampled[number][object_]

    def _place(self, place: SupportsIndex) -> int:
        number = as_integer(place)
        if number is None or not -len(self) <= number < len(self):
            found = f"there are {len(self)}, numbered 0 to {len(self) - 1}" if len(self) else "nothing was found"
            raise UsageError(f"There is no object {place!r}: {found}.")
        return number % len(self)

    def _layer(self, layer: SupportsIndex) -> int:
        if not self.across:
            raise UsageError(
                "There are no queries to be looked at: nothing was found, or the network makes its objects without them."
            )
        number = as_integer(layer)
        if number is None or not -self.layers <= number < self.layers:
            raise UsageError(f"There is no layer {layer!r}: there are {self.layers}, numbered 0 to {self.layers - 1}.")
        return number % self.layers


def fused_heads(maps: Float[np.ndarray, h * n], head: SupportsIndex | str) -> Float[np.ndarray, "*n"]:
    """One head's map, or those of all as one.

    Args:
        maps: of all heads.
        head: one of them by its number, or "mean", "max", "min" of all.

    Raises:
        UsageError: there is no such head.
        UnknownNameError: no such way for heads to become one.
    """
    if isinstance(head, str):
        if head not in ("mean", "max", "min"):
            raise UnknownNameError("fusion of heads", head, ("mean", "max", "min"))
        return cast(Any, getattr(maps, head)(axis=0))
    number = as_integer(head)
    if number is None or not -len(maps) <= number < len(maps):
        raise UsageError(f"There is no head {head!r}: there are {len(maps)}, numbered 0 to {len(maps) - 1}.")
    return cast(Any, maps[number])


@torch.no_grad()
def look_at(
    predictor: Prepares, picture: PictureSource, *, threshold: float | None = None, top_k: int | None = None
) -> Look:
    """Let a detector look at a picture, and see where it looks.

    Args:
        predictor: of a detector; see `pipelines.predictor.load`.
        picture: a path, address, bytes, file object, Pillow image, array or tensor.
        threshold: objects count whose score is above this; by default as the predictor has it.
        top_k: how many objects to keep at most; by default as the predictor has it.

    Raises:
        PictureError: the picture cannot be read.
        UsageError: the model is no detector, or a number is out of its range.
    """
    check_predictor(predictor)
    if not isinstance(predictor.model, Detector):
        raise UsageError(f"A {type(predictor.model).__name__} finds no objects; explain its classes with vitral.explain.")
    usual = getattr(predictor, "options", None)
    usual = usual if isinstance(usual, Options) else Options()
    options = Options(
        threshold=usual.threshold if threshold is None else threshold, top_k=usual.top_k if top_k is None else top_k
    )
    pixels, seen = predictor.prepare(picture)
    return _look(predictor, pixels, seen, options)


def _look(predictor: Prepares, pixels: Float[Tensor, "c y x"], seen: Seen, options: Options) -> Look:
    """Look at a picture that is prepared."""
    batch = pixels[None].to(predictor.device, predictor.dtype)
    model = predictor.model
    [detections] = decode(model(batch), [seen], predictor.record, options)
    gaze = gaze_of(model)
    size = (batch.shape[2], batch.shape[3])
    config: Any = model.config
    if gaze.kind == "none" or not len(detections):
        return Look(detections, seen, gaze, (), (), (), config.patch_size)
    queries = (cast(np.ndarray, detections.queries) + gaze.before).tolist()
    asked = list(dict.fromkeys(queries))  # two objects may have one query
    rows = [asked.index(one) for one in queries]
    wanted = dict.fromkeys((*gaze.among, *(() if gaze.kind == "samples" else gaze.across)))
    with ExitStack() as watching:
        # Rows of the objects alone: of YOLOS's thousands of tokens whole maps would be large.
        maps = watching.enter_context(capture(model, wanted, queries=asked))
        sampled = watching.enter_context(capture_samples(model, gaze.across)) if gaze.kind == "samples" else None
        model(batch)
    among = tuple(maps[name][0].transpose(0, 1)[rows] for name in gaze.among)
    if gaze.kind == "tokens":
        prefix = gaze.before + config.queries
        across = tuple(one[..., prefix:] for one in among)
        among = tuple(one[..., gaze.before : prefix] for one in among)
    elif sampled is None:
        across = tuple(maps[name][0].transpose(0, 1)[rows] for name in gaze.across)
    else:
        return _of_samples(detections, seen, gaze, among, sampled, queries)
    grid = config.grid_of(size)
    if across[0].shape[-1] != grid[0] * grid[1]:
        raise UsageError(
            f"The queries look at {across[0].shape[-1]} cells, and nobody tells how they lie in a picture of "
            f"{size[0]} × {size[1]} pixels."
        )
    laid = tuple(_plain(one.unflatten(-1, grid)) for one in across)
    return Look(detections, seen, gaze, laid, tuple(map(_plain, among)), (), config.patch_size)


def _of_samples(
    detections: Detections,
    seen: Seen,
    gaze: Gaze,
    among: tuple[Float[Tensor, "k h q"], ...],
    captured: CapturedSamples,
    queries: list[int],
) -> Look:
    """The look of a decoder that samples."""
    laid, points = [], []
    size = seen.frame.input
    for name in gaze.across:
        samples = captured[name].of(queries)
        finest = max(samples.grids, key=lambda grid: grid[0] * grid[1])
        spread = [moved(one[0], grid, finest) for one, grid in zip(samples.on_cells(), samples.grids, strict=True)]
        laid.append(_plain(torch.stack(spread).sum(0).unflatten(-1, finest)))
        # Places are shares of the picture's sides, as boxes are.
        pixels = samples.locations[0].double().cpu().numpy() * np.array([size[1], size[0]])
        xy, weights = seen.frame.to_picture(pixels), _plain(samples.weights[0])
        points.append(tuple(Points(*one) for one in zip(xy, weights, strict=True)))
    return Look(detections, seen, gaze, tuple(laid), tuple(map(_plain, among)), tuple(points), steps(size, finest))


def _plain(x: Float[Tensor, "*n"]) -> Float[np.ndarray, "*n"]:
    return x.float().cpu().numpy()
