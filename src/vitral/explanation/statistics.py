"""Attention and tokens in numbers: how far heads look, how sharply, how alike they are, and which tokens are outsize."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitral.base.numbers import whole_number
from vitral.errors import UsageError
from vitral.explanation.capture import Captured, LayerName, attention_layers, capture, find_layer
from vitral.explanation.stages import cell_of, moved
from vitral.layers.position import Grid

__all__ = [
    "OUTLIER_RATIO",
    "HeadStatistics",
    "TokenNorms",
    "attention_distance",
    "attention_entropy",
    "head_distances",
    "head_similarity",
    "head_statistics",
    "token_norms",
]


def attention_distance(
    maps: Float[Tensor, "b h n m"],
    grid: Grid,
    patch_size: tuple[int, int],
    prefix: int = 0,
    *,
    asked: Grid | None = None,
) -> Float[Tensor, "b h"]:
    """How far each head looks, in input pixels (Dosovitskiy et al. 2021, figure 7 right and appendix D.7).

    For every patch that asks, the distance from its centre to the centres of all patches, weighted by its attention; then
    the mean over those patches. Tokens before the patches lie nowhere: they do not ask, and attention they receive is left
    out, each row being brought back to a sum of one. (Much published code skips that last step, and so counts attention to
    the class token as attention at distance 0.)

    Args:
        maps: attention between all tokens, as `capture` gives it.
        grid: rows and columns of patches.
        patch_size: (height, width) of a patch in pixels.
        prefix: how many tokens stand before the patches.
        asked: rows and columns of the tokens that are asked, where they are fewer than those that ask.

    Raises:
        UsageError: the maps are not between the tokens of such a grid, a head attends to no patch at all, or numbers that
            are not finite.
    """
    asked = asked or grid
    tokens, others = (prefix + rows * columns for rows, columns in (grid, asked))
    if maps.shape[2:] != (tokens, others):
        between = f"between {tokens} tokens" if tokens == others else f"from {tokens} tokens to {others}"
        raise UsageError(
            f"Maps {between} are needed ({prefix} before {grid[0]} × {grid[1]} patches); they are "
            f"{maps.shape[2]} × {maps.shape[3]}. Capture all queries."
        )
    precise = torch.promote_types(maps.dtype, torch.float32)
    own = _centres(grid, patch_size, grid).to(maps.device, precise)
    theirs = _centres(asked, patch_size, grid).to(maps.device, precise)
    # Not by |a|² + |b|² − 2ab, which rounds small distances away.
    apart = torch.cdist(own, theirs, compute_mode="donot_use_mm_for_euclid_dist")
    found = []
    for head in maps[:, :, prefix:, prefix:].unbind(1):  # one at a time: a map is the largest tensor of a network
        seen = head.sum(-1, dtype=precise)
        rows = seen != 0
        if not rows.any(-1).all():
            raise UsageError("A head gives none of its attention to patches, so it looks at no distance.")
        distances = (head * apart).sum(-1) / seen.where(rows, 1.0)
        found.append(distances.sum(-1) / rows.sum(-1))
    return _finite(torch.stack(found, dim=1))


def _centres(asked: Grid, patch_size: tuple[int, int], grid: Grid) -> Float[Tensor, "n 2"]:
    """Centres of cells in pixels, from that of the first patch; of a coarser grid, means of those under them."""
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid)).view(-1, 2)
    centres = places * torch.tensor(patch_size, dtype=torch.float64)
    if asked == grid:
        return centres
    under = moved(torch.eye(asked[0] * asked[1], dtype=torch.float64), asked, grid)
    return under @ centres


def attention_entropy(maps: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h"]:
    """How widely each head spreads its attention: the entropy −Σ a · ln a of its rows in nats, 0 · ln 0 being 0.

    It is 0 where every token attends to one alone, and ln m where all m are attended alike; the mean over asking tokens.

    Raises:
        UsageError: numbers that are not finite.
    """
    return _finite(torch.stack([torch.special.entr(head).sum(-1).mean(-1) for head in maps.unbind(1)], dim=1))


def head_similarity(maps: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h h"]:
    """How alike the heads of a layer are: the cosine between their maps, each taken as one long vector.

    Raises:
        UsageError: a map of zeros, or numbers that are not finite.
    """
    flat = maps.flatten(2)
    products = flat @ flat.mT
    lengths = products.diagonal(dim1=-2, dim2=-1).sqrt()
    if not lengths.all():
        raise UsageError("A head's attention map is zero, so it has no cosine with the others.")
    return _finite((products / lengths[:, :, None] / lengths[:, None, :]).clamp(max=1.0))


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise UsageError("The maps hold numbers that are not finite; look at the model's weights and input.")
    return values


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadStatistics:
    """What the heads of a network do, averaged over pictures.

    Attributes:
        layers: the blocks' attentions by name, in the network's order.
        distance: mean attention distance in input pixels; see `attention_distance`.
        entropy: of attention, in nats; see `attention_entropy`. It cannot exceed ln `tokens`.
        similarity: between the heads of each layer, from 0 to 1; see `head_similarity`.
        tokens: how many tokens there were.
        pictures: how many pictures were looked at.
    """

    layers: tuple[str, ...]
    distance: Float[np.ndarray, "l h"]
    entropy: Float[np.ndarray, "l h"]
    similarity: Float[np.ndarray, "l h h"]
    tokens: int
    pictures: int

    def __repr__(self) -> str:
        layers, heads = self.distance.shape
        return f"HeadStatistics({layers} layers of {heads} heads, {self.pictures} pictures)"


@torch.no_grad()
def head_statistics(
    model: nn.Module,
    pixels: Float[Tensor, "b c y x"],
    *,
    layers: Iterable[LayerName] | None = None,
    batch_size: int = 16,
) -> HeadStatistics:
    """Distance, entropy and likeness of every head of every block; one layer's maps are in memory at a time.

    Args:
        model: a network with attention in evaluation mode.
        pixels: pictures as prepared for it; the ViT paper took 128.
        layers: which; None for all. The stages of a hierarchy have other numbers of heads and tokens, so there one asks for
            those of one stage.
        batch_size: how many the model sees at once.

    Raises:
        UsageError: the model has no blocks or is in training mode, there are no pictures, or the layers are not alike.
    """
    _ready(model, pixels)
    batch_size = whole_number("batch_size", batch_size)
    seen, size = _survey(model, pixels, layers), (pixels.shape[2], pixels.shape[3])
    names = seen.layers
    alike = {name: (seen[name], seen.prefix(name) + math.prod(seen.grid(name))) for name in names}
    if len(set(alike.values())) > 1:
        told = "; ".join(f"{name} has {heads} of {tokens}" for name, (heads, tokens) in alike.items())
        raise UsageError(
            "A table needs layers that have as many heads and tokens as each other. Choose those of one stage with "
            f"layers=…: {told}."
        )

    def measured(maps: Tensor, name: str) -> list[Tensor]:
        found = _distance_of(model, maps, seen, name, size), attention_entropy(maps), head_similarity(maps)
        return [values.cpu().double().sum(0) for values in found]

    totals: dict[str, list[Tensor]] = {}
    for batch in pixels.split(batch_size):
        for name, found in _each(model, batch, names, measured).items():
            before = totals.get(name)
            totals[name] = found if before is None else [one + more for one, more in zip(before, found, strict=True)]
    distance, entropy, similarity = (
        torch.stack(parts).numpy() / len(pixels) for parts in zip(*(totals[name] for name in names), strict=True)
    )
    return HeadStatistics(
        layers=names,
        distance=distance,
        entropy=entropy,
        similarity=similarity,
        tokens=alike[names[0]][1],
        pictures=len(pixels),
    )


@torch.no_grad()
def head_distances(model: nn.Module, pixels: Float[Tensor, "b c y x"]) -> list[Float[np.ndarray, " _"]]:
    """How far each head of every block looks in input pixels, the mean over pictures; layers may differ in their heads.

    Args:
        model: a network with attention in evaluation mode.
        pixels: pictures as prepared for it.

    Raises:
        UsageError: the model has no blocks or is in training mode, there are no pictures, or a head looks at no patch.
    """
    _ready(model, pixels)
    seen, size = _survey(model, pixels, None), (pixels.shape[2], pixels.shape[3])

    def measured(maps: Tensor, name: str) -> Tensor:
        return _distance_of(model, maps, seen, name, size)

    found = _each(model, pixels, seen.layers, measured)
    return [found[name].cpu().double().mean(0).numpy() for name in seen.layers]


def _survey(model: nn.Module, pixels: Float[Tensor, "b c y x"], layers: Iterable[LayerName] | None) -> Captured:
    """How many heads some blocks have, and on which grids; no map is computed. Where channels attend, none look anywhere."""
    known = [layer for layer in attention_layers(model) if layer.block is not None and not layer.layout.channels]
    if layers is not None:
        asked = {find_layer(attention_layers(model), one).name for one in layers}
        known = [layer for layer in known if layer.name in asked]
    if not known:
        raise UsageError(f"A {type(model).__name__} has no blocks whose heads could be measured.")
    names = [layer.name for layer in known]
    with capture(model, names, parts="queries", reduce=lambda queries: queries.shape[1]) as seen:
        model(pixels[:1])
    return seen


def _each(
    model: nn.Module, pixels: Float[Tensor, "b c y x"], names: Sequence[str], measure: Callable[[Tensor, str], Any]
) -> dict[str, Any]:
    """What is measured of the maps of every layer, one layer's maps being in memory at a time."""
    with ExitStack() as watching:
        found = {
            name: watching.enter_context(capture(model, name, reduce=partial(_called, measure, name))) for name in names
        }
        model(pixels)
    return {name: captured[name] for name, captured in found.items()}


