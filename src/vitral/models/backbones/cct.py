"""Compact convolutional transformer (CCT), and the compact vision transformer (CVT) that cuts patches instead.

Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers", https://arxiv.org/abs/2104.05704: small
networks that learn from few pictures. Convolutions make the tokens (the paper's convolutional tokenizer), and no class token
is needed, as the last block's tokens are pooled by what each is worth (SeqPool).

Where the paper leaves things open, this page does what the authors' code does (SHI-Labs/Compact-Transformers, src/cct.py and
src/utils/): queries, keys and values have no bias; the second norm of a block acts on the stream itself; attention weights
are dropped at 0.1 and branches at up to 0.1, growing linearly with depth; convolutions start as He et al. 2015 do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.attention import SelfAttention
from vitral.layers.block import Block
from vitral.layers.linear import Linear
from vitral.layers.mlp import Mlp
from vitral.layers.norm import norm_layer
from vitral.layers.patch import PatchEmbedding
from vitral.layers.pool import SequencePool
from vitral.layers.position import resample_grid, sinusoids_1d
from vitral.layers.tokenizer import ConvTokenizer
from vitral.models.network import Network, PlainConfig, check_ranges, chosen_levels, quarters
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["CCT", "PAPERS", "VARIANTS", "CCTConfig"]

_NORM_EPS = 1e-5
# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "conv_channels": (1, 100_000),
    "kernel": (1, 1_000),
    "stride": (1, 1_000),
    "pool_kernel": (1, 1_000),
    "pool_stride": (1, 1_000),
    "width": (1, 100_000),
    "depth": (1, 1_000),
    "heads": (1, 10_000),
    "mlp_width": (1, 1_000_000),
    "num_classes": (0, 10_000_000),
    "dropout": (0.0, 0.999),
    "attention_dropout": (0.0, 0.999),
    "drop_path": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class CCTConfig(PlainConfig):
    """Everything that tells one compact transformer from another.

    Attributes:
        image_size: height and width in pixels the position table is made for; pictures of other sizes are taken too.
        tokens: what makes tokens: convolutions (CCT), or patches of `kernel` × `kernel` pixels (CVT), for which the other
            five fields of the tokenizer do not count.
        conv_channels: channels behind each convolution but the last, whose channels are `width`.
        kernel: side of a convolution's window, odd.
        stride: pixels from one of its windows to the next.
        pool_kernel: side of the window of the max pooling behind each convolution, odd.
        pool_stride: from one of its windows to the next.
        width: channels d of a token.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_width: hidden channels of the feed-forward networks.
        position: absolute positions: a learned table, sinusoids along the sequence, or none.
        dropout: probability of dropping channels of embeddings and branches in training.
        attention_dropout: probability of dropping attention weights in training.
        drop_path: probability of dropping a branch of the last block in training, growing linearly with depth.
    """

    image_size: tuple[int, int] = (32, 32)
    tokens: Literal["convolutions", "patches"] = "convolutions"
    conv_channels: tuple[int, ...] = (64,)
    kernel: int = 3
    stride: int = 1
    pool_kernel: int = 3
    pool_stride: int = 2
    width: int = 256
    depth: int = 7
    heads: int = 4
    mlp_width: int = 512
    num_classes: int = 10
    position: Literal["learned", "sinusoidal_1d", "none"] = "learned"
    dropout: float = 0.0
    attention_dropout: float = 0.1
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if self.width % self.heads:
            raise UsageError(f"width {self.width} is not a multiple of heads {self.heads}.")
        if self.position == "sinusoidal_1d" and self.width % 2:
            raise UsageError(f"Sinusoidal positions need a width that is a multiple of 2, not {self.width}.")
        if len(self.conv_channels) > 15:
            raise UsageError(f"conv_channels may name 15 convolutions before the last; {len(self.conv_channels)} came.")
        if self.tokens == "patches":
            if min(self.image_size) < self.kernel:
                raise UsageError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size}.")
        elif self.kernel % 2 == 0 or self.pool_kernel % 2 == 0:
            raise UsageError(f"kernel and pool_kernel must be odd; {self.kernel} and {self.pool_kernel} came.")

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of the cell of a picture that a token stands for: its patch, or the product of all strides.

        Convolutions see beyond it on all sides.
        """
        layers = len(self.conv_channels) + 1
        side = self.kernel if self.tokens == "patches" else (self.stride * self.pool_stride) ** layers
        return side, side

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens of a picture of some (height, width).

        Convolutions take what remains of a cell at the bottom and at the right as a cell; patches leave it out.
        """
        (high, wide), whole = self.patch_size, self.tokens == "patches"
        return (size[0] // high, size[1] // wide) if whole else (-(-size[0] // high), -(-size[1] // wide))

    @property
    def pool(self) -> Literal["attention"]:
        """What the classifier reads: all tokens, each weighted by what it is worth."""
        return "attention"


class CCT(Network):
    """A compact transformer.

    Args:
        config: which one.
    """

    config: CCTConfig

    def __init__(self, config: CCTConfig) -> None:
        super().__init__(config)
        width = config.width
        self.tokenizer: nn.Module = (
            PatchEmbedding(config.channels, width, config.patch_size)
            if config.tokens == "patches"
            else ConvTokenizer(
                config.channels,
                (*config.conv_channels, width),
                config.kernel,
                config.stride,
                pool_kernel=config.pool_kernel,
                pool_stride=config.pool_stride,
            )
        )
        table = torch.empty(1, config.grid[0] * config.grid[1], width)
        learned = config.position == "learned"
        self.position_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.2)) if learned else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(self._block(index) for index in range(config.depth))
        self.norm = norm_layer(width, "layer", _NORM_EPS)
        self.pool = SequencePool(width)
        self.head = Linear(width, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""
        tokens, grid, _ = self._encoded(pixels)
        return self.read_out(tokens, grid)

    @property
    def levels(self) -> tuple[Level, ...]:
        """One for each block: the tokenizer alone changes the scale."""
        return (Level(self.config.width, self.config.patch_size[0]),) * self.depth

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The stream of tokens behind some blocks as maps, not normed; the classifier is not computed.

        Args:
            pixels: prepared pictures of any one size.
            levels: behind which blocks, counted from 0; None for the ends of the network's four quarters.
        """
        chosen = chosen_levels(self.levels, quarters(self.depth) if levels is None else levels)
        _, grid, kept = self._encoded(pixels, chosen)
        maps = tuple(tokens.transpose(1, 2).unflatten(2, grid) for tokens in kept)
        return Pyramid(maps, tuple(self.levels[place].stride for place in chosen))

    def _encoded(
        self, pixels: Float[Tensor, "b c y x"], keep: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "b n d"], tuple[int, int], list[Float[Tensor, "b n d"]]]:
        """The stream behind the last block, its grid, and the stream behind the blocks to be kept."""
        tokens, grid = self.tokenizer(pixels)
        _, positions = self.positions(grid)
        if positions is not None:
            tokens = tokens + positions.to(tokens)
        tokens = self.dropout(tokens)
        kept = []
        for place, block in enumerate(self.blocks):
            tokens = block(tokens)
            if place in keep:
                kept.append(tokens)
        return tokens, grid, kept

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the tokens behind the last block come to: normed, pooled, classified."""
        tokens = self.norm(tokens)
        pooled = self.pool(tokens)
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every token of the residual stream would give, were it the whole picture's.

        A pool of one token alone is that token; so the classifier reads each behind the last norm.

        Raises:
            UsageError: the model has no classifier.
        """
        if self.head is None:
            raise UsageError("The model has no classifier to read tokens with.")
        return self.head(self.norm(tokens))

    def positions(self, grid: tuple[int, int]) -> tuple[None, Float[Tensor, "1 p d"] | None]:
        """Absolute positions: none for tokens before the patches, as there are none, and those for the tokens of a grid."""
        config = self.config
        if config.position == "sinusoidal_1d":
            return None, sinusoids_1d(grid[0] * grid[1], config.width).unsqueeze(0)
        if self.position_table is None or grid == config.grid:
            return None, self.position_table
        return None, resample_grid(self.position_table, config.grid, grid, antialias=True)

    def tables_at(self, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """The position table carried to another grid, by name."""
        _, positions = self.positions(grid)
        return {"position_table": positions} if self.position_table is not None and positions is not None else {}

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes in place of the present one; 0 removes it."""
        like = self.pool.score.weight
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes) if num_classes else None
        if self.head is not None:
            self.head.apply(_initialise).to(like.device, like.dtype)

    def _block(self, index: int) -> Block:
        config = self.config
        return Block(
            SelfAttention(
                config.width,
                config.heads,
                qkv_bias=False,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
            ),
            Mlp(config.width, config.mlp_width, dropout=config.dropout),
            (norm_layer(config.width, "layer", _NORM_EPS), norm_layer(config.width, "layer", _NORM_EPS)),
            placement="between",
            drop_path=config.drop_path * index / max(config.depth - 1, 1),
        )


def _initialise(module: nn.Module) -> None:
    """Linear layers as in ViT; convolutions from a normal distribution of variance 2 / fan-in (He et al. 2015)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


# Sizes by their number of blocks; the heads of all have 64 channels.
_2 = CCTConfig(depth=2, width=128, heads=2, mlp_width=128)
_4 = CCTConfig(depth=4, width=128, heads=2, mlp_width=128)
_6 = CCTConfig(depth=6, width=256, heads=4, mlp_width=512)
_7 = CCTConfig(depth=7, width=256, heads=4, mlp_width=512)
_14 = CCTConfig(depth=14, width=384, heads=6, mlp_width=1152, kernel=7, stride=2, num_classes=1000)

VARIANTS: dict[str, CCTConfig] = {
    "cct_2_3x2_32": _2,
    "cct_4_3x2_32": _4,
    "cct_6_3x1_32": replace(_6, conv_channels=()),
    "cct_6_3x2_32": _6,
    "cct_7_3x1_32": replace(_7, conv_channels=()),
    "cct_7_3x2_32": _7,
    "cct_7_7x2_224": replace(_7, kernel=7, stride=2, image_size=(224, 224), num_classes=102),
    "cct_14_7x2_224": replace(_14, image_size=(224, 224)),
    "cct_14_7x2_384": replace(_14, image_size=(384, 384)),
    # Ours, for CIFAR-10 in an hour on a CPU: three convolutions leave a quarter of the tokens.
    "cct_4_3x3_32": CCTConfig(depth=4, width=192, heads=3, mlp_width=384, conv_channels=(48, 96)),
    **{f"cvt_{size.depth}_4_32": replace(size, tokens="patches", conv_channels=(), kernel=4) for size in (_2, _4, _6, _7)},
}
"""Networks by name. `cct_7_3x1_32` has 7 blocks behind 1 convolution of 3 × 3, for pictures of 32 × 32 pixels."""

PAPERS = {"cct": "Hassani et al. 2021", "cvt": "Hassani et al. 2021", "cct_4_3x3_32": "Vitral"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
