"""Swin Transformer, versions 1 and 2: a hierarchy of maps whose tokens attend within windows that shift.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", https://arxiv.org/abs/2103.14030,
and Liu et al. 2022, "Swin Transformer V2: Scaling Up Capacity and Resolution", https://arxiv.org/abs/2111.09883.

    picture ── patches, norm ── stage 1 ── stage 2 ── stage 3 ── stage 4 ── norm ── mean ── classifier
    a stage:   four tokens merged into one, but for the first stage,
               × depth: attention within windows, shifted in every other block, and a feed-forward network

The second version differs by where the norms stand (behind the branches), by attention that goes by the cosine, and by
biases from a small network, so that what was trained with one window serves a larger one (section 3).

Pictures of any size are taken: what is missing at the bottom and at the right, for whole patches, for whole windows and for
whole groups of four, is filled up with zeros. The published codes disagree about details of that, and `shift_rule`,
`shift_first` and `rest` say which one's way is gone. At a picture's own size, where nothing is filled up, all are the same.

    torchvision              shift_rule="each_side", rest="left_out"
    Microsoft, transformers  shift_rule="both_sides"; transformers' version 2 shifts as timm, but behind the filling
    timm                     shift_rule="always" with `shifts` as its image size has them, shift_first=True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.block import Block
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation, Mlp
from vitral.layers.norm import norm_layer
from vitral.layers.patch import PatchEmbedding
from vitral.layers.position import Grid, resample_grid
from vitral.layers.window import CosineWindowAttention, OffsetNetwork, OffsetTable, ShiftRule, WindowAttention
from vitral.models.network import MapConfig, Network, check_ranges, chosen_levels
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "Swin", "SwinConfig"]

_NORM_EPS = 1e-5
# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (0, 10_000_000),
    "first_patch": (1, 1_000),
    "mlp_ratio": (0.01, 1_000.0),
    "drop_path": (0.0, 0.999),
}
_STAGE_RANGES = {
    "widths": (1, 100_000),
    "depths": (1, 1_000),
    "heads": (1, 10_000),
    "windows": (1, 1_000),
    "shifts": (0, 1_000),
    "pretrained_windows": (1, 1_000),
}
_MOST_STAGES = 8


@dataclass(frozen=True, kw_only=True)
class SwinConfig(MapConfig):
    """Everything that tells one Swin Transformer from another.

    Attributes:
        image_size, channels, num_classes: see `models.network.MapConfig`.
        version: 1 or 2.
        first_patch: side of a patch, which is a cell of the first map, in pixels.
        widths: channels of a token, stage by stage.
        depths: number of blocks, stage by stage.
        heads: attention heads per block, stage by stage.
        windows: rows and columns of a window, stage by stage.
        shifts: rows and columns by which the windows of every other block are shifted, stage by stage; None for half a
            window.
        shift_rule: on which maps they are, see `layers.window.ShiftRule`.
        shift_first: whether a map is shifted before it is filled up to whole windows.
        rest: whether what remains of a patch at the bottom and at the right of a picture is filled up or left out.
        pretrained_windows: of version 2, rows and columns of the windows that the networks of biases were trained with,
            stage by stage; None for those of `windows`.
        position: a learned table of absolute positions, or none.
        mlp_ratio: hidden channels of the feed-forward networks, for each channel of a token.
        activation: their nonlinearity.
        qkv_bias: whether the projections to queries, keys and values have a bias (to keys, in version 1 only).
        drop_path: probability of dropping a branch of the last block in training, growing linearly with depth.
    """

    version: Literal[1, 2] = 1
    first_patch: int = 4
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    windows: tuple[tuple[int, int], ...] = ((7, 7), (7, 7), (7, 7), (7, 7))
    shifts: tuple[tuple[int, int], ...] | None = None
    shift_rule: ShiftRule = "each_side"
    shift_first: bool = False
    rest: Literal["filled", "left_out"] = "filled"
    pretrained_windows: tuple[tuple[int, int], ...] | None = None
    position: Literal["learned", "none"] = "none"
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    qkv_bias: bool = True
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        stages = len(self.widths)
        if not 1 <= stages <= _MOST_STAGES:
            raise UsageError(f"A Swin Transformer has 1 to {_MOST_STAGES} stages; widths of {stages} came.")
        for field, (least, most) in _STAGE_RANGES.items():
            values = getattr(self, field)
            if values is None:
                continue
            if len(values) != stages:
                raise UsageError(f"{field} must tell of {stages} stages, as widths does; {values} came.")
            numbers = [number for value in values for number in (value if isinstance(value, tuple | list) else (value,))]
            if not all(least <= number <= most for number in numbers):
                raise UsageError(f"{field} must be from {least} to {most}; {values} came.")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise UsageError(f"A stage's width {width} is not a multiple of its heads {heads}.")
        if self.version == 1 and self.pretrained_windows is not None:
            raise UsageError("pretrained_windows are of version 2; a table of version 1 knows its own window only.")
        if self.rest == "left_out" and min(self.image_size) < self.first_patch:
            raise UsageError(f"image_size {self.image_size} is smaller than one patch of {self.first_patch}.")

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next."""
        return int(self.first_patch * 2 ** (len(self.widths) - 1))

    @property
    def width(self) -> int:
        """Channels of a token behind the last block."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Number of blocks of all stages."""
        return sum(self.depths)

    def grid_of(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of the last map of a picture of some (height, width)."""
        return self.maps_of(size)[-1]

    def maps_of(self, size: tuple[int, int]) -> tuple[Grid, ...]:
        """Rows and columns of every stage's map of a picture of some (height, width)."""
        patch = self.first_patch
        high, wide = ((-(-side // patch) if self.rest == "filled" else side // patch) for side in size)
        return tuple((-(-high // 2**stage), -(-wide // 2**stage)) for stage in range(len(self.widths)))

    def shift_of(self, stage: int) -> Grid:
        """Rows and columns by which the windows of every other block of a stage are shifted, where they are."""
        window = self.windows[stage]
        return (window[0] // 2, window[1] // 2) if self.shifts is None else self.shifts[stage]


class _Merging(nn.Module):
    """Four neighbours made into one token (section 3.1), with the norm before the projection or, in version 2, behind it."""

    def __init__(self, below: int, width: int, version: Literal[1, 2]) -> None:
        super().__init__()
        self.norm_first = version == 1
        self.norm = norm_layer(4 * below if self.norm_first else width, "layer", _NORM_EPS)
        self.projection = Linear(4 * below, width, bias=False)

    def forward(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> tuple[Float[Tensor, "b m e"], Grid]:
        """Merge the tokens of a grid; those of the last row and column, where they have no partners, with zeros."""
        cells = tokens.unflatten(1, grid)
        if grid[0] % 2 or grid[1] % 2:
            cells = F.pad(cells, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        # Of the four, the one below comes before the one to the right.
        groups = cells.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        merged = groups.reshape(len(tokens), -1, 4 * tokens.shape[2])
        merged = self.projection(self.norm(merged)) if self.norm_first else self.norm(self.projection(merged))
        return merged, (groups.shape[1], groups.shape[2])


class _Stage(nn.Module):
    """One stage: tokens merged, but for the first stage, and blocks."""

    def __init__(self, config: SwinConfig, place: int) -> None:
        super().__init__()
        width, before = config.widths[place], sum(config.depths[:place])
        self.merging = _Merging(config.widths[place - 1], width, config.version) if place else None
        self.blocks = nn.ModuleList(
            Block(
                _attention(config, place, shifted=index % 2 == 1),
                Mlp(width, int(width * config.mlp_ratio), config.activation),
                (norm_layer(width, "layer", _NORM_EPS), norm_layer(width, "layer", _NORM_EPS)),
                placement="pre" if config.version == 1 else "res_post",
                drop_path=config.drop_path * (before + index) / max(config.depth - 1, 1),
            )
            for index in range(config.depths[place])
        )

    def forward(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> tuple[Float[Tensor, "b m e"], Grid]:
        """The tokens behind the stage, and their grid."""
        if self.merging is not None:
            tokens, grid = self.merging(tokens, grid)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens, grid


def _attention(config: SwinConfig, place: int, *, shifted: bool) -> WindowAttention:
    heads, window = config.heads[place], config.windows[place]
    pretrained = config.pretrained_windows[place] if config.pretrained_windows is not None else None
    first = config.version == 1
    return (WindowAttention if first else CosineWindowAttention)(
        config.widths[place],
        heads,
        OffsetTable(window, heads) if first else OffsetNetwork(window, heads, pretrained),
        config.shift_of(place) if shifted else (0, 0),
        qkv_bias=config.qkv_bias,
        shift_rule=config.shift_rule,
        shift_first=config.shift_first,
    )


class Swin(Network):
    """A Swin Transformer.

    Args:
        config: which one.
    """

    config: SwinConfig

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config)
        self.patch = PatchEmbedding(config.channels, config.widths[0], (config.first_patch, config.first_patch))
        self.stem_norm = norm_layer(config.widths[0], "layer", _NORM_EPS)
        table = torch.empty(1, self._first(config.grid)[0] * self._first(config.grid)[1], config.widths[0])
        learned = config.position == "learned"
        self.position_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02)) if learned else None
        self.stages = nn.ModuleList(_Stage(config, place) for place in range(len(config.widths)))
        self.norm = norm_layer(config.width, "layer", _NORM_EPS)
        self.head = Linear(config.width, config.num_classes) if config.num_classes else None
        self.apply(_initialise)
        if config.version == 2:  # every branch begins as nothing (its section 3.2)
            for block in self.blocks:
                nn.init.zeros_(block.norm1.weight)  # type: ignore[union-attr, arg-type]
                nn.init.zeros_(block.norm2.weight)  # type: ignore[union-attr, arg-type]

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of all stages, the first one first."""
        return tuple(block for stage in self.stages for block in stage.blocks)  # type: ignore[union-attr]

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""
        return self.read_out(*self._encoded(pixels, len(self.stages) - 1)[-1])

    @property
    def levels(self) -> tuple[Level, ...]:
        """One for each stage."""
        first = self.config.first_patch
        return tuple(Level(width, first * 2**place) for place, width in enumerate(self.config.widths))

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The maps behind some stages, not normed; the classifier is not computed.

        Args:
            pixels: prepared pictures of any one size.
            levels: behind which stages, counted from 0; None for all.
        """
        chosen = chosen_levels(self.levels, range(len(self.levels)) if levels is None else levels)
        behind = self._encoded(pixels, chosen[-1])
        maps = tuple(behind[place][0].transpose(1, 2).unflatten(2, behind[place][1]) for place in chosen)
        return Pyramid(maps, tuple(self.levels[place].stride for place in chosen))

    def _encoded(self, pixels: Float[Tensor, "b c y x"], last: int) -> list[tuple[Float[Tensor, "b _ _"], Grid]]:
        """Tokens and grid behind every stage up to one."""
        patch = self.config.first_patch
        over = tuple(-side % patch for side in pixels.shape[2:])
        if any(over) and self.config.rest == "filled":
            pixels = F.pad(pixels, (0, over[1], 0, over[0]))
        tokens, grid = self.patch(pixels)
        tokens = self.stem_norm(tokens)
        if self.position_table is not None:
            tokens = tokens + self._positions(grid).to(tokens)
        behind = []
        for stage in self.stages[: last + 1]:
            tokens, grid = stage(tokens, grid)
            behind.append((tokens, grid))
        return behind

    def _positions(self, grid: Grid) -> Float[Tensor, "1 n d"]:
        """Absolute positions for a first map of some grid: those of whole cells of the last map, as far as needed."""
        rows, columns = (-(-side // self._first((1, 1))[0]) for side in grid)
        whole = self._first((rows, columns))
        return self.tables_at((rows, columns))["position_table"].unflatten(1, whole)[:, : grid[0], : grid[1]].flatten(1, 2)

    def tables_at(self, grid: Grid) -> Mapping[str, Tensor]:
        """The table of absolute positions, where there is one, for a last map of another grid."""
        if self.position_table is None:
            return {}
        if grid == self.config.grid:
            return {"position_table": self.position_table}
        old, new = self._first(self.config.grid), self._first(grid)
        return {"position_table": resample_grid(self.position_table, old, new, antialias=False)}

    def _first(self, grid: Grid) -> Grid:
        """Rows and columns of the first map in whole cells of a last map of some grid."""
        times = self.config.stride // self.config.first_patch
        return grid[0] * times, grid[1] * times

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> EncoderOutput:
        """What the tokens behind the last block come to: normed, averaged, classified."""
        tokens = self.norm(tokens)
        pooled = tokens.mean(dim=1)
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every token behind the last stage would give, were it the whole picture's.

        Raises:
            UsageError: the model has no classifier.
        """
        if self.head is None:
            raise UsageError("The model has no classifier to read tokens with.")
        return self.head(self.norm(tokens))

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes in place of the present one; 0 removes it."""
        like = self.patch.projection.weight
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


def _all(side: int, *, last: int | None = None) -> tuple[tuple[int, int], ...]:
    """Square windows of four stages; the last stage's may be smaller, where its map is."""
    return (*[(side, side)] * 3, (last or side, last or side))


# Table 7 of the first paper's appendix, with its stochastic depths; L was trained on ImageNet-22K.
_TI = SwinConfig(drop_path=0.2)
_S = replace(_TI, depths=(2, 2, 18, 2), drop_path=0.3)
_B = replace(_S, widths=(128, 256, 512, 1024), heads=(4, 8, 16, 32), drop_path=0.5)
_L = replace(_S, widths=(192, 384, 768, 1536), heads=(6, 12, 24, 48), drop_path=0.2)


def _variants() -> dict[str, SwinConfig]:
    rows = {"swin_ti": _TI, "swin_s": _S, "swin_b": _B, "swin_l": _L}
    for letter, size in (("b", _B), ("l", _L)):
        rows[f"swin_{letter}_w12_384"] = replace(size, image_size=(384, 384), windows=_all(12))
    for letter, size in (("ti", _TI), ("s", _S), ("b", _B)):
        second = replace(size, version=2, image_size=(256, 256))
        rows[f"swinv2_{letter}_w8_256"] = replace(second, windows=_all(8))
        rows[f"swinv2_{letter}_w16_256"] = replace(second, windows=_all(16, last=8))
    for letter, size in (("b", _B), ("l", _L)):
        small = replace(size, version=2, image_size=(192, 192), windows=_all(12, last=6), drop_path=0.2)
        rows[f"swinv2_{letter}_w12_192"] = replace(small, num_classes=21_841)
        larger = replace(small, pretrained_windows=small.windows)
        rows[f"swinv2_{letter}_w12to16_256"] = replace(larger, image_size=(256, 256), windows=_all(16, last=8))
        rows[f"swinv2_{letter}_w12to24_384"] = replace(larger, image_size=(384, 384), windows=_all(24, last=12))
    return rows


VARIANTS: dict[str, SwinConfig] = _variants()
"""Networks by name. `swin_b_w12_384` is B with windows of 12 × 12 for pictures of 384 × 384 pixels; without these numbers
they are 7 and 224. `swinv2_b_w12to24_384` was trained with windows of 12 and fine-tuned with windows of 24."""

PAPERS = {"swin": "Liu et al. 2021", "swinv2": "Liu et al. 2022"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
