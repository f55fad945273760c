"""Pyramid vision transformer, second version (PVTv2).

Wang et al. 2022, "PVT v2: Improved Baselines with Pyramid Vision Transformer", https://arxiv.org/abs/2106.13797: four
stages, each of which begins with a strided convolution whose windows overlap, and whose tokens attend to a smaller map of
the stage (or, section 3.2, to its mean over 7 × 7 regions, which is linear). A depthwise convolution inside the
feed-forward networks stands in for positions, so that pictures of any size are taken as they are.

The maps of a picture of n rows have ⌈n / 4⌉, ⌈n / 8⌉, ⌈n / 16⌉ and ⌈n / 32⌉ of them. As in the authors' code (whai362/PVT,
classification/pvt_v2.py) the norms behind convolutions have another epsilon than the blocks' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.conv_mlp import ConvMlp, GridBlock
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation
from vitral.layers.norm import norm_layer
from vitral.layers.overlapping import OverlappingEmbedding
from vitral.layers.spatial_reduction import SpatialReductionAttention
from vitral.models.network import MapConfig, Network, check_ranges, chosen_levels
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "PVTConfig", "PVTv2"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (0, 10_000_000),
    "norm_eps": (0.0, 1.0),
    "conv_norm_eps": (0.0, 1.0),
    "dropout": (0.0, 0.999),
    "attention_dropout": (0.0, 0.999),
    "drop_path": (0.0, 0.999),
}
_PER_STAGE = {"widths": 100_000, "depths": 1_000, "heads": 10_000, "reductions": 1_000, "mlp_ratios": 1_000}
_STAGES = 8


@dataclass(frozen=True, kw_only=True)
class PVTConfig(MapConfig):
    """Everything that tells one pyramid vision transformer from another.

    Attributes:
        widths: channels of a token, by stage.
        depths: blocks, by stage.
        heads: attention heads, by stage.
        reductions: side of the windows of which one key is made, by stage.
        mlp_ratios: hidden channels of the feed-forward networks in multiples of the stage's width.
        linear: whether keys come from 7 × 7 means instead, for which `reductions` do not count.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        activation: the nonlinearity of the feed-forward networks.
        norm_eps: epsilon of the norms of blocks, and at the end of stages.
        conv_norm_eps: epsilon of the norms behind the convolutions of embeddings and reductions.
        dropout: probability of dropping channels of branches in training.
        attention_dropout: probability of dropping attention weights in training.
        drop_path: probability of dropping a branch of the last block in training, growing linearly with depth.
    """

    widths: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    linear: bool = False
    qkv_bias: bool = True
    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    conv_norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        stages = len(self.widths)
        for field, most in _PER_STAGE.items():
            values = getattr(self, field)
            if not 1 <= stages <= _STAGES or len(values) != stages or not all(1 <= value <= most for value in values):
                raise UsageError(
                    f"{field} must be a number from 1 to {most} for each of the up to {_STAGES} stages that widths "
                    f"{self.widths} name; {values!r} came."
                )
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise UsageError(f"width {width} of a stage is not a multiple of its heads {heads}.")

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next."""
        return 4 * 2 ** (len(self.widths) - 1)

    @property
    def width(self) -> int:
        """Channels of a token behind the last block."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.depths)


class PVTv2(Network):
    """A pyramid vision transformer.

    Args:
        config: which one.
    """

    config: PVTConfig

    def __init__(self, config: PVTConfig) -> None:
        super().__init__(config)
        self.stages = nn.ModuleList(_Stage(config, index) for index in range(len(config.widths)))
        self.head = Linear(config.width, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of all stages."""
        return tuple(block for stage in self._stages() for block in stage.blocks)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""
        x = self._checked(pixels)
        for stage in self.stages:
            x = stage(x)
        return self._classified(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the tokens behind the last block come to: normed, pooled, classified."""
        return self._classified(self._stages()[-1].norm(tokens), grid)

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every token behind the last stage's blocks would give, were it the whole picture's.

        Raises:
            UsageError: the model has no classifier.
        """
        if self.head is None:
            raise UsageError("The model has no classifier to read tokens with.")
        return self.head(self._stages()[-1].norm(tokens))

    @property
    def levels(self) -> tuple[Level, ...]:
        """One for each stage."""
        return tuple(Level(width, 4 * 2**index) for index, width in enumerate(self.config.widths))

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps at the ends of stages, each behind the stage's norm, as the next stage reads it.

        Args:
            pixels: prepared pictures of any one size.
            levels: of which stages, counted from 0; None for all.
        """
        chosen = chosen_levels(self.levels, range(len(self.stages)) if levels is None else levels)
        maps, x = [], self._checked(pixels)
        for place in range(chosen[-1] + 1):
            x = self.stages[place](x)
            maps.append(x)
        return Pyramid(tuple(maps[place] for place in chosen), tuple(self.levels[place].stride for place in chosen))

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes in place of the present one; 0 removes it."""
        like = next(self.parameters())
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes) if num_classes else None
        if self.head is not None:
            self.head.apply(_initialise).to(like.device, like.dtype)

    def _stages(self) -> list[_Stage]:
        return [cast(_Stage, stage) for stage in self.stages]

    def _classified(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        pooled = tokens.mean(1)
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    def _checked(self, pixels: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """Pictures of the model's channels, those of a pixel side by side as they will be in a token."""
        if pixels.shape[1] != self.config.channels:
            raise UsageError(f"The model takes pictures of {self.config.channels} channels; {pixels.shape[1]} came.")
        return pixels.contiguous(memory_format=torch.channels_last)


class _Stage(nn.Module):
    """Windows, blocks, a norm: from a map to a map of half the sides (a quarter in the first stage).

    Args:
        config: which network.
        index: which stage.
    """

    def __init__(self, config: PVTConfig, index: int) -> None:
        super().__init__()
        width, before, last = config.widths[index], sum(config.depths[:index]), max(config.depth - 1, 1)
        inputs, kernel, stride = (config.widths[index - 1], 3, 2) if index else (config.channels, 7, 4)
        self.embedding = OverlappingEmbedding(inputs, width, kernel, stride, eps=config.conv_norm_eps)
        self.blocks = nn.ModuleList(
            GridBlock(
                SpatialReductionAttention(
                    width,
                    config.heads[index],
                    config.reductions[index],
                    linear=config.linear,
                    qkv_bias=config.qkv_bias,
                    eps=config.conv_norm_eps,
                    dropout=config.dropout,
                    attention_dropout=config.attention_dropout,
                ),
                ConvMlp(
                    width,
                    width * config.mlp_ratios[index],
                    config.activation,
                    rectified=config.linear,
                    dropout=config.dropout,
                ),
                (norm_layer(width, "layer", config.norm_eps), norm_layer(width, "layer", config.norm_eps)),
                drop_path=config.drop_path * place / last,
            )
            for place in range(before, before + config.depths[index])
        )
        self.norm = norm_layer(width, "layer", config.norm_eps)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d i j"]:
        """Transform a map."""
        tokens, grid = self.embedding(x)
        for block in self.blocks:
            tokens = block(tokens, grid)
        normed: Tensor = self.norm(tokens)
        return normed.unflatten(1, grid).permute(0, 3, 1, 2)


def _initialise(module: nn.Module) -> None:
    """Linear layers as in ViT; convolutions from a normal distribution of variance 2 / fan-out; biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        seen = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, (2 / seen) ** 0.5)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


_B2 = PVTConfig()

# Table 1 of the paper.
VARIANTS: dict[str, PVTConfig] = {
    "pvt_v2_b0": replace(_B2, widths=(32, 64, 160, 256), depths=(2, 2, 2, 2)),
    "pvt_v2_b1": replace(_B2, depths=(2, 2, 2, 2)),
    "pvt_v2_b2": _B2,
    "pvt_v2_b2_li": replace(_B2, linear=True),
    "pvt_v2_b3": replace(_B2, depths=(3, 4, 18, 3)),
    "pvt_v2_b4": replace(_B2, depths=(3, 8, 27, 3)),
    "pvt_v2_b5": replace(_B2, depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}
"""Networks by name; "li" has linear attention."""

PAPERS = {"pvt_v2": "Wang et al. 2022"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
