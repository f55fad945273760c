"""What a network knows before it has seen a picture: how it cuts one, its filters, its idea of near and far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.numbers import as_integer, whole_number
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import LayerName, attention_layers, find_layer

__all__ = [
    "FilterComponents",
    "PositionKind",
    "PositionSimilarity",
    "filter_components",
    "patch_pictures",
    "position_similarity",
]


def patch_pictures(
    pixels: Float[Tensor, "c y x"], patch_size: int | tuple[int, int]
) -> Float[Tensor, "i j c patch_y patch_x"]:
    """The pieces a model cuts a picture into, laid out as they lie; `.flatten(0, 1)` has them in the order of the tokens.

    They are cut as `layers.patch.PatchEmbedding` does it (Dosovitskiy et al. 2021, section 3.1): from the top left, and what
    remains at the bottom and at the right, less than a patch, is left out. Nothing is copied; this is a view.

    Args:
        pixels: a picture, usually as prepared for the model.
        patch_size: (height, width) of a patch in pixels; one number for square ones.

    Raises:
        UsageError: the picture is smaller than one patch.
    """
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    if min(height, width) < 1:
        raise UsageError(f"patch_size must be two whole numbers of at least 1; {patch_size!r} came.")
    rows, columns = pixels.shape[1] // height, pixels.shape[2] // width
    if min(rows, columns) < 1:
        raise UsageError(
            f"A picture of {pixels.shape[1]}×{pixels.shape[2]} pixels is smaller than one patch of {height}×{width}."
        )
    return pixels.unfold(1, height, height).unfold(2, width, width).permute(1, 2, 0, 3, 4)


@dataclass(frozen=True, kw_only=True, eq=False)
class FilterComponents:
    """The principal components of a patch embedding's filters.

    Attributes:
        components: pictures of unit norm, the one that explains most first; the greatest number of each is positive.
        shares: which share of the filters' variance each explains; all that there are sum to one.
    """

    components: Float[np.ndarray, "k c y x"]
    shares: Float[np.ndarray, " k"]

    def __repr__(self) -> str:
        return f"FilterComponents({len(self)} components, {self.shares.sum():.1%} of the variance)"

    def __len__(self) -> int:
        return len(self.components)


def filter_components(model: nn.Module, count: int = 28) -> FilterComponents:
    """What the filters of the patch embedding are made of (Dosovitskiy et al. 2021, figure 7 left).

    Each of the d filters is one sample of c · y · x numbers. As usual in principal component analysis their mean is taken
    away first (as sklearn.decomposition.PCA does); signs, which the analysis leaves open, are fixed by making the number of
    greatest magnitude positive.

    Args:
        model: a network that cuts pictures into patches.
        count: how many components, at most: d filters differ in no more than d − 1 directions.

    Raises:
        UsageError: the model has no patch embedding, or filters that do not differ.
    """
    projection = getattr(getattr(model, "patch", None), "projection", None)
    if not isinstance(projection, nn.Conv2d):
        raise UsageError(f"A {type(model).__name__} has no patch embedding whose filters could be looked at.")
    count = whole_number("count", count)
    filters = _numbers(projection.weight)
    if not np.isfinite(filters).all():
        raise UsageError("The filters of the patch embedding hold numbers that are not finite.")
    samples = filters.reshape(len(filters), -1)
    samples = samples - samples.mean(0)
    _, spread, components = np.linalg.svd(samples, full_matrices=False)
    # Rounding of the weights, which moves no singular value by more than this, has no direction of its own.
    rank = int((spread > torch.finfo(projection.weight.dtype).eps * np.linalg.norm(filters)).sum())
    if not rank:
        raise UsageError("The filters of the patch embedding are all the same; they have no components.")
    found = components[: min(count, rank)]
    peaks = np.take_along_axis(found, np.abs(found).argmax(1)[:, None], axis=1)
    return FilterComponents(
        components=(found * np.sign(peaks)).reshape(-1, *filters.shape[1:]),
        shares=(spread**2 / (spread**2).sum())[: len(found)],
    )


PositionKind = Literal["absolute", "rotary", "relative_bias"]
"""The ways a network can tell positions: vectors added to the patches, rotated queries and keys, biases on the logits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionSimilarity:
    """How near each patch's position is to each other's, as the network has it.

    Attributes:
        values: `values[r, s]` is a map over the grid: from the patch in row r, column s, to every patch.
        kind: where the numbers come from.
        title: what they are, for a heading: "Position embeddings (learned)".
        label: what one of them is, with its unit: "Cosine similarity", "Bias (logits)".
        limits: the least and the greatest value they could take; None where nothing bounds them.
    """

    values: Float[np.ndarray, "i j i j"]
    kind: PositionKind
    title: str
    label: str
    limits: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"PositionSimilarity({self.title}: {self.label.lower()}, {self.grid[0]} × {self.grid[1]} patches)"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.values.shape[0], self.values.shape[1]


