"""From what a network says of a picture to what every pixel shows: by class, by object, or both.

The rules are those of the published code as transformers' image processors have it; the way there is another one, and takes
a small part of the time and of the memory (see `pieces`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Integer
from torch import Tensor

from vitral.base.config import check_choices
from vitral.base.frame import Seen
from vitral.base.masks import regions_of
from vitral.base.numbers import real_number
from vitral.errors import UnknownNameError, UsageError
from vitral.models.output import MapOutput, MaskOutput
from vitral.models.record import Record
from vitral.tasks.segmentation.pieces import Piece, greatest, lines, nearest, pieces
from vitral.tasks.segmentation.result import Instances, Panoptic, Segment, Segmentation

__all__ = [
    "Options",
    "Shares",
    "Subtask",
    "check_finite",
    "class_names",
    "class_values",
    "decode",
    "empty_map",
    "fused_places",
    "ignored",
    "shares_of",
    "subtask_of",
    "winners",
]

Subtask = Literal["semantic", "instance", "panoptic"]
"""What is read from an output; see `Options`."""

Shares = Literal["softmax", "sum"]
"""How the numbers of a cell become probabilities; see `winners`."""

_TINY = 1e-30  # stands in for a sum of nothing
_SLACK = 2e-6  # what rounding may add to a number between two others, as a part of the greatest of them


@dataclass(frozen=True, kw_only=True)
class Options:
    """How what a network says becomes an answer.

    Networks of masks have use for all of these, each for the subtasks named with it. Networks of maps (SegFormer, U-Net, …)
    say the class of every pixel and nothing else: of them only `scores` counts, and `subtask`, which can be "semantic". What
    counts for nothing is still held against its range.

    Attributes:
        subtask: "semantic": the class of every pixel; "instance": single objects; "panoptic": things and stuff, every pixel
            being of one of them. None: panoptic where the network draws masks, else semantic.
        threshold: objects and segments are kept whose score is above this (objects that may overlap: or equal to it), from
            0 to 1. Instance and panoptic.
        mask_threshold: a pixel counts as a segment's own where its probability times the segment's is at least this; from 0
            to 1. Panoptic, and instances of a partition.
        overlap_mask_area_threshold: a segment is kept of whose own pixels more than this share is left, others having taken
            the rest; from 0 to 1. Panoptic, and instances of a partition.
        fused: classes, by name or by place, whose segments are one: all the sky of a picture. Panoptic; a class that the
            model does not have is refused everywhere.
        scores: whether a semantic answer tells how sure it is of every pixel, which takes longer. Semantic.

    Raises:
        UnknownNameError: no such subtask.
        UsageError: a number out of its range.
    """

    subtask: Subtask | None = None
    threshold: float = 0.5
    mask_threshold: float = 0.5
    overlap_mask_area_threshold: float = 0.8
    fused: tuple[int | str, ...] = ()
    scores: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.subtask, str) and self.subtask not in get_args(Subtask):
            raise UnknownNameError("subtask", self.subtask, get_args(Subtask))
        check_choices(self)
        for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
            number = real_number(name, getattr(self, name))
            if not 0 <= number <= 1:
                raise UsageError(f"{name} must be from 0 to 1; {getattr(self, name)!r} came.")


_AS_USUAL = Options()


@torch.no_grad()
def decode(
    output: Any, seen: Sequence[Seen], record: Record, options: Options = _AS_USUAL
) -> list[Segmentation] | list[Instances] | list[Panoptic]:
    """Results of a batch.

    Pixels that the model did not see, because they were cropped away, are of no class, object or segment.

    Args:
        output: the model's, a `MapOutput` or a `MaskOutput`.
        seen: what the model saw, one for each row of the output.
        record: the model's.
        options: how what the network says becomes an answer.

    Raises:
        UnknownNameError: a class to be fused that the model does not have.
        UsageError: the output is of another kind, has no answer of the kind that is asked for, or holds a number that is not
            finite; a class to be fused of a number that is none.
    """
    subtask = subtask_of(output, options)
    fused = fused_places(output, record, options)
    check_finite(output)
    if subtask == "semantic":
        values, shares = class_values(output), shares_of(output, options)
        return [_semantic(one.float().cpu(), picture, record, shares) for one, picture in zip(values, seen, strict=True)]
    if subtask == "instance" and output.instances == "pairs":
        return [_pairs(place, output, picture, record, options) for place, picture in enumerate(seen)]
    parts = [_partition(place, output, picture, options) for place, picture in enumerate(seen)]
    made = zip(parts, seen, strict=True)
    if subtask == "instance":
        return [_instances(part, picture, record) for part, picture in made]
    return [_panoptic(part, picture, record, fused) for part, picture in made]


def subtask_of(output: Any, options: Options) -> Subtask:
    """What is read from an output.

    Raises:
        UsageError: the output is of no kind that tells of pixels, or has no such answer.
    """
    if not isinstance(output, MapOutput | MaskOutput):
        raise UsageError(f"Pixels are read from a MapOutput or a MaskOutput; the model gave a {type(output).__name__}.")
    if isinstance(output, MaskOutput):
        return options.subtask or "panoptic"
    if options.subtask not in (None, "semantic"):
        raise UsageError(
            f"subtask={options.subtask!r} needs a network that draws a mask for every object (MaskFormer, Mask2Former, DETR "
            "with masks); this one says the class of every pixel. Use subtask='semantic'."
        )
    return "semantic"


def check_finite(output: MapOutput | MaskOutput) -> None:
    """Refuse what no answer can be made of.

    The least and the greatest number tell of every NaN and every infinity, and take a tenth of the time of looking for them.

    Raises:
        UsageError: a number that is not finite.
    """
    for values in (output.logits, output.masks) if isinstance(output, MaskOutput) else (output.logits,):
        if values.numel() and not all(bool(torch.isfinite(one)) for one in torch.aminmax(values.detach())):
            raise UsageError("The model's logits are not finite numbers (NaN or infinity). Try dtype='float32'.")


# -- the class of every pixel ------------------------------------------------------------------------------------------


def class_values(output: MapOutput | MaskOutput) -> Float[Tensor, "b c i j"]:
    """For every cell a number for each class, of which the greatest is said.

    They are a network's logits; or, of masks, the sum over the queries of how likely the query is of the class and the cell
    the query's (Cheng et al. 2021, MaskFormer, section 3.4, semantic inference).
    """
    if isinstance(output, MapOutput):
        return output.logits.float()
    classes = output.logits.float().softmax(-1)[..., :-1]
    masks = _on_canvas(output.masks.float(), output.canvas).sigmoid()
    return torch.einsum("bqc,bqij->bcij", classes, masks)


def shares_of(output: MapOutput | MaskOutput, options: Options) -> Shares | None:
    """How values become probabilities, where anybody asks."""
    if not options.scores:
        return None
    return "sum" if isinstance(output, MaskOutput) else "softmax"


def _semantic(values: Float[Tensor, "c i j"], seen: Seen, record: Record, shares: Shares | None) -> Segmentation:
    """The class of every pixel of one picture."""
    count = len(values)
    class_map = empty_map(seen.frame.picture, count)
    scores = None if shares is None else np.zeros(seen.frame.picture, dtype=np.float32)
    for piece in pieces(values, *lines(seen.frame, (values.shape[1], values.shape[2]))):
        winners(piece, class_map, scores, shares)
    return Segmentation(
        seen.name, seen.frame.picture, class_map, class_names(record, count), scores, seen.picture, ignored(count)
    )


def winners(
    piece: Piece,
    class_map: Integer[np.ndarray, "y x"],
    scores: Float32[np.ndarray, "y x"] | None = None,
    shares: Shares | None = None,
) -> None:
    """Write the class of every pixel of a square, and how sure that is, into maps of the whole picture.

    Of classes of one value the first is said.

    Args:
        piece: the square, with a number for each class.
        class_map: of the picture.
        scores: of the picture; None where nobody asked.
        shares: how the numbers become probabilities: "softmax", or, where none is negative, as parts of their "sum".
    """
    place = piece.rows, piece.columns
    if scores is not None:
        values = piece.values()
        parts = values.softmax(0) if shares == "softmax" else values / values.sum(0).clamp(min=_TINY)
        best = values.max(0).indices
        scores[place] = parts.gather(0, best[None])[0].numpy()
        class_map[place] = best.numpy()
        return
    least, most = piece.bounds
    slack = _SLACK * torch.maximum(-least.min(), most.max())
    able = (most + slack >= least.max()).nonzero()[:, 0]
    class_map[place] = able[0].item() if len(able) == 1 else able.numpy()[greatest(piece.groups(able))]


def class_names(record: Record, count: int) -> tuple[str, ...]:
    """The names of so many classes."""
    return tuple(map(record.label, range(count)))


def ignored(classes: int) -> int:
    """The number in a class map that stands for no class: 255, or, where there are so many, 65535."""
    return 255 if classes <= 255 else 65535


def empty_map(size: tuple[int, int], classes: int) -> Integer[np.ndarray, "y x"]:
    """A class map of which nothing is said yet, of the smallest numbers that so many classes allow."""
    return np.full(size, ignored(classes), dtype=np.uint8 if classes <= 255 else np.int32)


# -- things and stuff --------------------------------------------------------------------------------------------------


class _Partition(NamedTuple):
    """Which of the queries that were kept every pixel is of.

    Attributes:
        owner: for every pixel the place among those kept, from 1; 0 where it is nobody's.
        queries: which queries were kept (k).
        classes: of each.
        scores: of each.
        areas: pixels of each.
        boxes: left, top, right and bottom of them.
        valid: whether enough of what it claims is left to it.
    """

    owner: Integer[np.ndarray, "y x"]
    queries: list[int]
    classes: list[int]
    scores: list[float]
    areas: list[int]
    boxes: Integer[np.ndarray, "k 4"]
    valid: list[bool]


def _partition(place: int, output: MaskOutput, seen: Seen, options: Options) -> _Partition:
    """Every pixel is given to the query of whose class and mask together it is most likely.

    Queries below the threshold are dropped first; their masks are never touched (Cheng et al. 2021, MaskFormer, section 3.4,
    general inference; and Carion et al. 2020, DETR, section 5, for segments of which others leave too little).
    """
    best, classes = output.logits[place].float().softmax(-1).max(-1)
    nothing = output.logits.shape[-1] - 1
    kept = ((classes != nothing) & (best > options.threshold)).nonzero()[:, 0]
    scores = best[kept].cpu().numpy()
    masks, which = output.masks[place].float().cpu(), kept.cpu()
    if output.canvas is not None:
        masks, which = _on_canvas(masks[which], output.canvas), torch.arange(len(kept))
    owner = np.zeros(seen.frame.picture, dtype=np.uint8 if len(kept) < 256 else np.int32)
    claimed = np.zeros(len(kept), dtype=np.int64)
    if len(kept):
        for piece in pieces(masks, *lines(seen.frame, (masks.shape[1], masks.shape[2])), which=which, squashed=True):
            _share_out(piece, scores, options.mask_threshold, owner, claimed)
    areas, boxes = np.zeros(len(kept) + 1, dtype=np.int64), np.zeros((len(kept) + 1, 4), dtype=np.int64)
    found = regions_of(owner)
    areas[found.values], boxes[found.values] = found.areas, found.boxes
    # A share of pixels is a number of 32 bits there, so that 4 of 5 are more than 0.8 of them.
    valid = [
        area > 0 and claim > 0 and float(np.float32(area) / np.float32(claim)) > options.overlap_mask_area_threshold
        for area, claim in zip(areas[1:].tolist(), claimed.tolist(), strict=True)
    ]
    return _Partition(owner, kept.tolist(), classes[kept].tolist(), scores.tolist(), areas[1:].tolist(), boxes[1:], valid)


def _share_out(
    piece: Piece,
    scores: Float32[np.ndarray, " k"],
    mask_threshold: float,
    owner: Integer[np.ndarray, "y x"],
    claimed: Integer[np.ndarray, " k"],
) -> None:
    """Write whose the pixels of a square are, and count those that each query claims."""
    least, most = (bound.numpy() * scores for bound in piece.bounds)
    able = most + _SLACK >= least.max()
    all_claimed = least - _SLACK >= mask_threshold
    some_claimed = (most + _SLACK >= mask_threshold) & ~all_claimed
    claimed[all_claimed] += piece.area
    place = piece.rows, piece.columns
    single = np.count_nonzero(able) == 1
    if single:
        owner[place] = able.argmax() + 1
    looked_at = np.flatnonzero(some_claimed if single else able | some_claimed)
    if not len(looked_at):
        return

    def weighed() -> Iterator[tuple[int, Float[Tensor, "_ y x"]]]:
        for start, values in piece.groups(torch.from_numpy(looked_at)):
            queries = looked_at[start : start + len(values)]
            values.mul_(torch.from_numpy(scores[queries])[:, None, None])
            for one, query in zip(values.numpy(), queries, strict=True):
                if some_claimed[query]:
                    claimed[query] += np.count_nonzero(one >= mask_threshold)
            yield start, values

    if single:
        for _ in weighed():
            pass
    else:
        owner[place] = (looked_at + 1).astype(owner.dtype)[greatest(weighed())]


def _panoptic(part: _Partition, seen: Seen, record: Record, fused: frozenset[int]) -> Panoptic:
    """Segments with ids from 1, in the order of the queries."""
    ids = np.zeros(len(part.queries) + 1, dtype=np.int32)
    joined: dict[int, int] = {}
    parts: list[list[int]] = []
    for place, (index, valid) in enumerate(zip(part.classes, part.valid, strict=True)):
        if not valid:
            continue
        if index not in joined:
            parts.append([])
        id_ = joined.get(index, len(parts))
        parts[id_ - 1].append(place)
        ids[place + 1] = id_
        if index in fused:
            joined[index] = id_
    segments = []
    for id_, places in enumerate(parts, 1):
        index, boxes = part.classes[places[0]], part.boxes[places]
        (left, top), (right, bottom) = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
        segments.append(
            Segment(
                id=id_,
                index=index,
                label=record.label(index),
                score=max(part.scores[place] for place in places),
                fused=index in fused,
                area=sum(part.areas[place] for place in places),
                box=(float(left), float(top), float(right), float(bottom)),
            )
        )
    return Panoptic(seen.name, seen.frame.picture, ids[part.owner], tuple(segments), seen.picture)


def fused_places(output: MapOutput | MaskOutput, record: Record, options: Options) -> frozenset[int]:
    """The places of the classes whose segments are one. Names are held against the record's, whatever the subtask.

    Raises:
        UnknownNameError: a class that the model does not have.
        UsageError: a number that is none of a class.
    """
    count = output.logits.shape[1] if isinstance(output, MapOutput) else output.logits.shape[-1] - 1
    places = [record.index(one) if isinstance(one, str) else one for one in options.fused]
    beyond = [place for place in places if not 0 <= place < count]
    if beyond:
        raise UsageError(f"fused names classes by their names or by numbers from 0 to {count - 1}; {beyond[0]} came.")
    return frozenset(places)


# -- single objects ----------------------------------------------------------------------------------------------------


def _instances(part: _Partition, seen: Seen, record: Record) -> Instances:
    """The segments of a partition as objects."""
    places = [place for place, valid in enumerate(part.valid) if valid]
    masks = np.empty((len(places), *part.owner.shape), dtype=bool)
    for mask, place in zip(masks, places, strict=True):
        np.equal(part.owner, place + 1, out=mask)
    return _objects(
        seen,
        record,
        masks,
        [part.scores[place] for place in places],
        [part.classes[place] for place in places],
        [part.queries[place] for place in places],
    )


def _pairs(place: int, output: MaskOutput, seen: Seen, record: Record, options: Options) -> Instances:
    """Objects that may overlap: the likeliest pairs of a query and a class, each with the query's mask.

    As many pairs as there are queries are looked at. A score is that of the class times the mean probability of the mask's
    pixels (Cheng et al. 2022, Mask2Former, section 4.1 and the published code); the latter takes nothing but away, so that
    what is below the threshold before is dropped before.
    """
    chances = output.logits[place].float().softmax(-1)[:, :-1]
    likely, pairs = chances.flatten().topk(min(len(chances), chances.numel()))
    pairs = pairs[likely >= options.threshold]
    queries, classes = pairs // chances.shape[1], pairs % chances.shape[1]
    drawn, which = queries.unique(return_inverse=True)
    logits = _on_canvas(output.masks[place][drawn].float(), output.canvas)
    masks = logits > 0
    sure = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    scores = (likely[: len(pairs)] * sure[which]).cpu()
    rows, columns, down, across = nearest(seen.frame, (masks.shape[1], masks.shape[2]))
    inside = masks.cpu().numpy()
    shown = np.array([inside[row][np.ix_(down, across)].any() for row in range(len(inside))], dtype=bool)
    sure_enough = (scores >= options.threshold).numpy() & shown[which.cpu().numpy()]
    order = [one for one in scores.argsort(descending=True, stable=True).tolist() if sure_enough[one]]
    made = np.zeros((len(order), *seen.frame.picture), dtype=bool)
    for mask, one in zip(made, order, strict=True):
        mask[rows, columns] = inside[which[one]][np.ix_(down, across)]
    return _objects(seen, record, made, scores[order].tolist(), classes[order].tolist(), queries[order].tolist())


def _objects(
    seen: Seen,
    record: Record,
    masks: Bool[np.ndarray, "k y x"],
    scores: list[float],
    classes: list[int],
    queries: list[int],
) -> Instances:
    """Objects of a picture."""
    labels = tuple(map(record.label, classes))
    return Instances(
        seen.name,
        seen.frame.picture,
        masks,
        np.array(scores, dtype=np.float32),
        labels,
        np.array(classes, dtype=np.int64),
        seen.picture,
        np.array(queries, dtype=np.int64),
    )


def _on_canvas(masks: Float[Tensor, "*b q i j"], canvas: tuple[int, int] | None) -> Float[Tensor, "*b q u v"]:
    """Masks at the size at which they are decided upon."""
    if canvas is None or masks.shape[-2:] == canvas or not masks.numel():
        return masks if masks.numel() or canvas is None else masks.new_zeros(*masks.shape[:-2], *canvas)
    flat = masks.reshape(1, -1, *masks.shape[-2:])
    resized = F.interpolate(flat, canvas, mode="bilinear", align_corners=False)
    return resized.reshape(*masks.shape[:-2], *canvas)
