"""MaskFormer: a set of masks with a class each, in place of a class for each pixel.

Cheng et al. 2021, "Per-Pixel Classification is Not All You Need for Semantic Segmentation",
https://arxiv.org/abs/2107.06278, section 3.3 and figure 2. A pixel decoder makes features of fine cells; the decoder of DETR
(Carion et al. 2020) lets queries ask the coarsest map; every query says what it found, and its product with a cell's
features how likely that cell belongs to it.

    picture ── backbone ─┬─ maps ──► pixel decoder ──► features of the finest cells ──┐
                         └─ last map ──► decoder ◄── queries                          ▼
                                            └──► class;  mlp ──► what to draw with ──► mask
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.decoding import DecoderBlock, Perceptron, initialise_xavier
from vitral.layers.linear import Linear
from vitral.layers.sine import sine_positions
from vitral.models.backbones import resnet
from vitral.models.network import check_ranges
from vitral.models.output import PredictedMasks
from vitral.models.segmentation.pixel_decoder import PixelDecoder
from vitral.models.segmentation.queries import QueryNetwork, mask_logits
from vitral.models.segmentation.trunk import TrunkConfig, shifted_swin

__all__ = ["PAPERS", "VARIANTS", "MaskFormer", "MaskFormerConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "queries": (1, 1_000_000),
    "width": (4, 100_000),
    "mask_width": (1, 100_000),
    "heads": (1, 10_000),
    "mlp_width": (1, 1_000_000),
    "decoder_depth": (1, 1_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class MaskFormerConfig(TrunkConfig):
    """Everything that tells one MaskFormer from another.

    Attributes:
        num_classes: classes of things and of stuff, without "nothing"; 150 in ADE20K.
        backbone: see `TrunkConfig`. Masks are drawn on the finest of its maps, the last one is asked.
        queries: how many things and kinds of stuff can be found.
        width: channels d of the pixel decoder, of a token and of a query.
        mask_width: channels by which masks are drawn.
        decoder_depth: blocks of the decoder.
        heads: attention heads of every block.
        mlp_width: hidden channels of their feed-forward networks.
        dropout: probability of dropping attention weights, hidden channels and branches in training.
    """

    queries: int = 100
    width: int = 256
    mask_width: int = 256
    decoder_depth: int = 6
    heads: int = 8
    mlp_width: int = 2048
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        check_ranges(self, _RANGES)
        if self.width % self.heads or self.width % 4:
            raise UsageError(f"width must be a multiple of heads and of 4; width {self.width} and heads {self.heads} came.")

    @property
    def depth(self) -> int:
        """Number of blocks: of the backbone and of the decoder."""
        return self.backbone.depth + self.decoder_depth


class MaskFormer(QueryNetwork):
    """A mask transformer.

    Args:
        config: which one.
    """

    config: MaskFormerConfig

    def __init__(self, config: MaskFormerConfig) -> None:
        super().__init__(config)
        width = config.width
        self.pixel_decoder = PixelDecoder(self.trunk.channels, width, config.mask_width)
        # The published code has none where nothing changes.
        self.projection = Linear(config.backbone.width, width) if config.backbone.width != width else nn.Identity()
        self.query_positions = nn.Embedding(config.queries, width)
        self.decoder = nn.ModuleList(
            DecoderBlock(width, config.heads, config.mlp_width, dropout=config.dropout) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, config.num_classes + 1)
        self.mask_head = Perceptron((width, width, width, config.mask_width))
        initialise_xavier(self.decoder)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the backbone and of the decoder."""
        return *self.trunk.blocks, *self.decoder

    def told(self, pixels: Float[Tensor, "b c y x"], *, every: bool) -> tuple[list[PredictedMasks], Float[Tensor, "b q d"]]:
        """What queries say behind the last block, or behind every one, and what they are in the end, normed."""
        maps = self.trunk(pixels).maps
        features, last = self.pixel_decoder(maps), maps[-1]
        tokens = self.projection(last.flatten(2).transpose(1, 2))
        placed = tokens + sine_positions((last.shape[2], last.shape[3]), self.config.width, like=last)
        asking = self.query_positions.weight[None]
        queries = normed = torch.zeros_like(asking).expand(pixels.shape[0], -1, -1)
        told: list[PredictedMasks] = []
        for place, block in enumerate(self.decoder):
            queries = block(queries, asking, placed, tokens)
            if every or place == len(self.decoder) - 1:
                normed = self.norm(queries)
                told.append(PredictedMasks(self.head(normed), mask_logits(self.mask_head(normed), features)))
        return told, normed


_DROP_PATH = 0.3  # of a Swin Transformer, whatever its size (appendix A.1)


def _variants() -> dict[str, MaskFormerConfig]:
    r50 = MaskFormerConfig()
    large = replace(r50, image_size=(640, 640))
    rows = {
        "r50": r50,
        "r101": replace(r50, backbone=resnet.VARIANTS["resnet101"]),
        "swin_ti": replace(r50, backbone=shifted_swin("swin_ti", _DROP_PATH)),
        "swin_s": replace(r50, backbone=shifted_swin("swin_s", _DROP_PATH)),
        "swin_b": replace(large, backbone=shifted_swin("swin_b_w12_384", _DROP_PATH)),
        "swin_l": replace(large, backbone=shifted_swin("swin_l_w12_384", _DROP_PATH)),
    }
    return {f"maskformer_{name}": row for name, row in rows.items()}


VARIANTS: dict[str, MaskFormerConfig] = _variants()
"""Networks by name: the backbone, a residual network or a Swin Transformer. The windows of Swin-B and -L are of 12 × 12."""

PAPERS = {"maskformer": "Cheng et al. 2021"}
"""Beginning of a name → where the network was published."""