def _called(measure: Callable[[Tensor, str], Any], name: str, maps: Tensor) -> Any:
    return measure(maps, name)


def _distance_of(
    model: nn.Module, maps: Float[Tensor, "b h n m"], seen: Captured, name: str, size: tuple[int, int]
) -> Float[Tensor, "b h"]:
    """`attention_distance` on a layer's own grid, for pictures of some (height, width)."""
    grid = seen.grid(name)
    cell = cell_of(model, grid, size)
    return attention_distance(maps, grid, cell, seen.prefix(name), asked=seen.asked_grid(name))


def _ready(model: nn.Module, pixels: Tensor) -> None:
    if model.training:
        raise UsageError("The model is in training mode, where chance may have a hand in it. Call model.eval() first.")
    if not len(pixels):
        raise UsageError("There are no pictures to measure anything on.")


OUTLIER_RATIO = 3.0
"""Patches whose norm is more than this many times the median are outliers, unless a threshold is given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenNorms:
    """The lengths of a layer's tokens.

    Attributes:
        norms: the L2 norm of every token of every picture, in the model's own order.
        layer: behind which block.
        prefix: what the tokens before the patches are called.
        grid: rows and columns of patches.
        threshold: the norm above which a patch is an outlier.
    """

    norms: Float[np.ndarray, "b n"]
    layer: str
    prefix: tuple[str, ...]
    grid: tuple[int, int]
    threshold: float

    def __repr__(self) -> str:
        found = int(self.outliers.sum())
        return f"TokenNorms({self.layer}, {found} of {self.patches.size} patches above {self.threshold:.4g})"

    @property
    def patches(self) -> Float[np.ndarray, "b i j"]:
        """The norms of the patches, laid out as they lie."""
        return self.norms[:, len(self.prefix) :].reshape(-1, *self.grid)

    @property
    def outliers(self) -> Bool[np.ndarray, "b i j"]:
        """Which patches are outliers."""
        return self.patches > self.threshold

    def histogram(self, bins: int = 50) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k+1"]]:
        """How many patches of all pictures have a norm in each of some equal bins from 0 to the greatest, and the edges."""
        counts, edges = np.histogram(self.patches, whole_number("bins", bins), range=(0.0, float(self.patches.max()) or 1.0))
        return counts, edges.astype(np.float64)


@torch.no_grad()
def token_norms(
    model: nn.Module, pixels: Float[Tensor, "b c y x"], *, layer: LayerName = -1, threshold: float | None = None
) -> TokenNorms:
    """The L2 norms of tokens, and which patches are outliers (Darcet et al. 2024, "Vision Transformers Need Registers",
    section 2.1): large networks turn a few patches of little content into places to keep things, and these grow long.

    What is measured is the residual stream behind a block, before the network's last norm. The paper says "output", but its
    norms of up to 600 are not those of a LayerNorm's output, where all tokens are about √d long: whoever measured there
    found nothing above 150 (discussion 373 of facebookresearch/dinov2). The code of Jiang et al. 2025, "Vision Transformers
    Don't Need Trained Registers", measures behind blocks at the same threshold. The last block may shrink outliers again (in
    DINOv2 L that code looks behind the last but one), so look at several layers.

    The paper's threshold of 150 was read off the valley between the two heaps of DINOv2 g's histogram, and fits that
    network. Here, by default, a patch is an outlier whose norm exceeds `OUTLIER_RATIO` times the median over all patches of
    all pictures, which the outliers themselves hardly move; a network with a single heap has none. The ratio is a choice of
    ours: look at the histogram.

    Args:
        model: a vision transformer in evaluation mode.
        pixels: pictures as prepared for it.
        layer: behind which block, by number or name.
        threshold: the norm above which a patch is an outlier, where the default does not fit.

    Raises:
        UsageError: the model is in training mode, there are no pictures, a threshold that is not positive, or tokens that
            are not finite.
    """
    _ready(model, pixels)
    if threshold is not None and not 0 < threshold < math.inf:
        raise UsageError(f"threshold must be a positive number; {threshold!r} came.")
    config: Any = cast(Any, model).config
    with capture(model, layer, parts="residual_post", reduce=lambda tokens: tokens.float().norm(dim=-1)) as captured:
        model(pixels)
    [norms] = (found.cpu().numpy() for found in captured)
    [name] = captured.layers
    prefix = captured.prefix(name)
    if not np.isfinite(norms).all():
        raise UsageError("Some tokens are not finite; look at the model's weights and input.")
    if threshold is None:
        threshold = OUTLIER_RATIO * float(np.median(norms[:, prefix:]))
    return TokenNorms(
        norms=norms, layer=name, prefix=config.prefix_names[:prefix], grid=captured.grid(name), threshold=threshold
    )
