"""Mask2Former: queries that ask only where they last drew their masks; one network for semantic, instance and panoptic.

Cheng et al. 2022, "Masked-attention Mask Transformer for Universal Image Segmentation", https://arxiv.org/abs/2112.01527,
section 3.2 and figure 2. Of MaskFormer's parts, the pixel decoder becomes one of deformable attention, and the decoder's
attention is masked: a query sees the cells that its own mask of the layer before covers, on maps of three sizes in turn.

    picture ── backbone ── pixel decoder ─┬─► features of the finest cells ────────────────┐
                                          └─► cells of 3 maps, from coarse to fine         │
                                                │ block after block, one map each in turn  ▼
    queries, learned ──► a first mask ──► masked attention, self-attention, mlp ──► class, mask ──► …

What a query says before the first block and behind every other is taught like what it says behind the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.cross import CrossAttention
from vitral.layers.decoding import Perceptron, initialise_xavier
from vitral.layers.linear import Linear
from vitral.layers.mlp import Mlp
from vitral.layers.sine import sine_positions
from vitral.models.backbones import resnet
from vitral.models.network import check_ranges
from vitral.models.output import PredictedMasks
from vitral.models.segmentation.pixel_decoder import DeformablePixelDecoder, PixelFeatures
from vitral.models.segmentation.queries import QueryNetwork, mask_logits
from vitral.models.segmentation.trunk import TrunkConfig, shifted_swin

__all__ = ["PAPERS", "VARIANTS", "Mask2Former", "Mask2FormerConfig", "MaskedBlock"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "queries": (1, 1_000_000),
    "width": (4, 100_000),
    "mask_width": (1, 100_000),
    "heads": (1, 10_000),
    "encoder_points": (1, 1_000),
    "encoder_mlp_width": (1, 1_000_000),
    "mlp_width": (1, 1_000_000),
    "encoder_depth": (0, 1_000),
    "decoder_depth": (1, 1_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class Mask2FormerConfig(TrunkConfig):
    """Everything that tells one Mask2Former from another.

    Attributes:
        num_classes: classes of things and of stuff, without "nothing"; 133 in COCO panoptic.
        backbone: see `TrunkConfig`. All its maps are used: masks are drawn on the finest, the others are asked.
        queries: how many things and kinds of stuff can be found.
        width: channels d of a cell and of a query.
        mask_width: channels by which masks are drawn.
        encoder_depth: blocks of the pixel decoder's encoder.
        encoder_points: places that a head looks at there, on each map.
        encoder_mlp_width: hidden channels of the feed-forward networks there.
        decoder_depth: blocks of the decoder.
        heads: attention heads of every block.
        mlp_width: hidden channels of the feed-forward networks of the decoder.
        dropout: probability of dropping attention weights, hidden channels and branches in training.
        canvas: (height, width) to which masks are brought before anything is decided from them; None: as they are.
    """

    image_size: tuple[int, int] = (384, 384)
    num_classes: int = 133
    queries: int = 100
    width: int = 256
    mask_width: int = 256
    encoder_depth: int = 6
    encoder_points: int = 4
    encoder_mlp_width: int = 1024
    decoder_depth: int = 9
    heads: int = 8
    mlp_width: int = 2048
    dropout: float = 0.0
    canvas: tuple[int, int] | None = (384, 384)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        check_ranges(self, _RANGES)
        if self.width % self.heads or self.width % 4:
            raise UsageError(f"width must be a multiple of heads and of 4; width {self.width} and heads {self.heads} came.")
        if self.canvas is not None and not (len(self.canvas) == 2 and all(1 <= side <= 100_000 for side in self.canvas)):
            raise UsageError(f"canvas is a height and a width in pixels, or None; {self.canvas!r} came.")

    @property
    def depth(self) -> int:
        """Number of blocks: of the backbone, the encoder and the decoder."""
        return self.backbone.depth + self.encoder_depth + self.decoder_depth


class MaskedBlock(nn.Module):
    """Queries ask those cells that their masks cover, then each other, then a feed-forward network; a norm behind each.

    Mask2Former, section 3.2 and equation 2. Self-attention comes second, as queries know nothing of the picture before.

    Args:
        width: channels d of a query and of a cell.
        heads: number of heads of either attention.
        mlp_width: hidden channels of the feed-forward network.
        dropout: probability of dropping attention weights, hidden channels and branches in training.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.cross_attention = CrossAttention(width, heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, "relu", dropout=dropout)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self,
        queries: Float[Tensor, "b q d"],
        positions: Float[Tensor, "#b q d"],
        placed: Float[Tensor, "b n d"],
        cells: Float[Tensor, "b n d"],
        covered: Bool[Tensor, "b 1 q n"],
    ) -> Float[Tensor, "b q d"]:
        """Transform the queries.

        Args:
            queries: what is known so far.
            positions: what tells one query from another.
            placed: the cells with where they stand, by which they are found.
            cells: what they tell.
            covered: which of them each query may see.
        """
        found = self.cross_attention(queries + positions, placed, cells, covered)
        queries = self.norm1(queries + self.dropout(found))
        asking = queries + positions
        queries = self.norm2(queries + self.dropout(self.attention(asking, asking, queries)))
        normed: Tensor = self.norm3(queries + self.mlp(queries))
        return normed


