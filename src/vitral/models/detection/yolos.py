"""You only look at one sequence (YOLOS): a plain vision transformer that finds objects with a hundred tokens more.

Fang et al. 2021, "You Only Look at One Sequence: Rethinking Transformer in Vision through Object Detection",
https://arxiv.org/abs/2106.00666, section 3. Detection tokens go through the blocks beside the patches; behind the last one
each of them says what it has found, and where, or that it found nothing, as a query of DETR does.

The authors' code fills pictures of a batch up and looks at what fills them. Here every picture is encoded without it, so
that what is found in a picture does not hang on what stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.boxes import Objects
from vitral.base.config import check_choices
from vitral.layers.decoding import Perceptron
from vitral.layers.mlp import Activation
from vitral.layers.position import Grid, resample_grid
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.detection.detector import Detector
from vitral.models.network import check_ranges
from vitral.models.output import SetOutput

__all__ = ["PAPERS", "VARIANTS", "YOLOS", "YOLOSConfig"]

_RANGES: dict[str, tuple[float, float]] = {"num_classes": (1, 10_000_000), "queries": (1, 10_000)}


@dataclass(frozen=True, kw_only=True)
class YOLOSConfig:
    """Everything that tells one YOLOS from another.

    Attributes:
        image_size: height and width in pixels the position tables are made for; pictures of other sizes are taken too.
        patch_size: height and width of a patch in pixels.
        channels: channels of a picture.
        num_classes: classes of objects, without "nothing". The published networks have 91, the numbers of COCO's 80
            categories going so far.
        queries: detection tokens: how many objects can be found.
        width: channels d of a token.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_width: hidden channels of the feed-forward networks.
        middle_positions: whether positions are added anew behind every block but the last, as in the published S and B.
        norm_eps: epsilon of the normalisations.
        activation: nonlinearity of the feed-forward networks.
        qkv_bias: whether queries, keys and values have a bias.
        dropout: probability of dropping channels of embeddings, attention weights and branches in training.
        drop_path: probability of dropping a branch of the last block in training, growing linearly with depth.
    """

    image_size: tuple[int, int] = (512, 864)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    num_classes: int = 91
    queries: int = 100
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_width: int = 1536
    middle_positions: bool = True
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    qkv_bias: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        _ = self.vit  # which checks the rest

    @property
    def vit(self) -> ViTConfig:
        """The vision transformer within: the detection tokens are registers that have a place in its position table."""
        return ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            channels=self.channels,
            num_classes=0,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_width=self.mlp_width,
            registers=self.queries,
            prefix_positions=1 + self.queries,
            position_antialias=False,
            norm_eps=self.norm_eps,
            activation=self.activation,
            qkv_bias=self.qkv_bias,
            dropout=self.dropout,
            drop_path=self.drop_path,
        )

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches of a picture of `image_size`."""
        return self.grid_of(self.image_size)

    def grid_of(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of patches of a picture of some (height, width); less than a patch is left out."""
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]

    @property
    def pool(self) -> str:
        """What is read: the detection tokens; of a picture as a whole, the class token would tell."""
        return "class"

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token and the detection tokens."""
        return 1 + self.queries

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """What they are called."""
        return "class", *(f"detection {number}" for number in range(1, self.queries + 1))


class YOLOS(Detector):
    """A vision transformer with detection tokens.

    Args:
        config: which one.
    """

    config: YOLOSConfig

    def __init__(self, config: YOLOSConfig) -> None:
        super().__init__(config)
        rows = config.prefix + config.grid[0] * config.grid[1]
        middle = torch.empty(config.depth - 1, rows, config.width) if config.middle_positions else None
        self.middle_positions = None if middle is None else nn.Parameter(nn.init.trunc_normal_(middle, std=0.02))
        self.vit = ViT(config.vit)
        self.head = Perceptron((*(config.width,) * 3, config.num_classes + 1))
        self.box_head = Perceptron((*(config.width,) * 3, 4))

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the vision transformer."""
        return tuple(self.vit.blocks)

    def forward(
        self,
        pixels: Float[Tensor, "b c y x"],
        mask: Bool[Tensor, "b y x"] | None = None,
        targets: Sequence[Objects] | None = None,
    ) -> SetOutput:
        """Look for objects; see `Detector`. What there is to be found is not asked for."""
        queries = self.encode(pixels) if mask is None else self._encode_each(pixels, mask)
        return SetOutput(self.head(queries), self.box_head(queries).sigmoid(), "softmax", queries)

    def encode(self, pixels: Float[Tensor, "b c y x"]) -> Float[Tensor, "b q d"]:
        """The detection tokens behind the last norm, of pictures of one size."""
        tokens, grid = self.vit.embed(pixels)
        for place, block in enumerate(self.vit.blocks):
            if place and self.middle_positions is not None:
                tokens = tokens + self._positions_before(place, grid).to(tokens.dtype)
            tokens = block(tokens)
        queries: Tensor = self.vit.norm(tokens[:, 1 : self.config.prefix])
        return queries

    def _encode_each(self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b y x"]) -> Float[Tensor, "b q d"]:
        """The same of pictures that were filled up to one size: those of each size by themselves."""
        heights, widths = (~mask).any(2).sum(1).tolist(), (~mask).any(1).sum(1).tolist()
        sizes: dict[tuple[int, int], list[int]] = {}
        for place, size in enumerate(zip(heights, widths, strict=True)):
            sizes.setdefault(size, []).append(place)
        found = {
            place: query
            for (height, width), places in sizes.items()
            for place, query in zip(places, self.encode(pixels[places, :, :height, :width]), strict=True)
        }
        return torch.stack([found[place] for place in range(len(pixels))])

    def _positions_before(self, place: int, grid: Grid) -> Float[Tensor, "1 n d"]:
        """The positions added before a block other than the first, for a grid."""
        config = self.config
        table = self.middle_positions[place - 1 : place] if self.middle_positions is not None else torch.empty(0)
        if grid == config.grid:
            return table
        prefix, patches = table.split([config.prefix, config.grid[0] * config.grid[1]], dim=1)
        return torch.cat([prefix, resample_grid(patches, config.grid, grid, antialias=False)], dim=1)

    def tables_at(self, grid: Grid) -> Mapping[str, Tensor]:
        """The tables of positions, carried to another grid, by name."""
        tables = {f"vit.{name}": table for name, table in self.vit.tables_at(grid).items()}
        if self.middle_positions is not None:
            carried = [self._positions_before(place, grid) for place in range(1, self.depth)]
            tables["middle_positions"] = torch.cat(carried) if carried else self.middle_positions
        return tables

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh classifier for `num_classes` classes, and nothing, in place of the present one.

        Raises:
            UsageError: no classes.
        """
        like = next(self.head.parameters())
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Perceptron((*(self.config.width,) * 3, num_classes + 1)).to(like.device, like.dtype)


# Table 1 of the paper; the size of Ti's and B's tables is that of the published weights.
_S = YOLOSConfig()

VARIANTS: dict[str, YOLOSConfig] = {
    "yolos_ti": replace(_S, image_size=(800, 1333), width=192, heads=3, mlp_width=768, middle_positions=False),
    "yolos_s": _S,
    "yolos_s_dwr": replace(_S, width=330, depth=14, mlp_width=1320),
    "yolos_b": replace(_S, image_size=(800, 1344), width=768, heads=12, mlp_width=3072),
}
"""Networks by name, of DeiT's sizes; "dwr" is S scaled for speed (Dollár et al. 2021), narrower and deeper."""

PAPERS = {"yolos": "Fang et al. 2021"}
"""Beginning of a name → where the network was published."""
