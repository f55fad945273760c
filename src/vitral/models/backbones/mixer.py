"""MLP-Mixer: patches as in a vision transformer, and a multilayer perceptron across them where attention would be.

Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision", https://arxiv.org/abs/2105.01601,
section 2, equation 1.

    tokens (n d) ─┬─► norm ─► turned (d n) ─► up, gelu, down ─► turned back (n d) ─► + ─┬─► norm ─► up, gelu, down ─► + ─►
                  └─────────────── the same for every channel ──────────────────────►─┘ └───── the same for every token ──►┘

Token mixing has a weight for every place, so a Mixer is made for one grid. The paper takes larger pictures only where the
grid is a multiple, and trains again (its appendix on fine-tuning). Here the weights are looked at as functions of
the place, and are carried to the grid that comes as positions of a vision transformer are: bicubically, and those that
sum over the places multiplied by how many old places one new place stands for. So an enlarged picture gives nearly the
answer it gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.block import Block
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation, Mlp, Nonlinearity
from vitral.layers.norm import norm_layer
from vitral.layers.patch import PatchEmbedding
from vitral.layers.position import Grid, resample_grid
from vitral.models.network import Network, PlainConfig, check_ranges, chosen_levels, quarters
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "Mixer", "MixerConfig", "TokenMixing"]

_NORM_EPS = 1e-6
# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "patch_size": (1, 10_000),
    "channels": (1, 10_000),
    "width": (1, 100_000),
    "depth": (1, 1_000),
    "token_hidden": (1, 1_000_000),
    "channel_hidden": (1, 1_000_000),
    "num_classes": (0, 10_000_000),
    "dropout": (0.0, 0.999),
    "drop_path": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class MixerConfig(PlainConfig):
    """Everything that tells one Mixer from another.

    Attributes:
        image_size: height and width in pixels the token mixing is made for; pictures of other sizes are taken too.
        patch_size: height and width of a patch in pixels.
        width: channels d of a token (C in the paper).
        depth: number of blocks.
        token_hidden: hidden channels of the token mixing (D_S).
        channel_hidden: hidden channels of the channel mixing (D_C).
        activation: nonlinearity of both.
        dropout: probability of dropping channels inside a block in training.
        drop_path: probability of dropping a branch of the last block in training, growing linearly with depth.
    """

    patch_size: tuple[int, int] = (16, 16)
    width: int = 768
    depth: int = 12
    token_hidden: int = 384
    channel_hidden: int = 3072
    activation: Activation = "gelu"
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if min(self.grid) < 1:
            raise UsageError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size}.")

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of a picture of some (height, width); less than a patch is left out."""
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]


