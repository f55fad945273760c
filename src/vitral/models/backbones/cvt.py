"""Convolutional vision transformer (CvT): three stages of attention, with convolutions wherever tokens are made.

Wu et al. 2021, "CvT: Introducing Convolutions to Vision Transformers", https://arxiv.org/abs/2103.15808.

    picture ── stage 1 ── stage 2 ── stage 3 ── norm ── classifier     grids of 1/4, 1/8 and 1/16 of the picture
    a stage:   convolutional token embedding, which overlaps and makes the grid coarser (section 3.1),
               + class token, in the last stage,
               × depth: attention whose queries, keys and values are convolved first (section 3.2), feed-forward network

Convolutions tell a token where it is, so there are no positions, and pictures of any size are taken. Where the paper leaves
things open this page does what the authors' code does (microsoft/CvT, lib/models/cls_cvt.py): products are divided by the
root of the whole width, not of a head's, and the feed-forward networks have the sigmoid form of GELU. transformers computes
GELU itself with the same weights; `activation` tells the two apart.

This is not the compact vision transformer of Hassani et al. 2021, which is also called CVT: that one is in `cct.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.attention import ScaledDotProduct
from vitral.layers.block import Block
from vitral.layers.conv import ConvNorm
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation, Mlp
from vitral.layers.norm import norm_layer
from vitral.layers.position import Grid
from vitral.models.network import MapConfig, Network, check_ranges, chosen_levels
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "CvT", "CvTConfig"]

_NORM_EPS = 1e-5
# Side of the window, stride and margin of each stage's token embedding, and those of the convolutions before attention.
_EMBEDDINGS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
_KERNEL, _KEY_STRIDE = 3, 2
_SMALLEST = _EMBEDDINGS[0][0] - 2 * _EMBEDDINGS[0][2]
# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (_SMALLEST, 100_000),
    "channels": (1, 10_000),
    "num_classes": (0, 10_000_000),
    "mlp_ratio": (0.01, 1_000.0),
    "dropout": (0.0, 0.999),
    "drop_path": (0.0, 0.999),
}
_STAGE_RANGES = {"widths": 100_000, "depths": 1_000, "heads": 10_000}


@dataclass(frozen=True, kw_only=True)
class CvTConfig(MapConfig):
    """Everything that tells one convolutional vision transformer from another.

    Attributes:
        image_size, channels, num_classes: see `models.network.MapConfig`.
        widths: channels of a token, stage by stage.
        depths: number of blocks, stage by stage.
        heads: attention heads per block, stage by stage.
        mlp_ratio: hidden channels of the feed-forward networks, for each channel of a token.
        activation: their nonlinearity.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        dropout: probability of dropping channels of embeddings, attention weights and branches in training.
        drop_path: probability of dropping a branch of the last block in training, growing linearly in the last stage; the
            first two stages drop none.
    """

    widths: tuple[int, int, int] = (64, 192, 384)
    depths: tuple[int, int, int] = (1, 2, 10)
    heads: tuple[int, int, int] = (1, 3, 6)
    mlp_ratio: float = 4.0
    activation: Activation = "quick_gelu"
    qkv_bias: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        for field, most in _STAGE_RANGES.items():
            if not all(1 <= number <= most for number in getattr(self, field)):
                raise UsageError(f"{field} must be from 1 to {most}; {getattr(self, field)} came.")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise UsageError(f"A stage's width {width} is not a multiple of its heads {heads}.")

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next."""
        return 16

    @property
    def width(self) -> int:
        """Channels of a token behind the last block."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Number of blocks of all stages."""
        return sum(self.depths)

    def grid_of(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of the last map of a picture of some (height, width).

        The first embedding leaves out what remains of a cell if it is less than three pixels; the others take it as a cell.
        """
        high, wide = size
        for kernel, stride, margin in _EMBEDDINGS:
            high, wide = ((side + 2 * margin - kernel) // stride + 1 for side in (high, wide))
        return high, wide

    @property
    def pool(self) -> str:
        """What the classifier reads: the class token of the last stage."""
        return "class"

    @property
    def prefix(self) -> int:
        """Tokens before those of the map, in the last stage."""
        return 1

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """What the tokens before those of the map are called."""
        return ("class",)


class _ConvEmbedding(nn.Module):
    """Overlapping windows of a map, each a token of the next stage, normed (section 3.1, equation 1)."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, margin: int) -> None:
        super().__init__()
        self.projection = ConvNorm(inputs, width, kernel, stride, margin, norm="none")
        self.norm = norm_layer(width, "layer", _NORM_EPS)

    def forward(self, below: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b n d"], Grid]:
        """Tokens in reading order, and their grid."""
        cells = self.projection(below)
        return self.norm(cells.flatten(2).transpose(1, 2)), (cells.shape[2], cells.shape[3])


class _ConvolutionalAttention(nn.Module):
    """Attention whose queries, keys and values come from convolved tokens (section 3.2, equation 2).

    Each is projected by a convolution of 3 × 3, channel by channel, a batch norm, and a linear layer; keys and values are
    convolved at stride 2, so that there are four times fewer of them. Tokens before those of the map skip the convolutions.
    """

    def __init__(self, width: int, heads: int, *, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_convolution = ConvNorm(width, width, _KERNEL, groups=width)
        self.key_convolution = ConvNorm(width, width, _KERNEL, _KEY_STRIDE, groups=width)
        self.value_convolution = ConvNorm(width, width, _KERNEL, _KEY_STRIDE, groups=width)
        self.query = Linear(width, width, bias=qkv_bias)
        self.key = Linear(width, width, bias=qkv_bias)
        self.value = Linear(width, width, bias=qkv_bias)
        self.product = ScaledDotProduct(width**-0.5, dropout)
        self.projection = Linear(width, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b n d"]:
        """Attend.

        Args:
            tokens: any number of them, and then those of the grid.
            grid: rows and columns of the latter.
        """
        cells = grid[0] * grid[1]
        before, placed = tokens.split([tokens.shape[1] - cells, cells], dim=1)
        laid = placed.transpose(1, 2).unflatten(2, grid)

        def projected(convolution: nn.Module, linear: nn.Module) -> Float[Tensor, "b h m k"]:
            convolved = convolution(laid).flatten(2).transpose(1, 2)
            joined = torch.cat([before, convolved], dim=1) if before.shape[1] else convolved
            split: Tensor = linear(joined).unflatten(2, (self.heads, -1)).transpose(1, 2)
            return split

        mixed = self.product(
            projected(self.query_convolution, self.query),
            projected(self.key_convolution, self.key),
            projected(self.value_convolution, self.value),
        )
        return self.dropout(self.projection(mixed.transpose(1, 2).flatten(2)))


class _Stage(nn.Module):
    """One stage: tokens out of the map below, a class token where there is one, and blocks."""

    def __init__(self, config: CvTConfig, place: int, inputs: int) -> None:
        super().__init__()
        width, last = config.widths[place], place == len(config.widths) - 1
        self.embedding = _ConvEmbedding(inputs, width, *_EMBEDDINGS[place])
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        token = nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02)
        self.class_token = nn.Parameter(token) if last else None
        steps = max(config.depths[place] - 1, 1)
        self.blocks = nn.ModuleList(
            Block(
                _ConvolutionalAttention(width, config.heads[place], qkv_bias=config.qkv_bias, dropout=config.dropout),
                Mlp(width, int(width * config.mlp_ratio), config.activation, dropout=config.dropout),
                (norm_layer(width, "layer", _NORM_EPS), norm_layer(width, "layer", _NORM_EPS)),
                drop_path=config.drop_path * index / steps if last else 0.0,
            )
            for index in range(config.depths[place])
        )

    def forward(self, below: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b n d"], Grid]:
        """The stage's tokens, and the grid of those that lie on one."""
        tokens, grid = self.embedding(below)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens, grid


class CvT(Network):
    """A convolutional vision transformer.

    Args:
        config: which one.
    """

    config: CvTConfig

    def __init__(self, config: CvTConfig) -> None:
        super().__init__(config)
        inputs = (config.channels, *config.widths)
        self.stages = nn.ModuleList(_Stage(config, place, inputs[place]) for place in range(len(config.widths)))
        self.norm = norm_layer(config.width, "layer", _NORM_EPS)
        self.head = Linear(config.width, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of all stages, the first one first."""
        return tuple(block for stage in self.stages for block in stage.blocks)  # type: ignore[union-attr]

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""
        tokens, grid, _ = self._encoded(pixels)
        return self.read_out(tokens, grid)

    @property
    def levels(self) -> tuple[Level, ...]:
        """One for each stage."""
        return tuple(Level(width, stride) for width, stride in zip(self.config.widths, (4, 8, 16), strict=True))

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps behind some stages, not normed; the classifier is not computed.

        Args:
            pixels: prepared pictures of any one size.
            levels: behind which stages, counted from 0; None for all three.
        """
        chosen = chosen_levels(self.levels, range(len(self.levels)) if levels is None else levels)
        _, _, maps = self._encoded(pixels, chosen[-1])
        return Pyramid(tuple(maps[place] for place in chosen), tuple(self.levels[place].stride for place in chosen))

    def _encoded(
        self, pixels: Float[Tensor, "b c y x"], last: int = 2
    ) -> tuple[Float[Tensor, "b n d"], Grid, list[Float[Tensor, "b _ _ _"]]]:
        """Tokens and grid behind a stage, and the maps behind it and those before it."""
        if pixels.shape[1] != self.config.channels:
            raise UsageError(f"The model takes pictures of {self.config.channels} channels; {pixels.shape[1]} came.")
        if min(pixels.shape[2:]) < _SMALLEST:
            raise UsageError(
                f"A picture of {pixels.shape[2]}×{pixels.shape[3]} pixels has no room for a first token, which takes "
                f"{_SMALLEST}×{_SMALLEST}. Enlarge it first."
            )
        maps = [pixels]
        for stage in self.stages[: last + 1]:
            tokens, grid = stage(maps[-1])
            maps.append(tokens[:, tokens.shape[1] - grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid))
        return tokens, grid, maps[1:]

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> EncoderOutput:
        """What the tokens behind the last block come to: normed, and the class token classified."""
        tokens = self.norm(tokens)
        pooled = tokens[:, 0]
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, self.config.prefix, pooled, logits, () if logits is None else (logits,))

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes in place of the present one; 0 removes it."""
        like = next(self.norm.parameters())
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes) if num_classes else None
        if self.head is not None:
            self.head.apply(_initialise).to(like.device, like.dtype)


def _initialise(module: nn.Module) -> None:
    """Linear layers as in ViT; convolutions as torch makes them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_13 = CvTConfig()

VARIANTS: Mapping[str, CvTConfig] = {
    "cvt_13": _13,
    "cvt_21": replace(_13, depths=(1, 4, 16)),
    "cvt_w24": replace(_13, image_size=(384, 384), widths=(192, 768, 1024), depths=(2, 2, 20), heads=(3, 12, 16)),
}
"""Networks by name: CvT-13, CvT-21 and CvT-W24 (table 2), called after their number of blocks."""

PAPERS = {"cvt": "Wu et al. 2021"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
