"""Cross-covariance image transformer (XCiT).

El-Nouby et al. 2021, "XCiT: Cross-Covariance Image Transformers", https://arxiv.org/abs/2106.09681. Channels attend to
channels, so that the cost of a picture grows with its area, and small patches become affordable:

    picture ── convolutions, each halving it ── + Fourier positions ──┐
        ┌─────────────────────────────────────────────────────────────┘
        │   × depth: cross-covariance attention, local patch interaction, feed-forward network   (section 3.3)
        └── + class token ── × class_depth: class attention, feed-forward network ── norm ── classifier

As channels are mixed alike for every token, tokens meet only by what they have in common; convolutions over the grid, the
local patch interaction, let neighbours meet. The class token comes last and reads the patches by class attention (Touvron et
al. 2021, CaiT, section 2.2). Where the paper leaves things open this page does what the authors' code does
(facebookresearch/xcit, xcit.py); the remarks in the code say where.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.attention import ScaledDotProduct
from vitral.layers.block import Block
from vitral.layers.conv import ConvNorm
from vitral.layers.cross_covariance import CrossCovarianceAttention
from vitral.layers.linear import Linear
from vitral.layers.mlp import Mlp
from vitral.layers.norm import LayerScale, norm_layer
from vitral.layers.position import Grid
from vitral.models.network import Network, check_ranges, chosen_levels, quarters
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "XCiT", "XCiTConfig"]

_NORM_EPS = 1e-6
_FREQUENCIES = 16  # of a Fourier position, for either axis; each as a sine and a cosine
_LONGEST = 10000.0  # the ratio of its longest wavelength to its shortest
# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "patch": (2, 1024),
    "channels": (1, 10_000),
    "width": (1, 100_000),
    "depth": (1, 1_000),
    "heads": (1, 10_000),
    "mlp_width": (1, 1_000_000),
    "class_depth": (1, 100),
    "num_classes": (0, 10_000_000),
    "layer_scale": (-1e6, 1e6),
    "dropout": (0.0, 0.999),
    "drop_path": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class XCiTConfig:
    """Everything that tells one cross-covariance transformer from another.

    Attributes:
        image_size: height and width in pixels the network is made for; pictures of other sizes are taken too.
        patch: pixels from one token to the next, a power of two: the convolutions before the blocks halve the picture.
        channels: channels of a picture.
        width: channels d of a token.
        depth: number of blocks of cross-covariance attention.
        heads: attention heads per block.
        mlp_width: hidden channels of the feed-forward networks.
        class_depth: number of blocks of class attention behind them.
        num_classes: classes of the classifier; 0 for none.
        positions: whether Fourier positions are added to the tokens.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        class_norm_all: whether the second norm of a class attention block acts on all tokens, or on the class token alone.
            The authors' nano networks are of the second kind, all others of the first.
        layer_scale: initial gain of every branch; 1 for networks of 12 blocks, 1e-5 for those of 24.
        dropout: probability of dropping channels of embeddings, attention weights and branches in training.
        drop_path: probability of dropping a branch of a block in training, the same for all blocks.
    """

    image_size: tuple[int, int] = (224, 224)
    patch: int = 16
    channels: int = 3
    width: int = 384
    depth: int = 12
    heads: int = 8
    mlp_width: int = 1536
    class_depth: int = 2
    num_classes: int = 1000
    positions: bool = True
    qkv_bias: bool = True
    class_norm_all: bool = True
    layer_scale: float = 1.0
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if self.patch & (self.patch - 1):
            raise UsageError(f"patch must be a power of two, as convolutions halve the picture; {self.patch} came.")
        if self.width % self.heads:
            raise UsageError(f"width {self.width} is not a multiple of heads {self.heads}.")
        if self.width % (self.patch // 2):
            raise UsageError(
                f"The channels double from convolution to convolution up to width {self.width}, which is not a multiple of "
                f"half the patch, {self.patch // 2}."
            )

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of the cell of a picture that a token stands for; convolutions see beyond it on all sides."""
        return self.patch, self.patch

    @property
    def grid(self) -> Grid:
        """Rows and columns of tokens of a picture of `image_size`."""
        return self.grid_of(self.image_size)

    def grid_of(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of tokens of a picture of some (height, width); what remains of a cell is one."""
        return -(-size[0] // self.patch), -(-size[1] // self.patch)

    @property
    def pool(self) -> str:
        """What the classifier reads: the class token."""
        return "class"

    @property
    def prefix(self) -> int:
        """Tokens before the patches behind the last block; before the blocks of class attention there are none."""
        return 1

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """What the tokens before the patches are called."""
        return ("class",)


class _ConvStem(nn.Module):
    """Convolutions of 3 × 3, each halving the picture and doubling the channels (section 3.4, after Graham et al. 2021)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        count = int(math.log2(patch))
        widths = [channels, *(width >> (count - 1 - place) for place in range(count))]
        self.convolutions = nn.ModuleList(
            ConvNorm(before, after, 3, 2, activation="none" if after == width else "gelu")
            for before, after in itertools.pairwise(widths)
        )
        self.channels = channels

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b n d"], Grid]:
        """Tokens in reading order, and their grid."""
        if pixels.shape[1] != self.channels:
            raise UsageError(f"The model takes pictures of {self.channels} channels; {pixels.shape[1]} came.")
        for convolution in self.convolutions:
            pixels = convolution(pixels)
        return pixels.flatten(2).transpose(1, 2), (pixels.shape[2], pixels.shape[3])


class _FourierPositions(nn.Module):
    """Sines and cosines of a token's row and column, projected to the width of a token (section 3.4).

    Either axis is mapped to (0, 2π], so a picture of any size spans the same angles.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = Linear(4 * _FREQUENCIES, width)

    def forward(self, grid: Grid) -> Float[Tensor, "1 n d"]:
        """One vector for every token of a grid, in reading order."""
        table: Tensor = self.projection(torch.as_tensor(_fourier(grid)).to(self.projection.weight))
        return table.unsqueeze(0)


@functools.lru_cache(maxsize=16)
def _fourier(grid: Grid) -> Float[np.ndarray, "n f"]:
    """For every token of a grid the sines and cosines of its row, in turn, and those of its column."""
    wavelengths = _LONGEST ** (np.arange(_FREQUENCIES) / _FREQUENCIES)
    axes = []
    for side in grid:
        places = np.arange(1, side + 1) / (side + 1e-6) * 2 * math.pi  # the authors' code guards its division so
        angles = places[:, None] / wavelengths
        axes.append(np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(side, -1))
    down = np.repeat(axes[0], grid[1], axis=0)
    across = np.tile(axes[1], (grid[0], 1))
    return np.concatenate([down, across], axis=1).astype(np.float32)


class _LocalPatchInteraction(nn.Module):
    """Two convolutions of 3 × 3, each channel on its own, by which neighbouring patches meet (section 3.3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width, 3, groups=width, norm="none", activation="gelu")
        # It stands behind the nonlinearity in the authors' code.
        self.norm = nn.BatchNorm2d(width)
        self.second = ConvNorm(width, width, 3, groups=width, norm="none")

    def forward(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b n d"]:
        """Mix every token with its eight neighbours, twice."""
        patches = tokens.transpose(1, 2).unflatten(2, grid)
        mixed: Tensor = self.second(self.norm(self.first(patches)))
        return mixed.flatten(2).transpose(1, 2)


class _XCABlock(Block):
    """Cross-covariance attention, local patch interaction and a feed-forward network, each a branch of its own.

    Equations of section 3.3; the interaction stands second in the authors' code, though its parts are numbered third.
    """

    def __init__(self, config: XCiTConfig) -> None:
        width, gain = config.width, config.layer_scale
        super().__init__(
            CrossCovarianceAttention(width, config.heads, qkv_bias=config.qkv_bias, dropout=config.dropout),
            Mlp(width, config.mlp_width, dropout=config.dropout),
            (_norm(width), _norm(width)),
            scales=(LayerScale(width, gain), LayerScale(width, gain)),
            drop_path=config.drop_path,
        )
        self.norm3 = _norm(width)
        self.local = _LocalPatchInteraction(width)
        self.scale3 = LayerScale(width, gain)

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b n d"]:
        """Transform the tokens; the context is the grid they lie on."""
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), *context)))
        x = x + self.drop_path(self.scale3(self.local(self.norm3(x), *context)))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class _ClassAttention(nn.Module):
    """The class token, which stands first, attends to all tokens and to itself (CaiT, section 2.2, equation 5)."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width, bias=qkv_bias)
        self.key_value = Linear(width, 2 * width, bias=qkv_bias)
        self.product = ScaledDotProduct((width // heads) ** -0.5, dropout)
        self.projection = Linear(width, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b 1 d"]:
        """What the class token makes of the tokens."""
        batch, count, width = tokens.shape
        query = self.query(tokens[:, :1]).view(batch, 1, self.heads, -1).transpose(1, 2)
        keys, values = self.key_value(tokens).view(batch, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.product(query, keys, values)
        return self.dropout(self.projection(mixed.transpose(1, 2).reshape(batch, 1, width)))


class _ClassBlock(Block):
    """Class attention, and a feed-forward network for the class token alone.

    Patches pass through both branches too, as in the authors' code: they are added to their own normed selves, and then to
    themselves. What comes out of the last block has learned with it.
    """

    def __init__(self, config: XCiTConfig) -> None:
        width, gain = config.width, config.layer_scale
        super().__init__(
            _ClassAttention(width, config.heads, qkv_bias=config.qkv_bias, dropout=config.dropout),
            Mlp(width, config.mlp_width, dropout=config.dropout),
            (_norm(width), _norm(width)),
            scales=(LayerScale(width, gain), LayerScale(width, gain)),
        )
        self.norm_all = config.class_norm_all

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b n d"]:
        """Transform the tokens, of which the first is the class token."""
        normed = self.norm1(x)
        x = x + self.scale1(torch.cat([self.attention(normed), normed[:, 1:]], dim=1))
        x = self.norm2(x) if self.norm_all else torch.cat([self.norm2(x[:, :1]), x[:, 1:]], dim=1)
        return x + torch.cat([self.scale2(self.mlp(x[:, :1])), x[:, 1:]], dim=1)


class _ClassReading(nn.Module):
    """A class token that joins the patches behind the last block and reads them."""

    def __init__(self, config: XCiTConfig) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, config.width), std=0.02))
        self.blocks = nn.ModuleList(_ClassBlock(config) for _ in range(config.class_depth))

    def forward(self, patches: Float[Tensor, "b p d"]) -> Float[Tensor, "b n d"]:
        """The class token and the patches behind the blocks of class attention."""
        tokens = torch.cat([self.token.expand(len(patches), -1, -1).to(patches.dtype), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class XCiT(Network):
    """A cross-covariance image transformer.

    Args:
        config: which one.
    """

    config: XCiTConfig

    def __init__(self, config: XCiTConfig) -> None:
        super().__init__(config)
        width = config.width
        self.stem = _ConvStem(config.channels, width, config.patch)
        self.positions = _FourierPositions(width) if config.positions else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(_XCABlock(config) for _ in range(config.depth))
        self.reading = _ClassReading(config)
        self.norm = _norm(width)
        self.head = Linear(width, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""
        tokens, grid, _ = self._encoded(pixels)
        return self.read_out(tokens, grid)

    @property
    def levels(self) -> tuple[Level, ...]:
        """One for each block of cross-covariance attention: the convolutions before them alone change the scale."""
        return (Level(self.config.width, self.config.patch),) * self.depth

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The stream of tokens behind some blocks as maps, not normed; class attention is not computed.

        Args:
            pixels: prepared pictures of any one size.
            levels: behind which blocks, counted from 0; None for the ends of the network's four quarters, which section 4.3
                reads for detection and segmentation in the same way.
        """
        chosen = chosen_levels(self.levels, quarters(self.depth) if levels is None else levels)
        _, grid, kept = self._encoded(pixels, chosen)
        maps = tuple(tokens.transpose(1, 2).unflatten(2, grid) for tokens in kept)
        return Pyramid(maps, tuple(self.levels[place].stride for place in chosen))

    def _encoded(
        self, pixels: Float[Tensor, "b c y x"], keep: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "b n d"], Grid, list[Float[Tensor, "b n d"]]]:
        """The stream behind the last block of cross-covariance attention, its grid, and that behind blocks to be kept."""
        tokens, grid = self.stem(pixels)
        if self.positions is not None:
            tokens = tokens + self.positions(grid)
        tokens = self.dropout(tokens)
        kept = []
        for place, block in enumerate(self.blocks):
            tokens = block(tokens, grid)
            if place in keep:
                kept.append(tokens)
        return tokens, grid, kept

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> EncoderOutput:
        """What the patches' tokens behind the last block come to: joined by a class token that reads them, and normed."""
        tokens = self.norm(self.reading(tokens))
        pooled = tokens[:, 0]
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, self.config.prefix, pooled, logits, () if logits is None else (logits,))

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes in place of the present one; 0 removes it."""
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes) if num_classes else None
        if self.head is not None:
            self.head.apply(_initialise).to(self.reading.token.device, self.reading.token.dtype)


def _norm(width: int) -> nn.Module:
    return norm_layer(width, "layer", _NORM_EPS)


def _initialise(module: nn.Module) -> None:
    """Linear layers as in ViT; convolutions as torch makes them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _variants() -> dict[str, XCiTConfig]:
    """Table 1 of the paper, each at patches of 16 and of 8 pixels."""
    sizes = {
        "nano_12": (128, 12, 4),
        "tiny_12": (192, 12, 4),
        "small_12": (384, 12, 8),
        "tiny_24": (192, 24, 4),
        "small_24": (384, 24, 8),
        "medium_24": (512, 24, 8),
        "large_24": (768, 24, 16),
    }
    return {
        f"xcit_{size}_p{patch}": XCiTConfig(
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=4 * width,
            class_norm_all=not size.startswith("nano"),
            layer_scale=1.0 if depth == 12 else 1e-5,
        )
        for size, (width, depth, heads) in sizes.items()
        for patch in (16, 8)
    }


VARIANTS: Mapping[str, XCiTConfig] = _variants()
"""Networks by name. `xcit_small_12_p16` has 12 blocks and a token for every 16 × 16 pixels."""

PAPERS = {"xcit": "El-Nouby et al. 2021"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
