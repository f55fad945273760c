"""Detection transformer (DETR): a picture in, a set of objects out, with neither anchors nor suppression of doubles.

Carion et al. 2020, "End-to-End Object Detection with Transformers", https://arxiv.org/abs/2005.12872, section 3.2 and
figure 10. A residual network makes a map; an encoder lets its cells look at each other; a decoder lets a hundred learned
queries ask them, and each other; every query says what it has found, and where, or that it found nothing.

The authors train neither the stem nor the first stage of the residual network, which freezing the blocks up to depth 3
comes to. "DC5" networks keep the last map at twice the size (`ResNetConfig.dilated`), which finds smaller things.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.boxes import Objects
from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.decoding import DecoderBlock, EncoderBlock, Perceptron, initialise_xavier
from vitral.layers.linear import Linear
from vitral.layers.sine import sine_positions
from vitral.models.backbones.resnet import ResNet, ResNetConfig
from vitral.models.detection.detector import Detector
from vitral.models.network import MapConfig, check_ranges
from vitral.models.output import Predicted, SetOutput

__all__ = ["DETR", "PAPERS", "VARIANTS", "DETRConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "queries": (1, 1_000_000),
    "width": (4, 100_000),
    "heads": (1, 10_000),
    "mlp_width": (1, 1_000_000),
    "encoder_depth": (0, 1_000),
    "decoder_depth": (1, 1_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class DETRConfig(MapConfig):
    """Everything that tells one DETR from another.

    Attributes:
        num_classes: classes of objects, without "nothing". The published networks have 91, the numbers of COCO's 80
            categories going so far.
        backbone: the residual network before it. Its channels and size of pictures are always the detector's, and it has no
            classes.
        queries: how many objects can be found.
        width: channels d of a token and of a query.
        encoder_depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        heads: attention heads of every block.
        mlp_width: hidden channels of their feed-forward networks.
        dropout: probability of dropping attention weights, hidden channels and branches in training.
    """

    image_size: tuple[int, int] = (800, 1333)
    num_classes: int = 91
    backbone: ResNetConfig = field(default_factory=lambda: ResNetConfig(norm="frozen"))
    queries: int = 100
    width: int = 256
    encoder_depth: int = 6
    decoder_depth: int = 6
    heads: int = 8
    mlp_width: int = 2048
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        backbone = replace(self.backbone, image_size=self.image_size, channels=self.channels, num_classes=0)
        object.__setattr__(self, "backbone", backbone)
        if self.width % self.heads or self.width % 4:
            raise UsageError(f"width must be a multiple of heads and of 4; width {self.width} and heads {self.heads} came.")

    @property
    def stride(self) -> int:
        """Pixels from one token to the next."""
        return self.backbone.stride

    @property
    def depth(self) -> int:
        """Number of blocks: of the residual network, the encoder and the decoder."""
        return self.backbone.depth + self.encoder_depth + self.decoder_depth


class DETR(Detector):
    """A detection transformer.

    Args:
        config: which one.
    """

    config: DETRConfig

    def __init__(self, config: DETRConfig) -> None:
        super().__init__(config)
        width, sizes = config.width, (config.width, config.heads, config.mlp_width)
        self.backbone = ResNet(config.backbone)
        self.projection = Linear(config.backbone.width, width)
        self.encoder = nn.ModuleList(EncoderBlock(*sizes, dropout=config.dropout) for _ in range(config.encoder_depth))
        self.query_positions = nn.Embedding(config.queries, width)
        self.decoder = nn.ModuleList(DecoderBlock(*sizes, dropout=config.dropout) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, config.num_classes + 1)
        self.box_head = Perceptron((width, width, width, 4))
        initialise_xavier(self.encoder)
        initialise_xavier(self.decoder)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the residual network, of the encoder and of the decoder."""
        return *self.backbone.blocks, *self.encoder, *self.decoder

    def forward(
        self,
        pixels: Float[Tensor, "b c y x"],
        mask: Bool[Tensor, "b y x"] | None = None,
        targets: Sequence[Objects] | None = None,
    ) -> SetOutput:
        """Look for objects; see `Detector`. What there is to be found is not asked for."""
        memory, positions, seen = self.encode(pixels, mask)
        auxiliary: list[Predicted] = []
        for place, queries in enumerate(self.decode(memory, positions, seen)):
            if self.training and place < len(self.decoder) - 1:
                auxiliary.append(self.predicted(self.norm(queries)))
        queries = self.norm(queries)
        logits, boxes = self.predicted(queries)
        return SetOutput(logits, boxes, "softmax", queries, tuple(auxiliary))

    def encode(
        self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b y x"] | None = None
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "#b n d"], Bool[Tensor, "b 1 1 n"] | None]:
        """The cells of a picture behind the encoder, where each lies, and which of them are the picture's.

        Args:
            pixels: prepared pictures.
            mask: True on what was filled up.
        """
        (last,) = self.backbone.pyramid(pixels, [-1]).maps
        return self.encode_map(self.projected(last), mask)

    def projected(self, last: Float[Tensor, "b c i j"]) -> Float[Tensor, "b d i j"]:
        """The residual network's last map in the width of the tokens."""
        tokens: Tensor = self.projection(last.flatten(2).transpose(1, 2))
        return tokens.unflatten(1, last.shape[2:]).permute(0, 3, 1, 2)

    def encode_map(
        self, cells: Float[Tensor, "b d i j"], mask: Bool[Tensor, "b y x"] | None = None
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "#b n d"], Bool[Tensor, "b 1 1 n"] | None]:
        """What `encode` gives, from the projected map."""
        grid = (cells.shape[2], cells.shape[3])
        # A cell is the picture's if the pixel is that stands where the cell begins.
        seen = None if mask is None else F.interpolate(mask[None].float(), size=grid)[0] == 0
        positions = sine_positions(grid, self.config.width, seen, like=cells)
        keys = None if seen is None else seen.flatten(1)[:, None, None]
        tokens = cells.flatten(2).transpose(1, 2)
        for block in self.encoder:
            tokens = block(tokens, positions, keys)
        return tokens, positions, keys

    def decode(
        self,
        memory: Float[Tensor, "b n d"],
        positions: Float[Tensor, "#b n d"],
        seen: Bool[Tensor, "b 1 1 n"] | None = None,
    ) -> Iterator[Float[Tensor, "b q d"]]:
        """The queries behind each layer of the decoder, before the norm.

        Args:
            memory: the cells of a picture behind the encoder.
            positions: where each lies.
            seen: which of them are the picture's; None for all.
        """
        placed = memory + positions
        asking = self.query_positions.weight.unsqueeze(0)
        queries = torch.zeros_like(asking).expand(memory.shape[0], -1, -1)
        for block in self.decoder:
            queries = block(queries, asking, placed, memory, seen)
            yield queries

    def predicted(self, queries: Float[Tensor, "b q d"]) -> Predicted:
        """What normed queries say: of which class, and where."""
        return Predicted(self.head(queries), self.box_head(queries).sigmoid())

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes, and nothing, in place of the present one.

        Raises:
            UsageError: no classes.
        """
        like = self.head.weight
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes + 1).to(like.device, like.dtype)


_R50 = DETRConfig()
_R101 = replace(_R50, backbone=replace(_R50.backbone, depths=(3, 4, 23, 3)))

VARIANTS: dict[str, DETRConfig] = {
    "detr_r50": _R50,
    "detr_r101": _R101,
    "detr_r50_dc5": replace(_R50, backbone=replace(_R50.backbone, dilated=1)),
    "detr_r101_dc5": replace(_R101, backbone=replace(_R101.backbone, dilated=1)),
}
"""Networks by name: the residual network's layers, and whether its last map is kept larger."""

PAPERS = {"detr": "Carion et al. 2020"}
"""Beginning of a name → where the network was published."""
