"""Attention and tokens in numbers: how far heads look, how sharply, how alike they are, and which tokens are outsize."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitral.base.numbers import whole_number
from vitral.errors import UsageError
from vitral.explanation.capture import LayerName, attention_layers, capture

__all__ = [
    "OUTLIER_RATIO",
    "HeadStatistics",
    "TokenNorms",
    "attention_distance",
    "attention_entropy",
    "head_similarity",
    "head_statistics",
    "token_norms",
]


def attention_distance(
    maps: Float[Tensor, "b h n m"], grid: tuple[int, int], patch_size: tuple[int, int], prefix: int = 0
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

    Raises:
        UsageError: the maps are not between the tokens of such a grid, a head attends to no patch at all, or numbers that
            are not finite.
    """
    tokens = prefix + grid[0] * grid[1]
    if maps.shape[2:] != (tokens, tokens):
        raise UsageError(
            f"Maps between {tokens} tokens are needed ({prefix} before {grid[0]} × {grid[1]} patches); they are "
            f"{maps.shape[2]} × {maps.shape[3]}. Capture all queries."
        )
    precise = torch.promote_types(maps.dtype, torch.float32)
    places = torch.cartesian_prod(*(torch.arange(side, dtype=precise, device=maps.device) for side in grid))
    centres = places * torch.tensor(patch_size, dtype=precise, device=maps.device)
    # Not by |a|² + |b|² − 2ab, which rounds small distances away.
    apart = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    found = []
    for head in maps[:, :, prefix:, prefix:].unbind(1):  # one at a time: a map is the largest tensor of a network
        seen = head.sum(-1, dtype=precise)
        rows = seen != 0
        if not rows.any(-1).all():
            raise UsageError("A head gives none of its attention to patches, so it looks at no distance.")
        distances = (head * apart).sum(-1) / seen.where(rows, 1.0)
        found.append(distances.sum(-1) / rows.sum(-1))
    return _finite(torch.stack(found, dim=1))


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
def head_statistics(model: nn.Module, pixels: Float[Tensor, "b c y x"], *, batch_size: int = 16) -> HeadStatistics:
    """Distance, entropy and likeness of every head of every block; one layer's maps are in memory at a time.

    Args:
        model: a vision transformer in evaluation mode.
        pixels: pictures as prepared for it; the ViT paper took 128.
        batch_size: how many the model sees at once.

    Raises:
        UsageError: the model has no blocks or is in training mode, or there are no pictures.
    """
    _ready(model, pixels)
    batch_size = whole_number("batch_size", batch_size)
    config: Any = cast(Any, model).config
    grid = config.grid_of(tuple(pixels.shape[2:]))
    layers = [layer.name for layer in attention_layers(model) if layer.block is not None]
    if not layers:
        raise UsageError(f"A {type(model).__name__} has no blocks whose heads could be measured.")

    def measured(maps: Tensor) -> list[Tensor]:
        distance = attention_distance(maps, grid, config.patch_size, config.prefix)
        found = distance, attention_entropy(maps), head_similarity(maps)
        return [values.cpu().double().sum(0) for values in found]

    totals: dict[str, list[Tensor]] = {}
    for batch in pixels.split(batch_size):
        with capture(model, layers, reduce=measured) as captured:
            model(batch)
        for layer in layers:
            found, before = captured[layer], totals.get(layer)
            totals[layer] = found if before is None else [one + more for one, more in zip(before, found, strict=True)]
    distance, entropy, similarity = (
        torch.stack(parts).numpy() / len(pixels) for parts in zip(*totals.values(), strict=True)
    )
    return HeadStatistics(
        layers=tuple(layers),
        distance=distance,
        entropy=entropy,
        similarity=similarity,
        tokens=config.prefix + grid[0] * grid[1],
        pictures=len(pixels),
    )


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
        output: Any = model(pixels)
    [norms] = (found.cpu().numpy() for found in captured)
    if not np.isfinite(norms).all():
        raise UsageError("Some tokens are not finite; look at the model's weights and input.")
    if threshold is None:
        threshold = OUTLIER_RATIO * float(np.median(norms[:, config.prefix :]))
    return TokenNorms(
        norms=norms, layer=captured.layers[0], prefix=config.prefix_names, grid=tuple(output.grid), threshold=threshold
    )
