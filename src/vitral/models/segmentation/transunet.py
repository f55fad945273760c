"""TransUNet: a U-Net whose encoder is a residual network and, on its last map, a vision transformer.

Chen et al. 2021, "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation",
https://arxiv.org/abs/2102.04306, section 3, figure 1. The transformer sees the whole picture, the residual network its
edges; the decoder, a "cascaded upsampler" (CUP), doubles the map four times and reads the residual network's maps of the
first three sizes beside its own.

    picture ─► ½ ─► ¼ ─► ⅛ ─► 1/16 ─► transformer
               │    │    │                │
               │    │    └───────────►  ⅛ ◄┘
               │    └────────────►  ¼ ◄─┘
               └────────────►  ½ ◄──┘
         classes ◄─  1/1 ◄─────┘

Grey pictures are taken as coloured ones of three equal channels. The authors' code takes squares of multiples of 16 pixels;
here any size is filled up to such multiples, and what is said of what fills it up is cut off.

In training the authors drop hidden channels, not attention weights; here both are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm
from vitral.layers.patch import PatchEmbedding
from vitral.models.backbones.bit_resnet import EVEN, BitTrunk
from vitral.models.backbones.hybrid import VARIANTS as HYBRIDS
from vitral.models.backbones.hybrid import HybridConfig, HybridViT
from vitral.models.network import check_ranges
from vitral.models.output import MapOutput
from vitral.models.segmentation.borders import cut_back, filled_up
from vitral.models.segmentation.heads import normed
from vitral.models.segmentation.transformer import TransformerConfig, TransformerNetwork

__all__ = ["PAPERS", "VARIANTS", "TransUNet", "TransUNetConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "skips": (0, 3),
    "decoder_width": (1, 100_000),
    "decoder_channels": (1, 100_000),
}
_DOUBLINGS = 4
_STRIDE = 2**_DOUBLINGS


@dataclass(frozen=True, kw_only=True)
class TransUNetConfig(TransformerConfig):
    """Everything that tells one TransUNet from another.

    Attributes:
        num_classes: classes of pixels, the background among them; the published networks have Synapse's 9.
        backbone: the hybrid of a residual network and a vision transformer. Its channels and size of pictures are always the
            segmenter's, it has no classes, and a token for each cell of a map of a sixteenth of the picture's size.
        skips: how many maps of the residual network the decoder reads, the coarsest first (section 4.3, figure 2).
        decoder_width: channels of the map that the decoder begins with.
        decoder_channels: channels behind each of its four enlargements.
    """

    num_classes: int = 9
    backbone: HybridConfig = field(default_factory=lambda: HYBRIDS["r50_vit_b16"])
    skips: int = 3
    decoder_width: int = 512
    decoder_channels: tuple[int, ...] = (256, 128, 64, 16)

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if len(self.decoder_channels) != _DOUBLINGS:
            raise UsageError(
                f"decoder_channels has a number for each of the {_DOUBLINGS} enlargements; {self.decoder_channels} came."
            )
        if self.backbone.trunk_stride != _STRIDE or self.backbone.cells != (1, 1):
            raise UsageError(
                f"A TransUNet has a token for each cell of a map of {_STRIDE} pixels a cell; this backbone has cells of "
                f"{self.backbone.trunk_stride} pixels and patches of {self.backbone.patch_size}."
            )
        self._fit_backbone(final_norm=True)


class TransUNet(TransformerNetwork):
    """A hybrid encoder and a decoder that enlarges its map step by step.

    Args:
        config: which one.
    """

    config: TransUNetConfig

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__(config)
        self.backbone = _Hybrid(config.backbone)
        self.projection = ConvNorm(config.width, config.decoder_width, 3, activation="relu")
        widths = (config.decoder_width, *config.decoder_channels)
        trunk = self.backbone.trunk.levels  # strides of 2, 4, 8, 16 pixels
        beside = [trunk[2 - place].channels if place < config.skips else 0 for place in range(_DOUBLINGS)]
        self.decoder = nn.ModuleList(
            _Doubling(inputs, skip, outputs) for inputs, skip, outputs in zip(widths, beside, widths[1:], strict=False)
        )
        self.head = nn.Conv2d(widths[-1], config.num_classes, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of every pixel. See `MapNetwork`; a grey picture may have one channel.

        Args:
            pixels: prepared pictures of any one size.
        """
        if pixels.shape[1] == 1 < self.config.channels == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
        filled = filled_up(pixels, self.config.stride)
        *skips, last = self.backbone.pyramid(filled, (*range(self.config.skips and 3), -1)).maps
        x = self.projection(normed(last, self.backbone.norm))
        beside: Sequence[Tensor | None] = (*skips[::-1][: self.config.skips], *(None,) * (_DOUBLINGS - self.config.skips))
        for doubling, skip in zip(self.decoder, beside, strict=True):
            x = doubling(x, skip)
        return MapOutput(cut_back(self.head(x), filled, pixels))

    def usual_preprocessing(self) -> Preprocessing | None:
        """The whole picture at the network's size, in [0, 1], as the authors keep the slices of a scan."""
        usual = super().usual_preprocessing()
        if usual is None:
            return None
        channels = len(usual.mean)
        return replace(usual, interpolation="bicubic", mean=(0.0,) * channels, std=(1.0,) * channels)

    def _fresh_head(self) -> None:
        self.head = nn.Conv2d(self.head.in_channels, self.config.num_classes, 3, padding=1).to(self.head.weight)


class _Hybrid(HybridViT):
    """A hybrid whose residual network fills up borders evenly."""

    def _patches(self) -> PatchEmbedding:
        config = self.config
        self.trunk = BitTrunk(config.channels, config.trunk_depths, config.trunk_width, EVEN)
        return PatchEmbedding(self.trunk.levels[-1].channels, config.width, config.cells, bias=config.patch_bias)


class _Doubling(nn.Module):
    """A map twice as large, beside it one of the encoder's, and two convolutions (figure 1, right).

    Args:
        inputs: channels that come.
        skip: channels of the encoder's map; 0 for none.
        outputs: channels that go.
    """

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs + skip, outputs, 3, activation="relu")
        self.second = ConvNorm(outputs, outputs, 3, activation="relu")

    def forward(self, x: Float[Tensor, "b c i j"], skip: Float[Tensor, "b s _ _"] | None) -> Float[Tensor, "b d u v"]:
        """Apply the step. The encoder's pooling leaves its map a row and a column short: zeros stand there."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        if skip is not None:
            down, across = (side - have for side, have in zip(x.shape[2:], skip.shape[2:], strict=True))
            x = torch.cat([x, F.pad(skip, (0, across, 0, down)) if down or across else skip], dim=1)
        enlarged: Tensor = self.second(self.first(x))
        return enlarged


# The transformer of the authors has no class token, but a place for every patch.
VARIANTS: dict[str, TransUNetConfig] = {
    "transunet_r50_b16": TransUNetConfig(
        backbone=replace(HYBRIDS["r50_vit_b16"], class_token=False, prefix_positions=0, pool="mean", dropout=0.1)
    ),
}
"""Networks by name: the residual network, the transformer's size and its patch; pictures of 224 pixels."""

PAPERS = {"transunet": "Chen et al. 2021"}
"""Beginning of a name → where the network was published."""