def position_similarity(
    model: nn.Module,
    grid: tuple[int, int] | None = None,
    *,
    layer: LayerName | None = None,
    head: SupportsIndex | None = None,
    kind: PositionKind | None = None,
) -> PositionSimilarity:
    """How similar positions are to a network, each way of telling them measured in its own terms.

    - absolute: the cosine similarity of the vectors that are added to the patches, whether a learned table (carried to the
      grid as the model carries it) or sinusoids (Dosovitskiy et al. 2021, figure 7 centre).
    - rotary: the mean over channels of cos(θₙ − θₘ), θ being a patch's angles. This is what rotation leaves of the product
      of a query and a key that are equal, their length spread evenly over the channels (Su et al. 2021, RoFormer,
      equation 16); it is 1 where n = m.
    - relative_bias: the learned number that is added to the logits of attention from a patch to another, for one head or
      as the mean over heads. These are logits, not cosines, and know no bounds.

    Args:
        model: a vision transformer.
        grid: rows and columns of patches; by default the model's own.
        layer: which block's relative bias, by number or name; by default the first block's.
        head: which head's relative bias; by default the mean over heads.
        kind: which of the model's ways; by default the first it has, in the order above.

    Raises:
        UsageError: the model tells no positions or not in this way, or a layer or head is asked of what is one for all.
        UnknownNameError: no such kind or layer.
    """
    vit = cast(Any, model)
    found = _kinds(vit)
    grid = cast("tuple[int, int]", vit.config.grid) if grid is None else grid
    if len(grid) != 2 or not all(isinstance(side, int) and side > 0 for side in grid):
        raise UsageError(f"grid must be rows and columns of patches, both at least 1; {grid!r} came.")
    if kind is not None and kind not in get_args(PositionKind):
        raise UnknownNameError("kind of position", kind, get_args(PositionKind))
    if not found:
        raise UsageError("This model tells no positions: it has no position vectors, no rotation and no relative biases.")
    kind = kind or found[0]
    if kind not in found:
        raise UsageError(f"This model has no {kind} positions, but {' and '.join(found)}.")
    if kind == "relative_bias":
        return _relative(vit, grid, layer, head)
    if layer is not None or head is not None:
        advice = ' Pass kind="relative_bias" for its biases.' if "relative_bias" in found else ""
        raise UsageError(f"The {kind} positions of this model are the same for all layers and heads.{advice}")
    return _absolute(vit, grid) if kind == "absolute" else _rotary(vit, grid)


def _kinds(model: Any) -> list[PositionKind]:
    """The ways in which a model tells positions."""
    if not hasattr(model, "positions") or not hasattr(getattr(model, "config", None), "position"):
        raise UsageError(f"A {type(model).__name__} does not tell positions as Vitral's vision transformers do.")
    there: dict[PositionKind, bool] = {
        "absolute": model.config.position != "none",
        "rotary": getattr(model, "rotary", None) is not None,
        "relative_bias": getattr(model, "relative_bias", None) is not None or len(getattr(model, "block_biases", ())) > 0,
    }
    return [kind for kind, here in there.items() if here]


def _absolute(model: Any, grid: tuple[int, int]) -> PositionSimilarity:
    vectors = _numbers(model.positions(grid)[1])[0]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise UsageError("A position embedding of this model is zero or not finite, so it has no cosine with the others.")
    directions = vectors / lengths
    how = {"learned": "learned", "sinusoidal_1d": "sinusoids, 1-D", "sinusoidal_2d": "sinusoids, 2-D"}
    return PositionSimilarity(
        values=(directions @ directions.T).clip(-1, 1).reshape(*grid, *grid),
        kind="absolute",
        title=f"Position embeddings ({how[model.config.position]})",
        label="Cosine similarity",
        limits=(-1.0, 1.0),
    )


def _rotary(model: Any, grid: tuple[int, int]) -> PositionSimilarity:
    cosines, sines = (_numbers(part) for part in model.rotary(grid, torch.zeros(())))
    # cos(a − b) = cos a · cos b + sin a · sin b
    return PositionSimilarity(
        values=((cosines @ cosines.T + sines @ sines.T) / cosines.shape[1]).reshape(*grid, *grid),
        kind="rotary",
        title="Rotary positions",
        label="Mean cos(θₙ − θₘ)",
        limits=(-1.0, 1.0),
    )


def _relative(model: Any, grid: tuple[int, int], layer: LayerName | None, head: SupportsIndex | None) -> PositionSimilarity:
    blocks = [one for one in attention_layers(model) if one.block is not None]
    number = blocks.index(find_layer(blocks, 0 if layer is None else layer))
    shared = model.relative_bias is not None
    biases = _numbers((model.relative_bias if shared else model.block_biases[number])(grid))[0, :, 1:, 1:]  # no class token
    heads, one = len(biases), as_integer(head)
    if head is not None and (one is None or not -heads <= one < heads):
        raise UsageError(f"There is no head {head}: the model has {heads}, numbered 0 to {heads - 1}.")
    where = "all layers" if shared else blocks[number].name.removesuffix(".attention")
    which = "mean over heads" if one is None else f"head {one % heads}"
    return PositionSimilarity(
        values=(biases.mean(0) if one is None else biases[one]).reshape(*grid, *grid),
        kind="relative_bias",
        title=f"Relative position bias ({where}, {which})",
        label="Bias (logits)",
    )


def _numbers(values: Float[Tensor, "*n"]) -> Float[np.ndarray, "*n"]:
    """Numbers in double precision, out of the graph and off the device."""
    return values.detach().cpu().double().numpy()