class Mask2Former(QueryNetwork):
    """A masked-attention mask transformer.

    Args:
        config: which one.
    """

    config: Mask2FormerConfig

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        width = config.width
        self.pixel_decoder = DeformablePixelDecoder(
            self.trunk.channels,
            width,
            config.mask_width,
            depth=config.encoder_depth,
            heads=config.heads,
            points=config.encoder_points,
            mlp_width=config.encoder_mlp_width,
            dropout=config.dropout,
        )
        self.level_positions = nn.Embedding(len(self.trunk.levels) - 1, width)
        self.queries = nn.Embedding(config.queries, width)
        self.query_positions = nn.Embedding(config.queries, width)
        self.decoder = nn.ModuleList(
            MaskedBlock(width, config.heads, config.mlp_width, dropout=config.dropout) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, config.num_classes + 1)
        self.mask_head = Perceptron((width, width, width, config.mask_width))
        initialise_xavier(self.decoder)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the backbone, of the encoder and of the decoder."""
        return *self.trunk.blocks, *self.pixel_decoder.encoder, *self.decoder

    @property
    def canvas(self) -> tuple[int, int] | None:
        """(height, width) to which masks are brought before anything is decided from them; None: as they are."""
        return self.config.canvas

    def told(self, pixels: Float[Tensor, "b c y x"], *, every: bool) -> tuple[list[PredictedMasks], Float[Tensor, "b q d"]]:
        """What queries say behind the last block, or every time, and what they are in the end, normed."""
        seen: PixelFeatures = self.pixel_decoder(self.trunk(pixels).maps)
        features, grids = seen.features, seen.grids
        cells = [tokens + level for tokens, level in zip(seen.tokens, self.level_positions.weight, strict=True)]
        placed = [one + sine_positions(grid, self.config.width, like=one) for one, grid in zip(cells, grids, strict=True)]
        # To shrink the masks and to draw with shrunken features is the same, as both are linear; the latter is cheaper.
        small = [
            F.interpolate(features.detach(), size=grid, mode="bilinear", align_corners=False).flatten(2) for grid in grids
        ]
        positions = self.query_positions.weight[None]
        queries = self.queries.weight.expand(pixels.shape[0], -1, -1)
        normed = self.norm(queries)
        drawing = self.mask_head(normed)
        told = [PredictedMasks(self.head(normed), mask_logits(drawing, features))] if every else []
        for place, block in enumerate(self.decoder):
            level = place % len(cells)
            covered = _covered(drawing.detach(), small[level])
            queries = block(queries, positions, placed[level], cells[level], covered)
            normed = self.norm(queries)
            drawing = self.mask_head(normed)
            if every or place == len(self.decoder) - 1:
                told.append(PredictedMasks(self.head(normed), mask_logits(drawing, features)))
        return told, normed


def _covered(embeddings: Float[Tensor, "b q c"], features: Float[Tensor, "b c n"]) -> Bool[Tensor, "b 1 q n"]:
    """The cells that masks cover with a probability of one half at least; for a mask that covers none, all."""
    covered = (embeddings @ features) >= 0
    return (covered | ~covered.any(-1, keepdim=True))[:, None]


_DROP_PATH = 0.3  # of a Swin Transformer, whatever its size (appendix A.1)


def _variants() -> dict[str, Mask2FormerConfig]:
    r50 = Mask2FormerConfig()
    rows = {
        "r50": r50,
        "r101": replace(r50, backbone=resnet.VARIANTS["resnet101"]),
        "swin_ti": replace(r50, backbone=shifted_swin("swin_ti", _DROP_PATH)),
        "swin_s": replace(r50, backbone=shifted_swin("swin_s", _DROP_PATH)),
        "swin_b": replace(r50, backbone=shifted_swin("swin_b_w12_384", _DROP_PATH)),
        "swin_l": replace(r50, backbone=shifted_swin("swin_l_w12_384", _DROP_PATH), queries=200),
    }
    return {f"mask2former_{name}": row for name, row in rows.items()}


VARIANTS: dict[str, Mask2FormerConfig] = _variants()
"""Networks by name: the backbone, a residual network or a Swin Transformer. The windows of Swin-B and -L are of 12 × 12, and
Swin-L has 200 queries, as trained for COCO."""

PAPERS = {"mask2former": "Cheng et al. 2022"}
"""Beginning of a name → where the network was published."""