class TokenMixing(nn.Module):
    """One feed-forward network across the tokens, the same for every channel.

    Args:
        grid: rows and columns of tokens its weights are made for.
        hidden: channels of its hidden layer.
        activation: its nonlinearity.
        dropout: probability of dropping a channel after either layer in training.
    """

    def __init__(self, grid: Grid, hidden: int, activation: Activation, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.grid = grid
        self.up = Linear(grid[0] * grid[1], hidden)
        self.nonlinearity = Nonlinearity(activation)
        self.down = Linear(hidden, grid[0] * grid[1])
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b n d"]:
        """Mix.

        Args:
            tokens: in reading order.
            grid: the rows and columns they lie in.
        """
        tables = self.tables_at(grid)
        up, down = (tables[name].expand(len(tokens), -1, -1) for name in ("up.weight", "down.weight"))
        # Matrix times tokens: nothing needs to be turned.
        hidden = torch.baddbmm(self.up.bias[:, None], up, tokens)
        hidden = self.dropout(self.nonlinearity(hidden))
        return self.dropout(torch.baddbmm(tables["down.bias"][:, None], down, hidden))

    def tables_at(self, grid: Grid) -> Mapping[str, Tensor]:
        """The parameters that hang on the grid, carried to another one, by name."""
        tables = {"up.weight": self.up.weight, "down.weight": self.down.weight, "down.bias": self.down.bias}
        if grid == self.grid:
            return tables
        share = self.grid[0] * self.grid[1] / (grid[0] * grid[1])
        columns = {
            "up.weight": self.up.weight.T * share,
            "down.weight": self.down.weight,
            "down.bias": self.down.bias[:, None],
        }
        carried = {name: resample_grid(t[None], self.grid, grid, antialias=True)[0] for name, t in columns.items()}
        return {
            "up.weight": carried["up.weight"].T,
            "down.weight": carried["down.weight"],
            "down.bias": carried["down.bias"][:, 0],
        }


class Mixer(Network):
    """An MLP-Mixer.

    Args:
        config: which one.
    """

    config: MixerConfig

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.patch = PatchEmbedding(config.channels, config.width, config.patch_size)
        self.blocks = nn.ModuleList(self._block(index) for index in range(config.depth))
        self.norm = norm_layer(config.width, "layer", _NORM_EPS)
        self.head = Linear(config.width, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""
        tokens, grid, _ = self._encoded(pixels)
        return self.read_out(tokens, grid)

    @property
    def levels(self) -> tuple[Level, ...]:
        """One for each block: a Mixer keeps one scale throughout."""
        high, wide = self.config.patch_size
        if high != wide:
            raise UsageError(f"Maps of a pyramid have one stride; patches of {high} × {wide} pixels give two.")
        return (Level(self.config.width, high),) * self.depth

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
    ) -> tuple[Float[Tensor, "b n d"], Grid, list[Float[Tensor, "b n d"]]]:
        """The stream behind the last block, its grid, and the stream behind the blocks to be kept."""
        tokens, grid = self.patch(pixels)
        kept = []
        for place, block in enumerate(self.blocks):
            tokens = block(tokens, grid)
            if place in keep:
                kept.append(tokens)
        return tokens, grid, kept

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the tokens behind the last block come to: normed, averaged, classified."""
        tokens = self.norm(tokens)
        pooled = tokens.mean(1)
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every token of the stream would give, were it the whole picture's.

        Raises:
            UsageError: the model has no classifier.
        """
        if self.head is None:
            raise UsageError("The model has no classifier to read tokens with.")
        return self.head(self.norm(tokens))

    def tables_at(self, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """The weights of every token mixing, carried to another grid, by name."""
        mixings = {name: module for name, module in self.named_modules() if isinstance(module, TokenMixing)}
        return {f"{place}.{name}": t for place, mixing in mixings.items() for name, t in mixing.tables_at(grid).items()}

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes in place of the present one; 0 removes it."""
        like = self.patch.projection.weight
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes) if num_classes else None
        if self.head is not None:
            self.head.apply(_initialise).to(like.device, like.dtype)

    def _block(self, index: int) -> Block:
        """A transformer's block in which the token mixing stands for attention."""
        config = self.config
        return Block(
            TokenMixing(config.grid, config.token_hidden, config.activation, dropout=config.dropout),
            Mlp(config.width, config.channel_hidden, config.activation, dropout=config.dropout),
            (norm_layer(config.width, "layer", _NORM_EPS), norm_layer(config.width, "layer", _NORM_EPS)),
            drop_path=config.drop_path * index / max(config.depth - 1, 1),
        )


def _initialise(module: nn.Module) -> None:
    """Weights from a normal distribution of deviation 0.02, biases zero, as in ViT."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Table 1 of the paper: width C, blocks, D_S and D_C.
_SIZES = {
    "s": MixerConfig(width=512, depth=8, token_hidden=256, channel_hidden=2048),
    "b": MixerConfig(width=768, depth=12, token_hidden=384, channel_hidden=3072),
    "l": MixerConfig(width=1024, depth=24, token_hidden=512, channel_hidden=4096),
    "h": MixerConfig(width=1280, depth=32, token_hidden=640, channel_hidden=5120),
}

VARIANTS: dict[str, MixerConfig] = {
    **{
        f"mixer_{letter}{patch}": replace(_SIZES[letter], patch_size=(patch, patch))
        for letter in "sbl"
        for patch in (32, 16)
    },
    "mixer_h14": replace(_SIZES["h"], patch_size=(14, 14)),
}
"""Networks by name. `mixer_b16` is B at patch 16."""

PAPERS = {"mixer": "Tolstikhin et al. 2021"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
